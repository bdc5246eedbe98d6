"""The dashboard's server: who sends half a request is not waited for."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the dashboard is an extra: pip install 'pyworker[web]'")
import uvicorn

from pyworker.web.__main__ import _Server

WHOLE = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


def test_who_sends_half_a_request_is_cut_and_nobody_else() -> None:
    asyncio.run(asyncio.wait_for(half_requests(), 30))


async def half_requests() -> None:
    release = asyncio.Event()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    hub: Any = SimpleNamespace(end=lambda: None)
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_keep_alive=60)
    config.load()
    server = _Server(config, hub)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await server.startup([listener])
        clients = {name: await asyncio.open_connection(*listener.getsockname()) for name in ("half", "next", "idle", "slow")}
        for name in ("next", "idle"):
            clients[name][1].write(WHOLE % b"")
            assert (await clients[name][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        for name in ("half", "next"):
            clients[name][1].write(b"GET / HTTP/1.1\r\nHo")
        clients["slow"][1].write(WHOLE % b"slow")
        while sum(each.timeout_keep_alive_task is None for each in server.server_state.connections) < 3:  # type: ignore[union-attr]
            await asyncio.sleep(0)
        server.cut_halves()
        server.cut_halves()
        for name in ("half", "next"):
            assert await clients[name][0].read() == b""
        release.set()
        assert (await clients["slow"][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        clients["idle"][1].write(WHOLE % b"")
        assert (await clients["idle"][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        for _, writer in clients.values():
            writer.close()
            await writer.wait_closed()
        await server.shutdown([listener])

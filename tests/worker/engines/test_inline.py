"""A WSGI app in the loop: one request at a time."""

from __future__ import annotations

import contextvars
import itertools
import socket
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines import ahead
from tests.support.steps import acts_at
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

pytestmark = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.mark.parametrize("how", ["read", "left"])
def test_an_app_in_the_loop_is_called_for_one_request_at_a_time(
    serve: Serve, loop: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it keeps for its thread (a database connection, which Django closes after each request) is one request's."""
    monkeypatch.setattr(ahead, "MOST", 1 << 20)
    kept: contextvars.ContextVar[int] = contextvars.ContextVar("kept", default=0)
    order: list[str] = []

    def parts() -> Iterator[bytes]:
        try:
            for _ in range(100):
                yield b"x" * 100_000
        finally:
            order.append(f"end of stream {kept.get()}")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        kept.set(kept.get() + 1)
        order.append(f"{environ['PATH_INFO']} {kept.get()}")
        return parts() if environ["PATH_INFO"] == "/stream" else [b"other"]

    site = serve(app, "wsgi", loop=loop)
    saturated: list[bool] = []
    site.running.server.on_saturation = saturated.append
    streaming, other, gone = site.client(), site.client(), site.client()
    streaming.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: saturated == [True], what="the stream to stand still")
    for n, client in enumerate((gone, other)):
        client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n)
        wait_until(lambda n=n: site.row[F.IN_FLIGHT] == n + 2, what="the next request")  # type: ignore[misc]
    gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    gone.close()
    wait_until(lambda: site.row[F.IN_FLIGHT] == 2, what="its end")
    assert order == ["/stream 1"]
    if how == "read":
        response = streaming.recv()
        assert response is not None
        assert len(response.body) == 10_000_000
    else:
        streaming.close()
    response = other.recv()
    assert response is not None
    assert response.body == b"other"
    assert order == ["/stream 1", "end of stream 1", "/1 2"]
    wait_until(lambda: saturated == [True, False], what="others to be taken again")


class Own(BaseException):
    """What the handler of a signal raises: no error of the system."""


def test_a_request_ends_wherever_the_handler_of_a_signal_has_raised_behind_the_app(serve: Serve, loop: str) -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"whole"]

    def rung() -> None:
        raise Own

    def at(step: int, there: socket.socket, came: list[bool]) -> None:
        came.append(acts_at(step, lambda: site.running.server.serve(there, True, None, True), rung, within="engines/inline.py"))

    site = serve(app, "wsgi", loop=loop)
    for step in itertools.count(1):
        here, there = socket.socketpair()
        there.setblocking(False)
        here.settimeout(20)
        came: list[bool] = []
        with here:
            here.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            site.running.loop.call_soon_threadsafe(at, step, there, came)
            assert b"".join(iter(partial(here.recv, 1000), b"")).count(b"HTTP/1.1") <= 1
        wait_until(lambda came=came: came and site.running.server.open_connections == site.row[F.IN_FLIGHT] == 0)  # type: ignore[misc]
        if came == [False]:
            break

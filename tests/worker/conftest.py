"""Apps and clients for the tests of workers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pyworker.config.schema import AppConfig
from tests.support.fake_daemon import FakeDaemon, tcp_listener

APP = """
import asyncio, os, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                print("app is down")
                return
    if scope["path"] == "/slow":
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/block":
        while not os.path.exists("go"):
            time.sleep(0.01)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def request(connection: socket.socket, path: str = "/") -> bytes:
    """Send one keep-alive request and return the body (the worker's pid), b"" when the server has closed."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return answer(connection)


def answer(connection: socket.socket) -> bytes:
    data = b""
    while True:
        head, gap, body = data.partition(b"\r\n\r\n")
        if gap:
            length = next(int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length"))
            if len(body) >= length:
                return body
        part = connection.recv(4096)
        if not part:
            return body
        data += part


def get(address: Any, path: str = "/") -> bytes:
    """One request on one connection."""
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(kind) as connection:
        connection.settimeout(30)
        connection.connect(address)
        return request(connection, path)


def spread(address: Any, count: int) -> Counter[bytes]:
    return Counter(get(address) for _ in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def daemon(folder: Path) -> Iterator[Any]:
    """Make a FakeDaemon with one TCP listener; options are AppConfig's."""
    with contextlib.ExitStack() as stack:

        def make(listeners: list[socket.socket] | None = None, **options: Any) -> FakeDaemon:
            options.setdefault("target", "shop:app")
            if options.get("script"):
                options["target"] = None
            options.setdefault("cwd", str(folder))
            app = AppConfig(name="shop", **options)
            return stack.enter_context(FakeDaemon(app, [tcp_listener()] if listeners is None else listeners))

        yield make


@pytest.fixture
def no_fd_is_left() -> Iterator[None]:
    uvloop.new_event_loop().close()  # the first one of a process keeps two for good
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) <= len(before)

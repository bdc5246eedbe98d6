"""What has arrived with a connection is answered before the loop has it, and nothing is different for that."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import threading
import weakref
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from tests.support.apps import echo, fast, hello
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve, Site

LOOPS = ("asyncio", "uvloop")
INTERFACES = ("asgi", "wsgi")
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
BIG = b"0123456789abcdef" * (1 << 18)  # 4 MiB: more than a socket takes at once

pytestmark = pytest.mark.parametrize("loop", LOOPS)


def connect(site: Site, first: bytes) -> Client:
    """Return a connection that the server was given when `first` was in it already."""
    here, there = socket.socketpair()
    here.settimeout(30)
    client = Client.of(here)
    site.clients.append(client)
    client.send(first)
    give(site, there)
    return client


def give(site: Site, there: socket.socket) -> None:
    there.setblocking(False)
    site.running.call(lambda: site.running.server.serve(there, True, None, True))


def given_to_loop(site: Site) -> list[Any]:
    """Return a list of the connections that the loop will be given."""
    server: Any = site.running.server
    give_to_loop, given = server._give_to_loop, []

    def counting(*arguments: Any) -> None:
        given.append(arguments)
        give_to_loop(*arguments)

    server._give_to_loop = counting
    return given


def wait_closed(site: Site) -> None:
    wait_until(lambda: site.row[F.OPEN] == 0)
    assert site.running.call(lambda: site.running.server.open_connections) == 0


@pytest.mark.parametrize("interface", INTERFACES)
def test_only_a_connection_that_stays_open_is_given_to_the_loop(serve: Serve, loop: str, interface: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    given = given_to_loop(site)
    closing = connect(site, LAST)
    response = closing.recv()
    assert response is not None
    assert (response.status, response.body, response.closes) == (200, b"hello\n", True)
    assert closing.closed()
    wait_closed(site)
    assert given == []
    staying = connect(site, GET)
    assert staying.recv() is not None
    again = staying.get()
    assert again is not None
    assert again.body == b"hello\n"
    assert len(given) == 1
    wait_until(lambda: site.row[F.REQUESTS] == 3)  # counted when it is written
    assert site.row[F.ACCEPTED] == 2


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("request_", [GET, LAST])
@pytest.mark.parametrize("part", [1 << 16, 1 << 21, len(BIG)])
def test_an_answer_that_the_socket_cannot_take_at_once_is_whole(
    serve: Serve, loop: str, interface: str, request_: bytes, part: int
) -> None:
    parts = [BIG[start : start + part] for start in range(0, len(BIG), part)]

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for each in parts[:-1]:
            await send({"type": "http.response.body", "body": each, "more_body": True})
        await send({"type": "http.response.body", "body": parts[-1]})

    def wsgi(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return parts if len(parts) == 1 else iter(parts)

    site = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop)
    client = connect(site, request_)
    response = client.recv()
    assert response is not None
    assert response.body == BIG
    if request_ is LAST:
        assert client.closed()
        wait_closed(site)
    else:
        assert client.get() is not None


@pytest.mark.parametrize("interface", INTERFACES)
def test_the_parts_of_an_answer_leave_together(serve: Serve, loop: str, interface: str) -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b", b""):
            await send({"type": "http.response.body", "body": part, "more_body": bool(part)})

    def wsgi(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return iter((b"a", b"b"))

    site = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop)
    here, there = socket.socketpair(type=socket.SOCK_SEQPACKET)  # which keeps apart what was written apart
    with here:
        here.sendall(LAST)
        give(site, there)
        here.settimeout(30)
        head, _, body = here.recv(1 << 16).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
        assert here.recv(1) == b""


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_answer_that_fails_behind_its_first_part_is_cut_behind_it(serve: Serve, loop: str, interface: str) -> None:
    """Not before its head: it is counted as a 200, and a proxy would send the request once more."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise RuntimeError("the database is gone")

    def wsgi(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        yield b"a"
        raise RuntimeError("the database is gone")

    site = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop)
    head, _, body = connect(site, GET).rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b"1\r\na\r\n"
    wait_closed(site)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_body_that_is_still_arriving_is_waited_for(serve: Serve, loop: str, interface: str) -> None:
    site = serve(getattr(echo, interface), interface, loop=loop)
    body = BIG[: 1 << 20]
    head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
    response = connect(site, head + body[:1000]).send(body[1000:]).recv()
    assert response is not None
    assert json.loads(response.body)["body"] == len(body)


@pytest.mark.parametrize("interface", INTERFACES)
def test_requests_that_came_together_are_answered_in_order(serve: Serve, loop: str, interface: str) -> None:
    site = serve(getattr(echo, interface), interface, loop=loop)
    client = connect(site, b"".join(GET.replace(b"/", b"/%d" % n, 1) for n in range(3)) + LAST)
    paths = []
    for _ in range(4):
        response = client.recv()
        assert response is not None
        paths.append(json.loads(response.body)["path"])
    assert paths == ["/0", "/1", "/2", "/"]
    assert client.closed()
    wait_closed(site)


def test_a_client_is_not_read_on_while_its_requests_wait(serve: Serve, loop: str) -> None:
    release = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while not release.is_set():
            await asyncio.sleep(0.01)
        await hello.asgi(scope, receive, send)

    site = serve(app, loop=loop)
    client = connect(site, GET * 2)
    client.sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 64 * len(BIG):
            sent += client.sock.send(GET * 1000)
            site.running.call(lambda: None)  # it has looked at its sockets
    release.set()
    assert sent < len(BIG)


@pytest.mark.usefixtures("lingers")
@pytest.mark.parametrize("interface", INTERFACES)
def test_a_refused_client_gets_its_answer_whole_although_it_sends_on(serve: Serve, loop: str, interface: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    client = connect(site, b"nonsense\r\n\r\n" + b"x" * 100_000)
    response = client.recv()
    assert response is not None
    assert response.status == 400
    client.send(b"x" * 100_000)
    assert client.closed()
    client.close()
    wait_closed(site)


def test_a_refused_client_that_has_left_is_no_error(
    serve: Serve, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = serve(hello.asgi, loop=loop)
    site.running.call(lambda: site.client().send(b"nonsense\r\n\r\n").close())  # before the loop can accept it
    wait_until(lambda: site.row[F.ACCEPTED] == 1)
    wait_closed(site)
    assert caplog.messages == []


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("first", [b"", GET[:10], GET, LAST, GET * 3])
def test_a_client_that_has_left_is_put_away(serve: Serve, loop: str, interface: str, first: bytes) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    here, there = socket.socketpair()
    here.sendall(first)
    here.close()
    give(site, there)
    wait_closed(site)
    wait_until(lambda: site.row[F.IN_FLIGHT] == 0)
    assert there.fileno() == -1


def test_an_app_that_waits_is_told_that_the_client_has_left(serve: Serve, loop: str) -> None:
    told: list[str] = []
    waiting = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        assert (await receive())["type"] == "http.request"
        waiting.set()
        told.append((await receive())["type"])

    site = serve(app, loop=loop)
    client = connect(site, GET)
    assert waiting.wait(30)
    client.close()
    wait_until(lambda: told == ["http.disconnect"])
    wait_closed(site)


def test_a_websocket_that_is_asked_for_at_once_is_opened(serve: Serve, loop: str) -> None:
    site = serve(fast.fastapi_app(), loop=loop)
    client = connect(
        site,
        b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        b"\x81\x81\0\0\0\0a",  # one text frame, "a"
    )
    response = client.recv(head_only=True)
    assert response is not None
    assert response.status == 101
    assert client._exactly(8) == b"\x81\x06echo a"
    client.close()
    wait_closed(site)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_request_that_came_while_draining_is_the_last_of_its_connection(
    serve: Serve, loop: str, interface: str
) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    open_still = connect(site, GET)
    assert open_still.recv() is not None
    site.running.call(lambda: site.running.server.begin_drain(10))
    client = connect(site, GET)
    response = client.recv()
    assert response is not None
    assert response.closes
    assert client.closed()
    client.close()
    open_still.close()
    site.running.call(site.running.stop.set)
    assert site.running.finish().cancelled == 0


def test_what_is_not_answered_in_time_while_draining_is_cut(serve: Serve, loop: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(60)

    site = serve(app, loop=loop)
    client = connect(site, GET)
    site.running.begin_drain(0)
    response = client.recv()
    assert response is not None
    assert response.status == 503
    client.close()
    assert site.running.finish().cancelled == 1


def test_a_connection_that_the_loop_does_not_take_is_closed(
    serve: Serve, loop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site = serve(hello.asgi, loop=loop)
    server: Any = site.running.server
    real = server.loop

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def connect_accepted_socket(self, *_: Any) -> None:
            raise RuntimeError("not this one")

    server.loop = Broken()
    client = connect(site, GET)
    response = client.recv()
    assert response is not None
    assert client.closed()
    wait_closed(site)
    server.loop = real
    assert "not this one" in capsys.readouterr().err


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_connection_that_is_over_leaves_nothing_for_the_garbage_collector(
    serve: Serve, loop: str, interface: str
) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    server: Any = site.running.server
    serve_early, seen = server._serve_early, []

    def noting(made: Any, *arguments: Any) -> None:
        seen.append(weakref.ref(made))
        serve_early(made, *arguments)

    server._serve_early = noting
    gc.disable()
    try:
        connect(site, LAST).recv()
        wait_closed(site)
        wait_until(lambda: seen[0]() is None)
    finally:
        gc.enable()

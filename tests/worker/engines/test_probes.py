"""What a strict server does with odd, malformed and hostile requests: status, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines import environ
from pyworker.worker.engines.connection import NEVER, Connection
from tests.support.apps import echo, hello
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

APPS = [pytest.param("asgi", id="asgi"), pytest.param("wsgi", id="wsgi")]
H = b"Host: test\r\n"

REFUSED = {
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Host": (400, b"GET / HTTP/1.1\r\n" + H + H + b"\r\n"),
    "two Host in HTTP/1.0": (400, b"GET / HTTP/1.0\r\n" + H + H + b"\r\n"),
    "Host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "Host with a path": (400, b"GET / HTTP/1.1\r\nHost: test/x?y\r\n\r\n"),
    "Host with a user": (400, b"GET / HTTP/1.0\r\nHost: me@test\r\n\r\n"),
    "CL and TE": (
        400,
        b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "two CL": (400, b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    "CL +4": (400, b"POST / HTTP/1.1\r\n" + H + b"Content-Length: +4\r\n\r\nabcd"),
    "CL 1_0": (400, b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1_0\r\n\r\n0123456789"),
    "CL of many digits": (400, b"POST / HTTP/1.1\r\n" + H + b"Content-Length: %b1\r\n\r\nx" % (b"0" * 3900)),
    "space before colon": (400, b"GET / HTTP/1.1\r\n" + H + b"X-A : b\r\n\r\n"),
    "obs-fold": (400, b"GET / HTTP/1.1\r\n" + H + b"X-A: b\r\n c\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: test\n\n"),
    "NUL": (400, b"GET / HTTP/1.1\r\n" + H + b"X-A: b\0c\r\n\r\n"),
    "not HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "unknown expectation": (417, b"POST / HTTP/1.1\r\n" + H + b"Expect: tea\r\nContent-Length: 1\r\n\r\nx"),
    "a coding that nobody knows": (501, b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "version": (505, b"GET / HTTP/2.0\r\n" + H + b"\r\n"),
    "CONNECT": (501, b"CONNECT a:1 HTTP/1.1\r\n" + H + b"\r\n"),
    "body too large": (413, b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 2001\r\n\r\n"),
    "chunks too large": (
        413,
        b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n%b\r\n" % (b"x" * 1024) * 3,
    ),
    "header too large": (431, b"GET / HTTP/1.1\r\n" + H + b"X-A: %b\r\n\r\n" % (b"x" * 5000)),
    "URL too large": (431, b"GET /%b HTTP/1.1\r\n" % (b"x" * 5000) + H + b"\r\n"),
    "port out of range": (400, b"GET http://test:99999999/ HTTP/1.1\r\n" + H + b"\r\n"),
    "a target with a user": (400, b"GET http://me@test/ HTTP/1.1\r\n" + H + b"\r\n"),
    "a trailer about the connection": (
        400,
        b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\nProxy-Connection: close\r\n\r\n",
    ),
    "endless trailer": (
        431,
        b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: %b" % (b"x" * 1_000_000),
    ),
    "endless header": (431, b"GET / HTTP/1.1\r\n" + b"X-A: bcdefghijkl\r\n" * 1000),
}


@pytest.mark.parametrize("interface", APPS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_is_refused_and_its_connection_closed(serve: Serve, interface: str, name: str) -> None:
    status, data = REFUSED[name]
    site = serve(getattr(echo, interface), interface, max_body_size=2000, max_header_size=4096)
    client = site.client()
    response = client.send(data).recv()
    assert response is not None
    assert (response.status, response.closes) == (status, True)
    assert "date" in response.headers
    wait_until(lambda: site.row[F.STATUS_1XX + status // 100 - 1] == 1)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.closed()
    assert site.client().get("/fine") is not None  # and nobody else has noticed


def test_a_name_that_a_client_has_invented_is_not_kept_when_it_is_long(serve: Serve) -> None:
    """1,024 of 60 kB would be 120 MB of each worker for good."""
    client = serve(echo.wsgi, "wsgi").client()
    for name in "X-Short", "X" + "-long" * 10_000:
        response = client.get("/", f"{name}: 1")
        assert response is not None
        assert json.loads(response.body)["headers"][name.lower()] == "1"
    assert b"x-short" in environ._keys
    assert max(map(len, environ._keys)) < 100


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("interface", APPS)
def test_good_requests_of_every_kind_on_one_connection(serve: Serve, interface: str, loop: str) -> None:
    site = serve(getattr(echo, interface), interface, loop=loop, max_header_size=4096)
    client = site.client()
    chunked = b"POST /c HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
    response = client.send(chunked).recv()
    assert response is not None
    assert json.loads(response.body)["body"] == "abcdefg"
    for byte in b"POST /slow HTTP/1.1\r\n" + H + b"Content-Length: 3\r\n\r\nxyz":
        client.send(bytes([byte]))
    response = client.recv()
    assert response is not None
    assert json.loads(response.body)["body"] == "xyz"
    client.send(b"\r\n" + b"".join(b"GET /%d?a=b HTTP/1.1\r\nHost: test\r\n\r\n" % n for n in range(50)))
    for n in range(50):
        response = client.recv()
        assert response is not None
        assert json.loads(response.body)["path"] == f"/{n}"
    response = client.post("/big", b"x" * 3_000_000)
    assert response is not None
    assert json.loads(response.body)["body"] == 3_000_000
    client.send(b"POST /e HTTP/1.1\r\n" + H + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    interim = client.recv()
    assert interim is not None
    assert interim.status == 100
    response = client.send(b"ok").recv()
    assert response is not None
    assert json.loads(response.body)["body"] == "ok"
    response = client.get("/h2c", "Connection: Upgrade", "Upgrade: h2c")
    assert response is not None
    assert response.status == 200
    response = client.get("http://test/absolute?q")
    assert response is not None
    assert (json.loads(response.body)["path"], json.loads(response.body)["query"]) == ("/absolute", "q")
    for version in b"1.1", b"1.0":  # a Host header beside it does not count (RFC 9112, 3.2.2)
        response = client.send(b"GET http://[::1]:80?q HTTP/%b\r\nHost: other\r\nConnection: keep-alive\r\n\r\n" % version).recv()
        assert response is not None
        assert json.loads(response.body)["headers"]["host"] == "[::1]:80"
    response = client.send(b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n").recv()
    assert response is not None
    assert json.loads(response.body)["headers"]["host"] == "test"
    for host in b"", b"[::1]:80", b"a_b.c-d~:1", b"%C3%A9!$&'()*+,;=":
        response = client.send(b"GET /h HTTP/1.1\r\nHost: %b\r\n\r\n" % host).recv()
        assert response is not None
        assert response.status == 200
    response = client.get("/%C3%A9%20x")
    assert response is not None
    assert json.loads(response.body)["path"] == "/é x"
    response = client.get("/", "Connection: close")
    assert response is not None
    assert response.closes
    assert client.closed()


@pytest.mark.parametrize("interface", APPS)
def test_head_gets_the_head_and_no_body(serve: Serve, interface: str) -> None:
    client = serve(getattr(hello, interface), interface).client()
    client.send(b"HEAD / HTTP/1.1\r\n" + H + b"\r\n")
    response = client.recv(head_only=True)
    assert response is not None
    assert response.headers["content-length"] == "6"
    response = client.get("/")
    assert response is not None
    assert response.body == b"hello\n"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_whose_body_was_never_asked_for_is_closed(serve: Serve, loop: str) -> None:
    """Its client may send the body or not. What comes next must not be taken for one, or for a request."""
    site = serve(hello.asgi, loop=loop)
    head = b"POST / HTTP/1.1\r\n" + H + b"Expect: 100-continue\r\nContent-Length: 40\r\n\r\n"
    client = site.client()
    response = client.send(head).recv()
    assert response is not None
    assert (response.status, response.closes) == (200, True)
    client.send(b"GET /smuggled HTTP/1.1\r\n" + H + b"\r\n" * 3)
    assert client.closed()
    client = site.client()
    response = client.send(head + bytes(40)).recv()  # one that has not waited
    assert response is not None
    assert (response.status, response.closes) == (200, False)


@pytest.mark.parametrize("interface", APPS)
def test_http_1_0_closes_unless_asked_to_keep_alive(serve: Serve, interface: str) -> None:
    site = serve(getattr(echo, interface), interface)
    client = site.client()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    response = client.recv()
    assert response is not None
    assert client.closed()
    client = site.client()
    for _ in range(3):
        response = client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").recv()
        assert response is not None
        assert response.headers["connection"] == "keep-alive"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("interface", APPS)
def test_a_client_that_has_closed_its_sending_side_is_answered(serve: Serve, interface: str, loop: str) -> None:
    client = serve(getattr(echo, interface), interface, loop=loop).client()
    client.send(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    response = client.recv()
    assert response is not None
    assert response.status == 200
    assert client.closed()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("interface", APPS)
def test_one_that_closes_its_sending_side_after_its_answer_is_let_go(serve: Serve, interface: str, loop: str) -> None:
    client = serve(getattr(echo, interface), interface, loop=loop, keepalive_timeout=300.0).client()
    assert client.get() is not None
    client.sock.shutdown(socket.SHUT_WR)
    assert client.closed()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_one_that_closes_its_sending_side_within_its_answer_is_let_go_behind_it(serve: Serve, loop: str) -> None:
    go = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        assert go.wait(30)
        yield b"two"

    site = serve(app, "wsgi", loop=loop, threads=2, keepalive_timeout=300.0)
    client = site.client().send(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
    assert client._until(b"one\r\n") is not None
    client.sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: next(iter(site.running.server._connections)).eof)
    go.set()
    assert client.rest() == b"3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("interface", APPS)
def test_what_came_before_a_head_does_not_count_as_its_size(serve: Serve, interface: str) -> None:
    client = serve(getattr(hello, interface), interface, max_header_size=4096).client()
    request = b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 10000\r\n\r\n" + bytes(10000)
    client.send(request + request[:20])
    assert client.recv() is not None
    answer = client.send(request[20:]).recv()
    assert answer is not None
    assert answer.status == 200


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_nonsense_behind_a_request_takes_no_answer_from_it_when_the_sending_side_is_closed(
    serve: Serve, loop: str
) -> None:
    called, go = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        called.set()
        assert go.wait(30)
        return hello.wsgi(environ, start_response)

    site = serve(app, "wsgi", loop=loop, threads=2)
    client = site.client().send(b"GET / HTTP/1.1\r\n" + H + b"\r\nnonsense\r\n\r\n")
    assert called.wait(30)
    connection = next(iter(site.running.server._connections))
    client.sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: connection.eof)
    go.set()
    response = client.recv()
    assert response is not None
    assert response.status == 200
    assert client.closed()


@pytest.mark.parametrize("interface", APPS)
@pytest.mark.parametrize("error", [b"\r\n", H + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n"], ids=["head", "body"])
def test_an_error_behind_a_good_request_waits_for_its_turn(serve: Serve, interface: str, error: bytes) -> None:
    client = serve(getattr(echo, interface), interface).client()
    client.send(b"GET /good HTTP/1.1\r\n" + H + b"\r\nPOST / HTTP/1.1\r\n" + error)
    first, second = client.recv(), client.recv()
    assert first is not None
    assert second is not None
    assert (first.status, second.status) == (200, 400)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.closed()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_silent_and_slow_clients_are_let_go(serve: Serve, loop: str) -> None:
    site = serve(hello.asgi, loop=loop, header_timeout=0.3, keepalive_timeout=0.3)
    whole = b"GET / HTTP/1.1\r\n" + H + b"\r\n"
    half, silent, idle = site.clients_that_said(b"GET / HTTP/1.1\r\nHost: te", b"", whole)
    assert silent.closed()
    late, answer = half.recv(), idle.recv()
    assert late is not None
    assert late.status == 408
    assert answer is not None
    assert answer.status == 200
    assert idle.closed()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_later_head_of_a_connection_has_no_more_time_than_the_first(serve: Serve, loop: str) -> None:
    site = serve(hello.asgi, loop=loop, header_timeout=0.3, keepalive_timeout=300.0)
    (client,) = site.clients_that_said(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
    assert client.recv() is not None
    late = client.send(b"GET / HTTP/1.1\r\nHost: te").recv()
    assert late is not None
    assert late.status == 408


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_head_that_comes_byte_by_byte_has_no_more_time_than_another(serve: Serve, loop: str) -> None:
    (client,) = serve(hello.asgi, loop=loop, header_timeout=0.3).clients_that_said(b"GET / HTTP/1.1\r\nHost: ")
    for _ in range(400):
        client.send(b"x")
        if select.select([client.sock], [], [], 0.05)[0]:
            break
    else:
        pytest.fail("it is waited for without end")
    response = client.recv()
    assert response is not None
    assert response.status == 408


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("interface", APPS)
def test_a_body_that_its_client_ends_too_early_is_not_waited_for(serve: Serve, interface: str, loop: str) -> None:
    client = serve(getattr(echo, interface), interface, loop=loop).client()
    client.send(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 10\r\n\r\nabc")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.closed()


def test_a_wsgi_body_that_stalls_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworker.worker.engines.connection.BODY_STALL", 0.2)
    site = serve(hello.wsgi, "wsgi", header_timeout=0.4)
    (client,) = site.clients_that_said(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 10\r\n\r\nabc")
    response = client.recv()
    assert response is not None
    assert response.status == 408


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_frames_a_wsgi_body_begins_no_time_anew(serve: Serve, loop: str) -> None:
    site = serve(hello.wsgi, "wsgi", loop=loop)
    client = site.client().send(b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
    wait_until(lambda: any(each.framing == 0 for each in list(site.running.server._connections) if each.parsing))
    (connection,) = site.running.server._connections
    before = site.running.call(lambda: connection.deadline)
    for piece in b"5;a", b"=b":
        seen = connection.framing
        client.send(piece)
        wait_until(lambda seen=seen: connection.framing > seen)  # type: ignore[misc]
    assert site.running.call(lambda: connection.deadline) == before
    response = client.send(b"\r\n12345\r\n0\r\n\r\n").recv()
    assert response is not None
    assert response.status == 200


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("later", [b"", b"5\r\n"], ids=["silent", "frames only"])
def test_an_asgi_body_that_stalls_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, loop: str, later: bytes
) -> None:
    monkeypatch.setattr("pyworker.worker.engines.connection.BODY_STALL", 0.5)
    said: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while not said or said[-1]["type"] == "http.request":
            said.append(await receive())

    site = serve(app, loop=loop, header_timeout=0.4)
    (client,) = site.clients_that_said(b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
    wait_until(lambda: said and next(iter(site.running.server._connections)).deadline < NEVER)
    response = client.send(later).recv()
    assert response is not None
    assert response.status == 408
    wait_until(lambda: len(said) == 2 and said[1] == {"type": "http.disconnect"})


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_stream_both_ways_may_be_silent_in_one(serve: Serve, monkeypatch: pytest.MonkeyPatch, loop: str) -> None:
    monkeypatch.setattr("pyworker.worker.engines.connection.BODY_STALL", 0.2)
    over, expire = threading.Event(), Connection.expire
    monkeypatch.setattr(Connection, "expire", lambda self: (expire(self), over.set()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        while (message := await receive())["more_body"]:
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body", "body": message["body"]})

    site = serve(app, loop=loop, header_timeout=0.4)
    (client,) = site.clients_that_said(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\na")
    assert over.wait(30), "the time to wait for the body does not end"
    response = client.send(b"b").recv()
    assert response is not None
    assert response.body == b"ab"


@pytest.mark.usefixtures("lingers")
def test_a_refused_upload_still_gets_its_answer(serve: Serve) -> None:
    """The client sends on while the answer is on its way: it must not be reset before it has read it."""
    client = serve(hello.asgi, max_body_size=1000).client()
    client.send(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5000000\r\n\r\n" + b"x" * 300_000)
    response = client.recv()
    assert response is not None
    assert response.status == 413


REFUSED_ONE = b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1001\r\n\r\n"


@pytest.mark.usefixtures("lingers")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_refused_client_that_may_still_be_sending_sees_the_end_at_once(serve: Serve, loop: str) -> None:
    client = serve(hello.asgi, loop=loop, max_body_size=1000).client().send(REFUSED_ONE)
    assert client.recv() is not None
    assert client.closed()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_refused_client_that_never_ends_is_cut(serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworker.worker.engines.connection.LINGER", 0.1)
    site = serve(hello.asgi, loop=loop, max_body_size=1000, keepalive_timeout=0.2)
    assert site.client().send(REFUSED_ONE).recv() is not None
    wait_until(lambda: site.row[F.OPEN] == 0, what="the connection to be cut")


UPLOAD = H + b"Content-Length: 5000000\r\n\r\n"
SENDS_ON = {
    "long": b"POST / HTTP/1.1\r\n" + UPLOAD,
    "chunked": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n4c4b40\r\n",
    "last answer": b"POST /last HTTP/1.1\r\n" + UPLOAD,
}


async def last(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    headers = [(b"connection", b"close")] if scope["path"] == "/last" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body"})


@pytest.mark.usefixtures("lingers")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("said", SENDS_ON.values(), ids=SENDS_ON)
def test_an_upload_that_goes_on_after_its_answer_is_ended_without_a_reset(
    serve: Serve, loop: str, said: bytes
) -> None:
    client = serve(last, loop=loop, keepalive_timeout=300.0).client().send(said)
    response = client.recv()
    assert response is not None
    assert response.closes  # a proxy must not take it for its next request
    client.send(b"x" * 2_000_000)
    assert client.sock.recv(1) == b""


@pytest.mark.usefixtures("lingers")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("path", [b"/", b"/last"])
def test_a_large_body_that_nobody_took_is_read_on_behind_its_answer(serve: Serve, loop: str, path: bytes) -> None:
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while not go.is_set():
            await asyncio.sleep(0.01)
        await last(scope, receive, send)

    site = serve(app, loop=loop)
    client = site.client().send(b"POST %b HTTP/1.1\r\n" % path + H + b"Content-Length: 900000\r\n\r\n" + bytes(300_000))
    wait_until(lambda: any(each.hold_body for each in list(site.running.server._connections)))
    go.set()
    assert client.recv() is not None
    client.send(bytes(600_000))
    assert client.sock.recv(1) == b"" if path == b"/last" else client.get() is not None


def test_each_body_of_a_connection_may_be_as_large_as_one(serve: Serve) -> None:
    client = serve(hello.asgi, max_body_size=1_000_000).client()
    for _ in range(4):  # of which the app takes nothing
        answer = client.post("/", bytes(900_000))
        assert answer is not None
        assert answer.status == 200


@pytest.mark.parametrize("interface", APPS)
def test_as_many_upgrades_that_nobody_takes_as_there_are_are_answered(serve: Serve, interface: str) -> None:
    client = serve(getattr(hello, interface), interface).client()
    client.send((b"GET / HTTP/1.1\r\n" + H + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n") * 1000)
    for _ in range(1000):
        assert client.recv() is not None


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_head_that_waits_behind_slow_requests_has_its_time_behind_them(serve: Serve, loop: str, whole: bool) -> None:
    go = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        assert go.wait(30)
        return hello.wsgi(environ, start_response)

    site = serve(app, "wsgi", loop=loop, threads=2, header_timeout=0.2)
    request = b"GET / HTTP/1.1\r\n" + H + b"\r\n"
    (client,) = site.clients_that_said(request * 2 + request[:20])
    wait_until(lambda: site.running.call(lambda: [c.deadline for c in site.running.server._connections]) == [NEVER])
    if whole:
        client.send(request[20:])
    go.set()
    answers = [client.recv() for _ in range(3)]
    assert [answer and answer.status for answer in answers] == [200, 200, 200 if whole else 408]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("interface", APPS)
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("asked", [b"Connection: Upgrade\r\n", b""])
def test_the_body_of_a_request_whose_upgrade_is_not_taken_is_no_request(
    serve: Serve, interface: str, loop: str, at_once: bool, asked: bytes
) -> None:
    client = serve(getattr(echo, interface), interface, loop=loop).client()
    inner = b"GET /inner HTTP/1.1\r\n" + H + b"\r\n"
    head = b"POST /outer HTTP/1.1\r\n" + H + asked + b"Upgrade: h2c\r\n"
    for body in (
        b"Content-Length: %d\r\n\r\n%b" % (len(inner), inner),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nX-A: b\r\n\r\n" % (len(inner), inner),
        b"Content-Length: 0\r\n\r\n",
    ):
        request = head + body + b"GET /next HTTP/1.1\r\n" + H + b"\r\n"
        for part in [request] if at_once else [bytes([byte]) for byte in request]:
            client.send(part)
        for path in ("/outer", "/next"):
            response = client.recv()
            assert response is not None
            said = json.loads(response.body)
            assert said["path"] == path
            assert said["body"] == (inner.decode() if path == "/outer" and inner in body else "")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_body_that_nobody_wants_may_come_as_slowly_as_any(serve: Serve, loop: str) -> None:
    """Its client looks at the answer when it has sent all. It was cut when a connection that idles would be."""
    site = serve(hello.asgi, loop=loop)
    client = site.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n1")
    assert client.recv() is not None
    (connection,) = site.running.server._connections

    def deadline_after(data: bytes) -> float:
        before: float = connection.deadline
        connection.data_received(data)
        return connection.deadline - before

    assert site.running.call(lambda: deadline_after(b"2")) > 0
    assert site.running.call(lambda: deadline_after(b"3")) > 0
    assert client.get("/") is not None


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_body_that_nobody_wants_is_no_longer_waited_for_and_not_reset(serve: Serve, loop: str) -> None:
    site = serve(hello.asgi, loop=loop)
    client = site.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n1")
    wait_until(lambda: site.row[F.REQUESTS] == 1, what="the answer")
    (connection,) = site.running.server._connections
    site.running.call(connection.expire)
    client.sock.sendall(b"23")
    assert client.recv() is not None
    assert client.sock.recv(1) == b""

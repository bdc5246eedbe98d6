"""What is the server's of an answer; and of an app that forks the child never serves on in our loop, and never answers
its parent's client, however it ends.
"""

from __future__ import annotations

import os
import select
import signal
from typing import Any

import pytest

from pyworker.worker.engines.exchange import split_target
from tests.worker.engines.conftest import ALL_MODES, Serve
from tests.worker.engines.test_websocket import opened


def answers(headers: list[tuple[bytes, bytes]], body: bytes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def test_how_an_answer_is_framed_is_not_for_the_app_to_say(serve: Serve) -> None:
    said = [(b"Transfer-Encoding", b"chunked"), (b"Keep-Alive", b"timeout=9"), (b"Proxy-Connection", b"close")]
    client = serve(answers(said, b"ok"), server_header=True).client()
    for _ in range(2):
        response = client.get()
        assert response is not None
        assert response.body == b"ok"
        assert response.headers.keys() == {"content-length", "date", "server", "x-request-id"}


def test_an_app_that_says_so_closes_its_connection(serve: Serve) -> None:
    client = serve(answers([(b"Connection", b"Upgrade, Close")], b"ok")).client()
    response = client.get()
    assert response is not None
    assert (response.body, response.closes) == (b"ok", True)
    assert client.closed()


def test_a_date_and_a_server_of_the_app_are_sent_once(serve: Serve) -> None:
    response = serve(answers([(b"Date", b"then"), (b"Server", b"mine")], b"ok"), server_header=True).client().get()
    assert response is not None
    assert (response.headers["date"], response.headers["server"]) == ("then", "mine")


@pytest.mark.parametrize("lengths", [[b"2", b"2"], [b"2", b"1"], [b"+2"], [b" 2"], [b""]])
def test_an_answer_whose_length_is_not_one_number_is_a_500(serve: Serve, lengths: list[bytes]) -> None:
    response = serve(answers([(b"Content-Length", each) for each in lengths], b"ok")).client().get()
    assert response is not None
    assert (response.status, response.closes) == (500, True)


def end_of_child(error: BaseException | None) -> bytes | None:
    """Fork a child that ends by `error`, or gets None; return its exit code."""
    pid = os.fork()
    if not pid:
        if error is not None:
            raise error
        return None
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], 5)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
    return b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("interface", "loop", "threads"), ALL_MODES)
@pytest.mark.parametrize(
    ("error", "code"),
    [(SystemExit(3), b"3"), (SystemExit(), b"0"), (SystemExit("no"), b"1"), (ValueError(), b"1"), (None, b"0")],
)
def test_the_child_of_an_app_that_forks_ends_with_its_code(
    serve: Serve, interface: str, loop: str, threads: int, error: BaseException | None, code: bytes
) -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        answer = end_of_child(error)
        if answer is not None:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": answer})

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        answer = end_of_child(error)
        start_response("200 OK", [])
        return [answer or b"a child's"]

    client = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop, threads=threads).client()
    response = client.get()
    assert response is not None
    assert (response.status, response.body) == (200, code)
    assert client.get() is not None


@pytest.mark.parametrize("end", ["answers", "receives"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_child_that_uses_its_parents_request_ends_there(serve: Serve, loop: str, end: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        answer = end_of_child(None)
        if answer is None and end == "receives":
            await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": answer or b"a child's"})

    client = serve(app, loop=loop).client()
    for _ in range(2):
        response = client.get()
        assert response is not None
        assert response.body == b"0"


@pytest.mark.parametrize("error", [None, ValueError()])
@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_child_of_a_websocket_ends_there(serve: Serve, loop: str, sends: bool, error: BaseException | None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        answer = end_of_child(error)
        if answer is not None or sends:
            await send({"type": "websocket.send", "bytes": answer or b"a child's"})

    client = opened(serve(app, loop=loop).client())
    assert client._exactly(3) == b"\x82\x01" + (b"0" if error is None else b"1")


@pytest.mark.parametrize(("error", "sends"), [(None, False), (None, True), (ValueError(), False), (SystemExit(3), False)])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_child_of_a_lifespan_ends_there(serve: Serve, loop: str, error: BaseException | None, sends: bool) -> None:
    ends = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            code = end_of_child(error)
            if code is None and not sends:
                return
            ends.append(code)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": ends[0]})

    response = serve(app, loop=loop).client().get()
    assert response is not None
    assert response.body == {None: b"0", ValueError: b"1", SystemExit: b"3"}[type(error) if error else None]


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"/", (b"/", b"")),
        (b"/a?b?c", (b"/a", b"b?c")),
        (b"*", (b"*", b"")),
        (b"/a?b#c", (b"/a", b"b")),
        (b"http://host/a?b", (b"/a", b"b")),
        (b"http://host", (b"/", b"")),
    ],
)
def test_a_target_is_split_without_its_fragment(target: bytes, parts: tuple[bytes, bytes]) -> None:
    assert split_target(target) == parts

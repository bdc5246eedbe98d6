"""An answer that cannot be completed: what was written of it arrives, and its end shows that there should be more."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.unix import tls
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import ALL_MODES, Serve, Site

PART = b"a part"  # not so large that a loop hands it to the kernel at once
LARGE, LARGE_PARTS = bytes(70_000), 100  # more than the kernel takes for a client that does not read


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Answers with LARGE_PARTS (/large) or PART, and fails; of the length that the query names."""
    assert scope["type"] == "http"
    if scope["path"] == "/well":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"well"})
        return
    length = [(b"content-length", scope["query_string"])] if scope["query_string"] else []
    await send({"type": "http.response.start", "status": 200, "headers": length})
    for part in [LARGE] * LARGE_PARTS if scope["path"] == "/large" else [PART]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    if scope["path"] == "/ends":
        await send({"type": "http.response.body", "body": b""})
    raise RuntimeError("the database is gone")


def wsgi(environ: Any, start_response: Any) -> Iterator[bytes]:
    """The same."""
    length = [("Content-Length", environ["QUERY_STRING"])] if environ["QUERY_STRING"] else []
    start_response("200 OK", length if environ["PATH_INFO"] != "/well" else [("Content-Length", "4")])
    if environ["PATH_INFO"] == "/well":
        yield b"well"
        return
    yield from [LARGE] * LARGE_PARTS if environ["PATH_INFO"] == "/large" else [PART]
    if environ["PATH_INFO"] != "/ends":
        raise RuntimeError("the database is gone")


def kept_alive(site: Site, **options: Any) -> Client:
    """Return a client whose connection the loop has: what is answered earlier is written in another way."""
    client = site.client(**options)
    response = client.get("/well")
    assert response is not None
    assert response.body == b"well"
    return client


def get(client: Client, path: str, version: str = "1.1") -> bytes:
    """Return all that there is behind the head."""
    client.send(f"GET {path} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    head, _, body = client.rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return body


@pytest.mark.parametrize(("interface", "loop", "threads"), ALL_MODES)
@pytest.mark.parametrize("early", [True, False])
def test_what_was_written_before_an_app_failed_arrives(
    serve: Serve, interface: str, loop: str, threads: int, early: bool
) -> None:
    site = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop, threads=threads)
    client = site.client if early else lambda: kept_alive(site)
    for _ in range(20):  # a thread may fail before or after the loop has the connection
        assert get(client(), "/") == b"%x\r\n%b\r\n" % (len(PART), PART)
        assert get(client(), "/?80") == PART
        assert get(client(), "/ends?80") == PART
        assert get(client(), "/", "1.0") == PART
    wait_until(lambda: site.row[F.OPEN] == 0, what="the connections' end")


@pytest.mark.parametrize(("interface", "loop", "threads"), ALL_MODES)
@pytest.mark.parametrize("early", [True, False])
def test_it_arrives_at_a_client_that_reads_late(
    serve: Serve, interface: str, loop: str, threads: int, early: bool
) -> None:
    site = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop, threads=threads)
    client = site.client() if early else kept_alive(site)
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.recv(head_only=True) is not None
    assert client.rest() == LARGE_PARTS * (b"%x\r\n%b\r\n" % (len(LARGE), LARGE))


@pytest.mark.parametrize(("interface", "loop", "threads"), ALL_MODES)
def test_the_client_may_still_be_sending(serve: Serve, interface: str, loop: str, threads: int) -> None:
    site = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop, threads=threads)
    client = kept_alive(site)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /well HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.rest().endswith(b"%b\r\n" % PART)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_arrives_with_tls(serve: Serve, certificate: tuple[str, str], loop: str) -> None:
    site = serve(asgi, loop=loop, context=tls.context(*certificate, None))
    context = ssl.create_default_context(cafile=certificate[0])
    assert get(kept_alive(site, context=context), "/") == b"%x\r\n%b\r\n" % (len(PART), PART)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tls_does_not_end_an_answer_without_a_length_as_if_it_were_whole(
    serve: Serve, certificate: tuple[str, str], loop: str
) -> None:
    site = serve(asgi, loop=loop, context=tls.context(*certificate, None))
    context = ssl.create_default_context(cafile=certificate[0])
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # which some Pythons set
    client = kept_alive(site, context=context)
    client.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
    with pytest.raises((ssl.SSLError, ConnectionResetError), match=r"(?i)eof|reset"):
        client.rest()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_task_of_the_app_that_waits_for_the_client_learns_of_the_end(serve: Serve, loop: str) -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def listen() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            heard.append(message["type"])

        await receive()
        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        with pytest.raises(RuntimeError, match="longer"):
            await send({"type": "http.response.body", "body": b"abc"})
        await listening

    site = serve(app, loop=loop)
    assert site.client().get() is None
    wait_until(lambda: heard == ["http.disconnect"], what="the app to know")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_answer_that_is_cut_at_the_end_of_a_drain_arrives_as_far_as_it_was_written(serve: Serve, loop: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        try:
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await asyncio.sleep(3600)
        finally:
            await send({"type": "http.response.body", "body": b"last", "more_body": True})

    site = serve(app, loop=loop)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.recv(head_only=True) is not None
    site.running.begin_drain(0)
    client.sock.settimeout(30)
    assert client.rest() == b"5\r\nfirst\r\n4\r\nlast\r\n"
    assert site.running.finish().cancelled == 1


def test_a_client_that_never_reads_does_not_keep_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyworker.worker.engines import stall

    monkeypatch.setattr(stall, "SEND_STALL", 0.2)
    site = serve(wsgi, "wsgi", loop="uvloop", keepalive_timeout=0.2)
    client = site.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: site.row[F.ACCEPTED] == 1)
    wait_until(lambda: site.row[F.OPEN] == 0, what="the connection to be cut")
    assert site.row[F.REQUESTS] == 1

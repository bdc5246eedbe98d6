"""TLS connections end as others do: nobody holds a drain, the slow get all, who takes nothing is cut."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tracemalloc
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.unix import tls
from pyworker.worker.engines import stall
from pyworker.worker.engines.connection import LINGERING
from tests.support.apps import hello
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve
from tests.worker.engines.test_stall import take_a_little

LARGE = 20_000_000
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

pytestmark = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


async def large(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


def take(client: Client, size: int) -> None:
    """Read so much."""
    while size > 0:
        part = client.sock.recv(1 << 20)
        assert part, f"{size} bytes are missing"
        size -= len(part)


@pytest.fixture
def secure(serve: Serve, certificate: tuple[str, str]) -> Any:
    """Serve an app with TLS; return the site and a client of it."""

    def start(application: Any, **options: Any) -> tuple[Any, Client]:
        site = serve(application, context=tls.context(*certificate, None), **options)
        return site, site.client(context=ssl.create_default_context(cafile=certificate[0]))

    return start


def test_a_connection_that_waits_costs_little_memory(serve: Serve, certificate: tuple[str, str], loop: str) -> None:
    if loop == "uvloop":
        pytest.skip("its room is counted, and takes no memory before it is used")
    site = serve(hello.asgi, context=tls.context(*certificate, None), loop=loop)
    context = ssl.create_default_context(cafile=certificate[0])
    with contextlib.closing(site.client(context=context)) as first:
        first.get()
        tracemalloc.start()
        try:
            clients = [site.client(context=context) for _ in range(10)]
            for client in clients:
                client.get()
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        for client in clients:
            client.close()
    assert taken < 10 * 128 * 1024


def test_a_client_that_does_not_answer_the_close_holds_no_drain(
    secure: Any, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyworker.worker.engines.connection.LINGER", 0.1)
    site, client = secure(hello.asgi, loop=loop, keepalive_timeout=0.2)
    assert client.get() is not None
    site.running.begin_drain(60)
    assert site.running.finish().cancelled == 0
    client.close()


def test_a_slow_reader_gets_its_last_answer_whole(secure: Any, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworker.worker.engines.connection.LINGER", 0.1)
    monkeypatch.setattr("asyncio.constants.SSL_SHUTDOWN_TIMEOUT", 0.1)
    site, client = secure(large, loop=loop, keepalive_timeout=0.2)
    wait_until(lambda: site.row[F.OPEN] == 1)
    connection = next(iter(site.running.server._connections))
    client.send(GET_LAST)
    wait_until(lambda: connection.reading == LINGERING)
    for _ in range(3):
        before = connection.deadline
        wait_until(lambda n=before: connection.deadline != n, what="the time to linger to be over")  # type: ignore[misc]
    assert client.recv(head_only=True) is not None
    take(client, LARGE - len(client.buffer))
    assert client.sock.recv(1) == b""


@pytest.mark.usefixtures("lingers")
def test_a_client_that_goes_on_sending_is_not_cut_before_it_has_its_answer(secure: Any, loop: str) -> None:
    _, client = secure(hello.asgi, loop=loop)
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 500000\r\n\r\n")
    response = client.recv()
    assert response is not None
    for _ in range(50):
        client.send(bytes(10_000))
    client.close()


@pytest.mark.usefixtures("lingers")
def test_an_answer_without_length_ends_at_once_in_a_drain(secure: Any, loop: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    site, client = secure(app, loop=loop)
    wait_until(lambda: site.row[F.OPEN] == 1)
    site.running.begin_drain(10)
    response = client.send(b"GET / HTTP/1.0\r\n\r\n").recv()
    assert response is not None
    assert response.body == b"onetwo"
    client.sock.unwrap().close()  # type: ignore[attr-defined]
    assert site.running.finish().cancelled == 0


@pytest.mark.parametrize("last", [False, True])
def test_a_client_that_takes_nothing_is_cut(
    secure: Any, loop: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, "SEND_STALL", 0.2)
    site, client = secure(large, loop=loop, keepalive_timeout=30 if not last else 0.2)
    client.send(GET_LAST if last else GET)
    wait_until(lambda: site.row[F.REQUESTS] == 1)
    wait_until(lambda: site.row[F.OPEN] == 0, what="the connection to be cut")
    assert socket.socket.recv(client.sock, 1)  # what the kernel had


def test_a_slow_reader_may_be_as_slow_as_it_likes(secure: Any, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, client = secure(large, loop=loop, keepalive_timeout=0.2)
    take(client, LARGE - take_a_little(client, monkeypatch))


def test_a_websocket_whose_client_does_not_answer_the_close_ends(
    secure: Any, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, "SEND_STALL", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})

    site, client = secure(app, loop=loop, keepalive_timeout=0.2)
    client.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    response = client.recv(head_only=True)
    assert response is not None
    assert response.status == 403
    wait_until(lambda: site.row[F.OPEN] == 0, what="the websocket to be cut")


def test_old_versions_and_renegotiation_are_refused(certificate: tuple[str, str], loop: str) -> None:
    context = tls.context(*certificate, None)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_handshake_that_never_ends_is_not_waited_for(serve: Serve, loop: str, certificate: tuple[str, str]) -> None:
    site = serve(hello.asgi, context=tls.context(*certificate, None), loop=loop, header_timeout=0.2)
    for client in site.clients_that_said(b"", b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"):
        assert client.closed()
    wait_until(lambda: site.row[F.OPEN] == 0)

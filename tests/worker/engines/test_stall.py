"""A client that takes nothing of its answer is cut; a slow one is not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines import stall
from pyworker.worker.engines.stall import SEND_STALL, Stall
from tests.support.pyworker import LONG
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

LARGE = 20_000_000
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def large(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


def take_a_little(client: Client, monkeypatch: pytest.MonkeyPatch) -> int:
    """Ask, take a little at each look, for three times as long as one has that takes nothing; return how much that was.

    It is taken in the server's thread: that of the test may get no processor time for so long.
    """
    monkeypatch.setattr(stall, "SEND_STALL", 1.0)
    bytes_taken, took = stall.bytes_taken, [0]

    def look(transport: Any) -> int | None:
        client.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            most = sum(took) + 200_000
            while sum(took) < most and (part := client.sock.recv(16_384)):
                took[-1] += len(part)
        client.sock.settimeout(30)
        took.append(0)
        if len(took) > 3 * stall.LOOKS:
            monkeypatch.undo()
        return bytes_taken(transport)

    monkeypatch.setattr(stall, "bytes_taken", look)
    client.send(GET)
    wait_until(lambda: len(took) > 3 * stall.LOOKS, LONG, lambda: f"the looks: {took}")
    return sum(took)


def test_each_byte_that_is_taken_begins_the_time_anew() -> None:
    standing = Stall(0.0, 5)
    assert not standing.is_over(SEND_STALL - 1, 5)
    assert not standing.is_over(SEND_STALL + 1, 6)
    assert not standing.is_over(2 * SEND_STALL, 6)
    assert standing.is_over(2 * SEND_STALL + 1, 6)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("last", [False, True])
def test_a_client_that_takes_nothing_is_cut(serve: Serve, loop: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "SEND_STALL", 0.2)
    site = serve(large, loop=loop, keepalive_timeout=0.2)
    client = site.client().send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if last else GET)
    wait_until(lambda: site.row[F.ACCEPTED] == 1)
    wait_until(lambda: site.row[F.OPEN] == 0, what="the connection to be cut")
    assert client.sock.recv(1) == b"H"  # what the kernel had


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_app_that_waits_for_one_who_takes_nothing_goes_on_when_that_is_cut(serve: Serve, loop: str) -> None:
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(LARGE), "more_body": True})
        await send({"type": "http.response.body"})
        ended.set()

    site = serve(app, loop=loop)
    site.client().send(GET)
    wait_until(lambda: any(each.waiting for each in list(site.running.server._connections)), what="the app to wait")
    (connection,) = site.running.server._connections
    site.running.call(connection.abort)
    assert ended.wait(30)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("how", ["half", "whole"])
def test_an_app_that_waits_for_its_client_to_leave_is_told_although_requests_wait_behind(
    serve: Serve, loop: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, "SEND_STALL", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["path"] == "/wait" and (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    site = serve(app, loop=loop, keepalive_timeout=0.2)
    client = site.client().send(GET.replace(b"/", b"/wait", 1) + GET)
    wait_until(lambda: site.row[F.IN_FLIGHT] == 1)
    if how == "half":
        client.sock.shutdown(socket.SHUT_WR)
        for path in (b"/wait", b"/"):
            response = client.recv()
            assert response is not None
            assert response.body == path
    client.close()
    wait_until(lambda: site.row[F.OPEN] == 0, what="the end")


def test_a_thread_that_writes_to_one_is_free_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "SEND_STALL", 0.2)
    ended = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        try:
            while True:
                yield bytes(100_000)
        finally:
            ended.set()

    site = serve(app, "wsgi", threads=2, keepalive_timeout=0.2)
    site.client().send(GET)
    assert ended.wait(30)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_of_a_client_on_a_unix_socket_nobody_counts_what_it_takes(serve: Serve, loop: str, tmp_path: Path) -> None:
    site = serve(large, loop=loop, family=socket.AF_UNIX, address=str(tmp_path / "s"))
    client = site.client().send(GET)
    wait_until(lambda: site.row[F.OPEN] == 1)
    (connection,) = site.running.server._connections
    wait_until(lambda: connection.transport is not None and stall.unsent(connection.transport) > 0)
    for now in 0.0, 2 * SEND_STALL:
        site.running.call(lambda now=now: stall.look(connection, now))  # type: ignore[misc]
    response = client.recv()
    assert response is not None
    assert len(response.body) == LARGE


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_slow_reader_may_be_as_slow_as_it_likes(serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(large, loop=loop, keepalive_timeout=0.2).client()
    got = take_a_little(client, monkeypatch)
    while got < LARGE:
        part = client.sock.recv(1 << 20)
        assert part, got
        got += len(part)

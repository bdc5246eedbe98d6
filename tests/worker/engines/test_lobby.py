"""A connection whose request comes later than itself waits beside the event loop, which never hears of most of them."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines.early import Early
from pyworker.worker.engines.lobby import Lobby
from tests.support.apps import hello
from tests.support.rawhttp import Client
from tests.worker.engines.conftest import Serve
from tests.worker.engines.test_early import GET, INTERFACES, LAST, LOOPS, connect, give, given_to_loop, wait_closed

both_loops = pytest.mark.parametrize("loop", LOOPS)


@both_loops
@pytest.mark.parametrize("interface", INTERFACES)
def test_late_requests_are_answered_without_the_loop(serve: Serve, loop: str, interface: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    given = given_to_loop(site)
    clients = [connect(site, b"") for _ in range(40)]  # more than are looked at between two turns of the loop
    assert site.running.call(lambda: site.running.server.open_connections) == 40
    for client in clients:
        client.send(LAST)
    for client in clients:
        response = client.recv()
        assert response is not None
        assert (response.status, response.body) == (200, b"hello\n")
        assert client.closed()
    wait_closed(site)
    assert given == []


@both_loops
@pytest.mark.parametrize("interface", INTERFACES)
def test_one_that_stays_after_its_late_request_is_given_to_the_loop(serve: Serve, loop: str, interface: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    given = given_to_loop(site)
    client = connect(site, b"")
    for _ in range(3):
        response = client.send(GET).recv()
        assert response is not None
        assert response.body == b"hello\n"
    assert len(given) == 1


@both_loops
def test_a_client_that_never_asks_is_closed_when_its_time_is_over(serve: Serve, loop: str) -> None:
    site = serve(hello.asgi, loop=loop, header_timeout=0.3)
    given = given_to_loop(site)
    began = time.monotonic()
    client = connect(site, b"")
    assert client.closed()
    assert time.monotonic() - began >= 0.3
    wait_closed(site)
    assert given == []


@both_loops
def test_a_client_that_leaves_without_asking_is_put_away(serve: Serve, loop: str) -> None:
    site = serve(hello.asgi, loop=loop)
    client = connect(site, b"")
    assert site.row[F.OPEN] == 1
    client.close()
    wait_closed(site)
    assert site.row[F.REQUESTS] == 0


@both_loops
@pytest.mark.parametrize("interface", INTERFACES)
def test_those_that_wait_when_the_server_stops_are_served_before_it_ends(
    serve: Serve, loop: str, interface: str
) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    waiting = connect(site, b"")
    site.running.begin_drain(10)
    newer = connect(site, b"")  # one of those that a stopping worker still takes over
    for client in (waiting, newer):
        response = client.send(GET).recv()
        assert response is not None
        assert (response.body, response.closes) == (b"hello\n", True)
        client.close()
    assert site.running.finish().cancelled == 0


@both_loops
def test_one_that_the_lobby_cannot_take_is_the_loops(serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")  # the kernel's limit of watches (epoll_ctl(2))

    site = serve(hello.asgi, loop=loop)
    given = given_to_loop(site)
    monkeypatch.setattr(Lobby, "add", full)
    response = connect(site, b"").send(LAST).recv()
    assert response is not None
    assert response.body == b"hello\n"
    assert len(given) == 1


@both_loops
def test_an_entry_that_outlives_its_connection_harms_nobody(serve: Serve, loop: str) -> None:
    """A process that the app has forked holds the connection, and with it the kernel's entry, open."""
    site = serve(hello.asgi, loop=loop, header_timeout=0.3)
    here, there = socket.socketpair()
    client, held = Client.of(here), there.dup()
    site.clients.append(client)
    with held:
        give(site, there)
        wait_closed(site)  # its time is over
        client.send(LAST)  # what the entry is about; its number may be the next connection's
        site.running.server.header_timeout = 30.0  # of a busy machine
        response = connect(site, b"").send(LAST).recv()
        assert response is not None
        assert response.body == b"hello\n"


def test_an_answer_arrives_although_the_client_has_sent_more_than_was_read() -> None:
    """Closing a socket with something unread resets the connection, and what was not sent until then is gone."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=30) as client,
    ):
        client.sendall(b"not read")
        sock, _ = listener.accept()
        stand_in = Early(sock, None)  # type: ignore[arg-type]  # it is not asked
        stand_in.write(b"answer")
        stand_in.close()
        assert stand_in.over
        assert client.recv(100) == b"answer"

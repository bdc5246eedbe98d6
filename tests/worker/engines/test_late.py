"""An app that keeps the loop busy past its clients' time-outs loses no request that came in time."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Any

import pytest

from pyworker.unix import tls
from tests.support.apps import echo, hello
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve, Site
from tests.worker.engines.test_early import GET, connect

KINDS = [(interface, loop) for interface in ("asgi", "wsgi") for loop in ("asyncio", "uvloop")]

pytestmark = pytest.mark.parametrize(("interface", "loop"), KINDS)


def hold_up(site: Site, client: Client, said: bytes) -> None:
    """Keep the loop busy in a callback of a socket, as a WSGI app can: the client says this, and then its time is over."""
    running, over = site.running, threading.Event()
    server: Any = running.server
    here, there = socket.socketpair()

    def busy() -> None:
        running.loop.remove_reader(here.fileno())
        now = time.monotonic()
        for each in server._connections:
            each.deadline = now
        past = now + 1.1  # the next tick has become due, too
        client.send(said)
        wait_until(lambda: time.monotonic() > past, what="the end of the client's time")
        over.set()

    with here, there:
        running.call(lambda: running.loop.add_reader(here.fileno(), busy))
        there.send(b".")
        assert over.wait(30)


def assert_answered(client: Client, body: bytes = b"hello\n") -> None:
    response = client.recv()
    assert response is not None
    assert (response.status, response.body) == (200, body)


def test_the_next_request_on_an_idle_connection_is_answered(serve: Serve, interface: str, loop: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop, keepalive_timeout=60.0)
    client = site.client()
    assert client.get() is not None
    site.running.server.idle_timeout = 1.0  # from the next answer on: before that a busy machine may take as long
    hold_up(site, client, GET)
    assert_answered(client)
    assert client.closed()  # idle again, and its time-out holds as before


def test_so_it_is_over_tls(serve: Serve, interface: str, loop: str, certificate: tuple[str, str]) -> None:
    context = tls.context(*certificate, None)
    site = serve(getattr(hello, interface), interface, loop=loop, context=context, keepalive_timeout=60.0)
    client = site.client(context=ssl.create_default_context(cafile=certificate[0]))
    assert client.get() is not None
    site.running.server.idle_timeout = 1.0
    hold_up(site, client, GET)
    assert_answered(client)
    assert client.closed()


def test_the_first_request_of_a_connection_is_answered(serve: Serve, interface: str, loop: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    client = connect(site, b"")
    hold_up(site, client, GET)
    assert_answered(client)


def test_the_rest_of_a_head_is_read(serve: Serve, interface: str, loop: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    client = connect(site, GET[:20])
    hold_up(site, client, GET[20:])
    assert_answered(client)


def test_a_head_that_is_still_not_whole_is_refused(serve: Serve, interface: str, loop: str) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop)
    client = connect(site, GET[:20])
    hold_up(site, client, GET[20:25])
    response = client.recv()
    assert response is not None
    assert response.status == 408


def test_the_rest_of_a_body_is_read(serve: Serve, interface: str, loop: str) -> None:
    site = serve(getattr(echo, interface), interface, loop=loop)
    client = connect(site, b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n01234")
    hold_up(site, client, b"56789")
    response = client.recv()
    assert response is not None
    assert response.status == 200
    assert b"0123456789" in response.body

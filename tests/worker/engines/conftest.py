"""Servers for the tests of this folder: every combination of loop and interface, closed at the end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, HttpConfig
from pyworker.record import replace
from tests.support.certificates import make_certificate
from tests.support.engine import Running, listener, running
from tests.support.rawhttp import Client

Serve = Callable[..., "Site"]

MODES = [  # (loop, threads) of a WSGI app
    pytest.param("asyncio", 1, id="asyncio"),
    pytest.param("uvloop", 1, id="uvloop"),
    pytest.param("uvloop", 4, id="threads"),
]
ALL_MODES = [
    pytest.param("asgi", "asyncio", 1, id="asgi-asyncio"),
    pytest.param("asgi", "uvloop", 1, id="asgi-uvloop"),
    pytest.param("wsgi", "asyncio", 1, id="wsgi-asyncio"),
    pytest.param("wsgi", "uvloop", 1, id="wsgi-uvloop"),
    pytest.param("wsgi", "uvloop", 2, id="wsgi-threads"),
]


class Site:
    """A running server and its listener."""

    def __init__(self, running: Running, sock: socket.socket) -> None:
        self.running = running
        self.address = sock.getsockname()
        self.family = sock.family
        self.clients: list[Client] = []

    def client(self, **options: Any) -> Client:
        made = Client(self.address, family=self.family, **options)
        self.clients.append(made)
        return made

    def clients_that_said(self, *said: bytes) -> list[Client]:
        """Clients that have said this when the server first sees them: it is done in its loop. A busy machine takes nothing of their time."""
        return self.running.call(lambda: [self.client().send(each) for each in said])  # type: ignore[no-any-return]

    def end(self) -> None:
        """End it, before what it printed is read: pytest loses and mixes up what is written while it reads."""
        for client in self.clients:
            client.close()
        self.running.begin_drain(10)
        self.running.finish()

    @property
    def row(self) -> Any:
        return self.running.row


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def start(
            application: Any, interface: str = "asgi", *, loop: str = "asyncio", context: Any = None, family: int = socket.AF_INET,
            address: Any = None, threads: int = 1, limits: Any = None, **http: Any,
        ) -> Site:  # fmt: skip
            app = AppConfig(name="test", threads=threads, http=replace(HttpConfig(), **http))
            if limits is not None:
                app = replace(app, limits=limits)
            sock = stack.enter_context(listener(family, address))
            made = stack.enter_context(running(application, interface, loop=loop, context=context, app=app))
            made.listen(sock)
            site = Site(made, sock)
            stack.callback(lambda: [client.close() for client in site.clients])
            return site

        yield start


@pytest.fixture
def lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has its last answer is read on for long: on a busy machine what it sends then comes late."""
    monkeypatch.setattr("pyworker.worker.engines.connection.LINGER", 60)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = str(tmp_path_factory.mktemp("tls"))
    make_certificate(folder, "localhost")
    return os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")

"""Serves an app with the worker's HTTP server alone: in a thread for tests, or as a program for measuring.

python -m tests.support.engine tests.support.apps.hello:asgi 8000 [uvloop]
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyworker.config.schema import AppConfig
from pyworker.protocol.scoreboard import FIELD, FIELDS
from pyworker.worker.engines.server import DrainReport, Server
from pyworker.worker.row import Row


class Running:
    """A server in a thread of its own; everything here is called from the test's thread."""

    def __init__(
        self, app: AppConfig, application: Any, interface: Any, loop: str, context: ssl.SSLContext | None
    ) -> None:
        self.row = Row(memoryview(bytearray(FIELD * FIELDS)).cast("q"))  # that nobody else sees
        self.recycled: list[str] = []
        self.report: DrainReport | None = None
        self.error: BaseException | None = None
        self._app, self._application, self._interface, self._context = app, application, interface, context
        self._kind = loop
        self._started = threading.Event()
        self._listeners: list[socket.socket] = []
        self._thread = threading.Thread(target=self._main, name="engine")

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(30)
        if self.error is not None:
            self._thread.join(30)
            raise self.error

    def _main(self) -> None:
        factory: Any = asyncio.new_event_loop
        if self._kind == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:  # noqa: BLE001 - shown by the test's thread
                self.error = error
                self._started.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        self.server = Server(
            self._app, self._application, self._interface, ssl_context=self._context,
        )  # fmt: skip
        await self.server.start(self.row, self.recycled.append)
        self._started.set()
        await self.stop.wait()
        await self.server.drained()
        self.report = await self.server.shut_down()

    def listen(self, listener: socket.socket) -> None:
        """Accept on a listening socket, which stays the caller's."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self.call(lambda: self.loop.add_reader(listener.fileno(), self._accept, listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self.server.serve(connection, listener.family == socket.AF_UNIX, None, True)

    def call(self, function: Any) -> Any:
        """Run a function in the loop and return what it returned."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            try:
                result.append(function())
            finally:
                done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(30)
        return result[0]

    def unlisten(self) -> None:
        """Stop accepting."""
        for listener in self._listeners:
            self.call(lambda listener=listener: self.loop.remove_reader(listener.fileno()))
        self._listeners.clear()

    def begin_drain(self, timeout: float) -> None:
        self.unlisten()
        self.call(lambda: self.server.begin_drain(timeout))
        self.call(self.stop.set)

    def finish(self, timeout: float = 15) -> DrainReport:
        """Wait for the end of the drain."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the drain does not end"
        if self.error is not None:
            raise self.error
        assert self.report is not None
        return self.report


@contextmanager
def running(
    application: Any,
    interface: str,
    *,
    loop: str = "asyncio",
    context: ssl.SSLContext | None = None,
    app: AppConfig | None = None,
) -> Iterator[Running]:
    """Run a server for an app; at the end it is drained at once."""
    made = Running(app or AppConfig(name="test"), application, interface, loop, context)
    made.start()
    try:
        yield made
    finally:
        if made._thread.is_alive():
            if made.report is None and not made.server.draining:
                made.begin_drain(0)
            made.finish()


def listener(family: int = socket.AF_INET, address: Any = None) -> socket.socket:
    """Return a listening socket as the daemon makes it."""
    made = socket.socket(family, socket.SOCK_STREAM)
    if family != socket.AF_UNIX:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address if address is not None else ("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    made.listen(1024)
    return made


def main() -> None:
    target, port, *rest = sys.argv[1:]
    module, _, name = target.partition(":")
    application = getattr(importlib.import_module(module), name)
    kind = rest[0] if rest else "asyncio"
    interface = "wsgi" if "wsgi" in name else "asgi"
    threads = int(rest[1]) if len(rest) > 1 else 1
    with running(application, interface, loop=kind, app=AppConfig(name="bench", threads=threads)) as made:
        made.listen(listener(address=("127.0.0.1", int(port))))
        made._thread.join()


if __name__ == "__main__":
    main()

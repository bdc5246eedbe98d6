"""A daemon's control socket with made-up answers: a real Unix socket, real messages, strictly decoded requests."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from pyworker.protocol import wire
from pyworker.protocol.control import Call, Progress, Refused, Reply, Request

CLOSE = object()  # drop the connection here
HANG = object()  # say nothing more until the client has gone

Handler = Callable[[Any], Iterable[Any]]


class FakeControl:
    """Answers each request type by its handler, which yields Progress, Reply, Refused, raw bytes, CLOSE or HANG.

    A context manager; `requests` holds what was asked, `errors` what did not decode (checked when leaving).
    """

    def __init__(self, home: str, handlers: dict[str, Handler]) -> None:
        self.home = home
        self.handlers = handlers
        self.requests: list[Any] = []
        self.errors: list[str] = []
        self.gone = threading.Event()  # a client left in a HANG, or before it had been told all
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        os.makedirs(self.home, mode=0o700, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        dirfd = os.open(self.home, os.O_RDONLY)
        self._listener.bind(f"/proc/self/fd/{dirfd}/control.sock")
        os.close(dirfd)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, name="fake-control")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        os.unlink(os.path.join(self.home, "control.sock"))
        assert self.errors == []

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), name="fake-control-connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except (BrokenPipeError, ConnectionResetError):
            self.gone.set()

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"\n"):
            chunk = connection.recv(65536)
            if not chunk:
                return  # somebody looked whether a daemon is there
            data += chunk
        try:
            call = wire.decode(Call, data, limit=wire.MAX_REQUEST)
            request = wire.decode(Request, json.dumps(call.request).encode(), limit=wire.MAX_REQUEST)
        except wire.WireError as error:
            self.errors.append(str(error))
            return
        self.requests.append(request)
        for answer in self.handlers[call.request["type"]](request):
            if answer is CLOSE:
                return
            if answer is HANG:
                while connection.recv(1):
                    pass
                self.gone.set()
                return
            connection.sendall(answer if isinstance(answer, bytes) else wire.encode(answer) + b"\n")


def replies(body: dict[str, Any], ok: bool = True) -> Handler:
    """Return a handler that answers with this body."""
    return lambda _request: [Reply(ok, body)]


def refuses(code: str, exit: int, message: str, **more: Any) -> Handler:
    """Return a handler that refuses."""
    return lambda _request: [Refused(code, exit, message, **more)]


_seq = iter(range(1, 10**9))


def event(app: str, worker: int | None, type: str, time: str = "2026-11-23T14:02:31.104Z", **data: Any) -> Progress:
    """Return a progress line; its data are checked against the declared keys."""
    from pyworker.protocol.events import TYPES

    if "by" in TYPES[type]:
        data = {"by": "the daemon", **data}
    assert set(data) == set(TYPES[type]), (type, sorted(data), TYPES[type])
    value = {"v": 1, "time": time, "seq": next(_seq), "app": app, "worker": worker, "type": type, "data": data}
    return Progress(value)

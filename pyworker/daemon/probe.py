"""Daemon: the probe endpoint of a foreground pyworker: /livez, /readyz, /readyz/APP, /metrics. Plain HTTP/1, GET and HEAD.

For kubelets and scrapers: short requests, one answer, closed. At most so many at a time and so long; who says nonsense
is dropped. The listener is in the guardian's store, so that a killed daemon refuses no probe.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyworker.config.address import parse_bind
from pyworker.daemon import listener
from pyworker.daemon.loop import READ, WRITE, Loop, Timer
from pyworker.errors import WANTING
from pyworker.protocol.inherited import PROBE
from pyworker.protocol.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from pyworker.daemon.fdstore import FdStore

MAX_CONNECTIONS = 64
MAX_REQUEST = 8192
PATIENCE = 5.0  # seconds for a request and its answer
_PAUSE = 0.1  # seconds without accepting when we are out of fds
_WORDS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Probe:
    """Answers on one address. `ready(app)` returns whether, and a text; `metrics()` the text of all metrics."""

    def __init__(
        self,
        loop: Loop,
        store: FdStore,
        address: str,
        ready: Callable[[str], tuple[bool, str]],
        metrics: Callable[[], str],
    ) -> None:
        self._loop = loop
        self._ready = ready
        self._metrics = metrics
        self._connections: dict[int, _Connection] = {}
        fd = store.get(PROBE)
        if fd is None:
            self._listener = open_listener(address)
            store.put(PROBE, os.dup(self._listener.fileno()))
        else:
            self._listener = socket.socket(fileno=os.dup(fd))
        self._listener.setblocking(False)
        loop.add(self._listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        for _turn in range(16):
            try:
                sock, _peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in WANTING:  # it stays readable, and the loop would spin on it
                    self._loop.modify(self._listener.fileno(), 0)
                    self._loop.call_later(_PAUSE, self._resume)
                    return
                continue
            if len(self._connections) >= MAX_CONNECTIONS:  # the oldest says nothing: a request is answered at once
                next(iter(self._connections.values())).close()
            sock.setblocking(False)
            self._connections[sock.fileno()] = _Connection(self._loop, sock, self.answer, self._connections)

    def _resume(self) -> None:
        self._loop.modify(self._listener.fileno(), READ)

    def answer(self, method: str, path: str) -> tuple[int, str, str]:
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", "GET or HEAD\n"
        path = path.partition("?")[0]
        if path == "/livez":
            return 200, "text/plain", "ok\n"
        if path == "/readyz" or path.startswith("/readyz/"):
            good, text = self._ready(path.removeprefix("/readyz").strip("/"))
            return (200 if good else 503), "text/plain", text
        if path == "/metrics":
            return 200, CONTENT_TYPE, self._metrics()
        return 404, "text/plain", "/livez /readyz /readyz/APP /metrics\n"


class _Connection:
    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        answer: Callable[[str, str], tuple[int, str, str]],
        connections: dict[int, _Connection],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._answer = answer
        self._connections = connections
        self._read = b""
        self._unsent = b""
        self._timer: Timer = loop.call_later(PATIENCE, self.close)
        loop.add(sock.fileno(), READ, self._on_ready)

    def _on_ready(self, _: int) -> None:
        try:
            if self._unsent:
                self._send()
                return
            data = self._sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._read += data
        if not data or len(self._read) > MAX_REQUEST:
            self.close()
        elif b"\r\n\r\n" in self._read or b"\n\n" in self._read:
            self._respond()

    def _respond(self) -> None:
        words = self._read.partition(b"\n")[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            status, kind, body = 400, "text/plain", "not HTTP/1\n"
        else:
            status, kind, body = self._answer(words[0], words[1])
        content = body.encode()
        head = (
            f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self._unsent = head.encode() + (b"" if words[:1] == ["HEAD"] else content)
        self._loop.modify(self._sock.fileno(), WRITE)
        try:
            self._send()
        except OSError:
            self.close()

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self.close()

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._timer.cancel()
        self._loop.remove(self._sock.fileno())
        self._connections.pop(self._sock.fileno(), None)
        self._sock.close()


def open_listener(address: str) -> socket.socket:
    """Listen on the probe's address; raises OSError, or ListenFailed for a Unix socket's."""
    where = parse_bind(address)
    if where.family == "unix":  # one that was left behind is in its way otherwise
        return listener.open_listener(where, backlog=128, mode=0o600)
    sock = socket.socket(socket.AF_INET if where.family == "inet" else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((where.host, where.port))
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock

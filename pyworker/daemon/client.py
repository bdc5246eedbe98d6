"""Daemon: one client of the control socket, from its first byte to its last.

One request line in, Progress lines and one final line out, then closed. Nothing here waits for the client: what it
does not read is kept up to a limit, then the client is dropped. It knows no request; the server decides what a line means.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

from pyworker.daemon.loop import READ, WRITE, Loop, Timer
from pyworker.errors import WANTING
from pyworker.protocol.control import Answer, Progress, Refused, Reply, refusal
from pyworker.protocol.wire import MAX_REQUEST, encode

REQUEST_TIMEOUT = 10.0  # seconds from the connection to a whole request
FAREWELL_TIMEOUT = 10.0  # seconds in which the final line must be taken
RETRY = 0.05  # seconds until a send that there was no memory for is tried again
MAX_PENDING = 4 * 1024 * 1024  # bytes of progress a client may leave unread; the final line has a deadline instead
_CHUNK = 64 * 1024  # read from one client in one turn of the loop


class Client:
    """Somebody who asked. `gone` is True once nothing said here can arrive any more."""

    def __init__(
        self, loop: Loop, sock: socket.socket, pid: int, uid: int, on_line: Callable[[Client, bytes], None]
    ) -> None:
        self.pid = pid  # by the kernel's word
        self.uid = uid
        self.gone = False
        self.has_asked = False
        self._answered = False
        self._loop = loop
        self._socket = sock
        self._on_line = on_line
        self._on_gone: list[Callable[[], None]] = []
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._reading = True
        self._writes_at: Timer | None = None
        self._timer: Timer = loop.call_later(REQUEST_TIMEOUT, self._too_slow)
        loop.add(sock.fileno(), READ, self._on_events)

    # ---- answering ---------------------------------------------------------------------------------
    def progress(self, event: dict[str, Any]) -> None:
        """Send an event that belongs to the request; nothing happens when the client is gone or answered."""
        self._send(Progress(event))
        if len(self._outgoing) > MAX_PENDING:
            self.close()

    def reply(self, ok: bool, body: dict[str, Any]) -> None:
        """End the request: it was carried out. Only the first of reply and refuse counts."""
        self._finish(Reply(ok, body))

    def refuse(self, refused: Refused) -> None:
        """End the request: it was not carried out."""
        self._finish(refused)

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call back, once and not from inside another call, when the client has its answer or has left."""
        if self.gone:
            self._loop.call_soon(callback)
        else:
            self._on_gone.append(callback)

    def close(self) -> None:
        """Drop the client at once; what it has not read yet is lost."""
        if self.gone:
            return
        self.gone = True
        self._timer.cancel()
        self._loop.remove(self._socket.fileno())
        self._socket.close()
        self._incoming.clear()
        self._outgoing.clear()
        for callback in self._on_gone:
            self._loop.call_soon(callback)
        self._on_gone.clear()

    # ---- reading -----------------------------------------------------------------------------------
    def read(self) -> None:
        """Take what has arrived, at most one chunk; the server calls it too before it drops an idle client."""
        if self.gone or not self._reading:
            return
        try:
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            # A client may close its half only and wait for the answer; one that left is reported by EPOLLHUP.
            self._reading = False
            if self.has_asked:
                self._update_mask()
            else:
                self.close()
            return
        if self.has_asked:
            return  # one request a connection; what follows it is read and thrown away
        searched = len(self._incoming)
        self._incoming += data
        end = self._incoming.find(b"\n", searched)
        if end < 0 and len(self._incoming) <= MAX_REQUEST:
            return
        line = bytes(self._incoming) if end < 0 else bytes(self._incoming[:end])
        self._incoming.clear()
        self.has_asked = True
        self._timer.cancel()
        self._on_line(self, line)  # a line that is too long is the server's to refuse, like any other bad one

    def _on_events(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & select.EPOLLIN:
            self.read()
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self.close()

    def _too_slow(self) -> None:
        if not self.has_asked:
            self.has_asked = True
            message = f"no whole request within {REQUEST_TIMEOUT:g} s"
            self.refuse(Refused("usage", 2, message, "send one line of JSON, ended by a newline"))

    # ---- writing -----------------------------------------------------------------------------------
    def _send(self, answer: Answer) -> None:
        if self.gone or self._answered:
            return
        self._outgoing += encode(answer) + b"\n"
        self._flush()

    def _finish(self, answer: Reply | Refused) -> None:
        if self.gone or self._answered:
            return
        self._send(answer)
        self._answered = True
        self._timer.cancel()
        if self._outgoing:
            self._timer = self._loop.call_later(FAREWELL_TIMEOUT, self.close)
        else:
            self.close()

    def _flush(self) -> None:
        if self.gone:
            return
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing, socket.MSG_NOSIGNAL)
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in WANTING:  # of memory: it goes by itself, and the socket is writable all the time
                self._writes_at = self._writes_at or self._loop.call_later(RETRY, self._write_again)
            else:
                self.close()
                return
        if self._answered and not self._outgoing:
            self.close()
        else:
            self._update_mask()

    def _write_again(self) -> None:
        self._writes_at = None
        self._flush()

    def _update_mask(self) -> None:
        mask = (READ if self._reading else 0) | (WRITE if self._outgoing and not self._writes_at else 0)
        self._loop.modify(self._socket.fileno(), mask)


def failed_at_this(error: Exception) -> Refused:
    """Return what a client is told whose request met a bug of ours."""
    message = f"the daemon failed at this request: {type(error).__name__}: {error}"
    hint = "this is a bug of pyworker; the apps are not affected. Please report it with logs/pyworker.log"
    return refusal("failed", message, hint)

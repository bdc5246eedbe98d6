"""Worker: its end of the `ctl` channel. Never blocks on a daemon that is away; it owns the socket.

The daemon's side is daemon/; the messages are protocol/worker.py.
"""

from __future__ import annotations

import _thread  # threading has work to do after each fork, and there is no thread yet where launchers fork
import os
import select
import socket
from collections import deque
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from pyworker.errors import is_raised_by_program
from pyworker.protocol import wire
from pyworker.protocol.worker import MAX_WORKER_MESSAGE, FromWorker, ToWorker
from pyworker.unix.fds import close_all, recv_packet, send_into
from pyworker.unix.ready import ready
from pyworker.worker.say import say

_MOST_TEXT = 20 * 1024  # bytes, as JSON
_MAX_PENDING = 64  # messages kept for a daemon that does not read; a worker says a handful in its life


class Received(NamedTuple):
    """A message and the fd that rode along (-1 = none). The receiver owns the fd."""

    message: ToWorker
    fd: int


class Closed:
    """The other end is gone: daemon and guardian both."""


class Channel:
    """Send and receive messages; `receive` returns None when nothing is there."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._inode = os.fstat(sock.fileno()).st_ino
        self._pending: deque[tuple[bytes, list[int]]] = deque(maxlen=_MAX_PENDING)  # see send_into
        # a script says things from its own thread and from ours, and the handler of a signal in the middle of that
        self._sending = _thread.RLock()
        self._flushing = self._again = False

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def is_open(self) -> bool:
        """False when the program has closed it by its number, which another file of its own may have by now."""
        try:
            return os.fstat(self.sock.fileno()).st_ino == self._inode
        except OSError as error:
            if is_raised_by_program(error):
                raise
            return False

    def send(self, message: FromWorker) -> None:
        """Send, or keep for `flush` when the daemon does not read now. A channel that is closed swallows it."""
        self._pending.append((wire.encode(message), []))
        self.flush()

    def flush(self) -> None:
        """Send what is kept, as far as the daemon takes it and there is memory for it now."""
        with self._sending:
            self._again = True
            # in the handler of a signal, which came in the middle of it: there it goes on
            while self._again and not self._flushing:
                self._again, self._flushing = False, True
                try:
                    self._write()
                finally:
                    self._flushing = False

    def _write(self) -> None:
        while self._pending:
            data, gone = self._pending[0]
            try:
                is_open = self.is_open
                if is_open and not gone:  # gone: the handler of a signal has raised after it had
                    send_into(gone, self.sock, data)
            except OSError as error:
                if is_raised_by_program(error):
                    raise
                is_open = False
            if not is_open:
                self._pending.clear()  # the peer is gone: receive() says so
            elif gone:
                self._pending.popleft()
            else:
                return

    def receive(self) -> Received | Closed | None:
        """Return the next message, Closed at the end, None when there is none now.

        What is not a message of the set (a daemon of another version) is reported on stderr and skipped.
        """
        while self.is_open:
            try:
                packet = recv_packet(self.sock, MAX_WORKER_MESSAGE, 4)
            except OSError as error:
                if is_raised_by_program(error):
                    raise
                return Closed()
            if packet is None:
                return None
            if not packet.data and not packet.fds:
                return Closed()
            fd = packet.fds.pop(0) if packet.fds else -1
            close_all(packet.fds)
            try:
                if packet.truncated:
                    raise wire.WireError("it came cut; has this worker too many open files?")
                return Received(wire.decode(ToWorker, packet.data, limit=MAX_WORKER_MESSAGE), fd)
            except wire.WireError as error:
                close_all([fd])
                say(f"ignored a message of the daemon: {error}")
        return Closed()

    def wait(self) -> Received | Closed:
        """Block until there is a message. Only for a worker that has nothing else to do."""
        while True:
            found = self.receive()
            if found is not None:
                return found
            self.flush()
            ready(self.sock.fileno(), select.POLLIN, 1.0 if self._pending else None)

    def close(self) -> None:
        self.sock.close()


def clip(text: str) -> str:
    """Return the end of a text (a traceback says what matters last) that surely fits a message."""
    text = text.encode("utf-8", "backslashreplace").decode()
    end = text[-_MOST_TEXT:]
    while len(encode_basestring_ascii(end)) > _MOST_TEXT:  # it may need twelve bytes for a character
        end = end[len(end) // 4 + 1 :]
    return end if len(end) == len(text) else f"…{end}"

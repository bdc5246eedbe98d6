"""Worker: a connection before the event loop knows of it: what has arrived with it is answered without the loop's help.

Most new connections have their request in the kernel when they are accepted, and many are closed after one answer. For
those, the loop would be a third of the cost. So `Early` stands where the loop's transport would, collects what is
written and gives it to the kernel at once; what has to wait is for the loop. Nothing of it is left once that has the
connection.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection

FIRST_READ = 64 * 1024
HIGH_WATER = 64 * 1024  # bytes that wait for the loop's transport before the app has to wait
_NOW = socket.MSG_DONTWAIT  # the descriptor need not be non-blocking yet: the loop makes it so
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_SEND_LAST = _SEND | socket.MSG_MORE


def first_read(sock: socket.SocketType) -> bytes | None:
    """Return what is there already, b"" at the client's end, None when there is nothing yet. Raises OSError."""
    try:
        return sock.recv(FIRST_READ, _NOW)
    except (BlockingIOError, InterruptedError):
        return None


class Early:
    """A transport as far as `Connection` asks for one; `hand_over` brings the loop's, which then takes its place."""

    # the class's, as most connections are answered and closed without a change
    over = False  # closed, and the loop need never hear of it
    _unsent = b""
    _closing = _aborted = _eof = False
    _handed = False  # the descriptor is the loop's, whose transport is about to come

    def __init__(self, sock: socket.SocketType, connection: Connection) -> None:
        self.sock = sock
        self._connection = connection

    def write(self, data: bytes) -> None:
        """Keep it until the app's step is over, as uvloop does: the parts of an answer leave together."""
        if self._closing:
            return
        self._unsent += data
        if len(self._unsent) > HIGH_WATER and not self._connection.write_paused:
            self._connection.pause_writing()

    def flush(self) -> None:
        """Write what the kernel takes now, and close if that was all.

        The last bytes and the end of the connection leave in one packet. It is the shutdown that sends it, not the close:
        that would destroy the answer of a client that has sent more than was read.
        """
        if self._unsent:
            closing = self._closing
            data, self._unsent = self._unsent, b""  # first: where a signal's handler has raised, nothing is sent twice
            try:
                sent = self.sock.send(data, _SEND_LAST if closing else _SEND)
                if closing and sent == len(data):
                    self.sock.shutdown(socket.SHUT_WR)
            except (BlockingIOError, InterruptedError):
                self._unsent = data
                return
            except OSError:  # the client has left
                self.abort()
                return
            self._unsent = data[sent:]
        if self._closing and not self._unsent:
            self._end()

    def close(self) -> None:
        if self.is_closing():
            return
        self._closing = True
        if not self._handed:
            self.flush()

    def abort(self) -> None:
        self._aborted = True
        self._unsent = b""
        if not self._handed:
            self._end()

    def _end(self) -> None:
        if not self.over:
            self._closing = self.over = True
            close_socket(self.sock)
            del self._connection  # which refers to this: they would stay until a garbage collection

    def is_closing(self) -> bool:
        return self._closing or self._aborted

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write_eof(self) -> None:
        self._eof = True

    def pause_reading(self) -> None:
        """It has read all that it will."""

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        """Return the socket; there is no TLS on it, and nobody asks for more."""
        return self.sock if name == "socket" else None

    def begin_hand_over(self) -> socket.SocketType:
        """Return the connection, which is the loop's from here on: what is written now waits for its transport."""
        self._handed = True
        return self.sock

    def hand_over(self, transport: Any) -> None:
        """Do with the loop's transport what could not be done yet."""
        if self._aborted:
            transport.abort()
            return
        connection = self._connection
        paused = connection.write_paused
        if paused:
            connection.write_paused = False
        if self._unsent:
            transport.write(self._unsent)  # which may pause it again
        if paused and not connection.write_paused:
            connection.resume_writing()
        if self._closing:
            transport.close()
        elif self._eof:
            try:
                transport.write_eof()
            except OSError:  # as in Connection.close
                transport.abort()


def close_socket(sock: socket.SocketType) -> None:
    """Close what no transport has taken; one that was taken is not ours any more."""
    fd = sock.detach()
    if fd >= 0:
        os.close(fd)

"""Worker: who takes nothing of what was written to him would hold his answer, its memory and its thread for ever.

A slow client is none of those: what it has acknowledged is asked of the kernel, so that not one byte counts as nothing.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from typing import TYPE_CHECKING, Any

from pyworker.unix.fds import Socket
from pyworker.unix.ready import ready

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection
    from pyworker.worker.engines.websocket import WebSocket

SEND_STALL = 60.0  # seconds without an acknowledged byte, while some wait
LOOKS = 4  # in that time; each passes over all connections
_BYTES_ACKED = struct.Struct("=120xQ")  # of struct tcp_info, linux/tcp.h: tcpi_bytes_acked


def bytes_taken(transport: Any) -> int | None:
    """Return how much the client has acknowledged so far, None where nobody counts it (Unix sockets)."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return None  # it is closed
    try:
        with Socket(fileno=os.dup(sock.fileno())) as own:
            found: int = _BYTES_ACKED.unpack(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size))[0]
            return found
    except (OSError, struct.error):  # struct.error: a kernel that tells less
        return None


def unsent(transport: Any) -> int:
    """Return how much of what was written still waits for the client.

    With TLS nobody tells what lies between encryption and the kernel. But the kernel's queue is empty then for a moment
    only, if the loop is late, so that its bytes say the same.
    """
    size: int = transport.get_write_buffer_size()
    if not size and transport.get_extra_info("sslcontext") is not None:
        size = _queued(transport, termios.TIOCOUTQ)
    return size


def unread(transport: Any) -> int:
    """Return how much has come that the loop has not read: it may be late, not the client."""
    return _queued(transport, termios.FIONREAD)


def has_left(transport: Any) -> bool:
    """Whether the client will send nothing more, or is gone: the loop does not see that of a connection that it does not read."""
    sock = transport.get_extra_info("socket")
    try:
        return ready(sock.fileno(), select.POLLRDHUP) != 0
    except (AttributeError, OSError, ValueError):  # it is closed
        return False


def _queued(transport: Any, which: int) -> int:
    sock = transport.get_extra_info("socket")
    size = array.array("i", [0])
    with contextlib.suppress(OSError, ValueError):  # it is closed
        if sock is not None:
            fcntl.ioctl(sock.fileno(), which, size)
    return size[0]


class Stall:
    """Since when one connection stands still."""

    __slots__ = ("since", "taken")

    def __init__(self, now: float, taken: int) -> None:
        self.since = now
        self.taken = taken

    def is_over(self, now: float, taken: int) -> bool:
        """Whether the client has had its time. Anything that it has taken begins another one."""
        if taken != self.taken:
            self.since, self.taken = now, taken
        return now - self.since >= SEND_STALL


def look(connection: Connection | WebSocket, now: float) -> None:
    """Cut a client that takes nothing of what waits for it."""
    transport = connection.transport
    if transport is None or not unsent(transport):
        connection.stall = None
        return
    taken = bytes_taken(transport)
    if taken is None:
        return
    if connection.stall is None:
        connection.stall = Stall(now, taken)
    elif connection.stall.is_over(now, taken):
        connection.abort()

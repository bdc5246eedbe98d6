"""Dispatcher: the inbox of one slot. What is in it survives the worker that did not read it, and this process too."""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
import termios

from pyworker.protocol.dispatcher import HAND_OVER, LAST
from pyworker.unix.fds import recv_packet

_INT = struct.Struct("i")
_FULL = (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_RIGHTS = socket.SCM_RIGHTS
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Inbox:
    """Both ends; owns them. A packet of one byte is one connection, so the kernel's byte count counts connections."""

    def __init__(self, slot: int, writer: socket.socket, reader: socket.socket) -> None:
        self.slot = slot
        writer.setblocking(False)
        reader.setblocking(False)
        self._writer = writer
        self._reader = reader
        self._sendmsg = writer.sendmsg
        self._number = array.array("i", [0])
        self._ancillary = [(socket.SOL_SOCKET, _RIGHTS, self._number)]
        self._data = [HAND_OVER]

    def put(self, fd: int) -> bool:
        """Hand a connection over (the fd stays the caller's); False when nothing more fits now."""
        self._number[0] = fd
        try:
            self._sendmsg(self._data, self._ancillary, _FLAGS)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        return True

    def put_last(self) -> None:
        """Tell whoever reads that nothing follows."""
        try:
            self._writer.send(LAST, _FLAGS)
        except OSError:
            return  # full, or nobody is there: the worker has a deadline of its own

    def queued(self) -> int:
        """Return how many connections nobody has taken yet."""
        count: int = _INT.unpack(fcntl.ioctl(self._reader.fileno(), termios.FIONREAD, b"\0" * 4))[0]
        return count

    def take_back(self) -> int | None:
        """Return a connection that nobody has taken, None when there is none."""
        while True:
            packet = recv_packet(self._reader, 16, 1)
            if packet is None or (not packet.data and not packet.fds):
                return None
            if packet.fds:
                return packet.fds[0]

    def close(self) -> None:
        self._writer.close()
        self._reader.close()

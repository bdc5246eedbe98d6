"""A real dispatcher process, with the daemon and the workers played by the test."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any

from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import SIZE, F, row_slice
from pyworker.protocol.wire import MAX_MESSAGE, decode, encode
from pyworker.unix import fds as unix_fds
from pyworker.unix import process
from tests.support.wait import wait_until

LONG = 20.0


class Slot:
    """An inbox and its worker. Only what the test takes is taken."""

    def __init__(self, board: memoryview, slot: int, row: int) -> None:
        self.slot = slot
        self.reader, self.writer = unix_fds.socketpair()
        self.cells = board[row_slice(row)]
        self.row = row
        self.open: list[socket.socket] = []

    def take(self) -> bool:
        """Take one connection as a worker does: False when there is none, or only the word that none follows."""
        packet = unix_fds.recv_packet(self.reader, 16, 1)
        if packet is None or not packet.fds:
            return False
        self.open.append(socket.socket(fileno=packet.fds[0]))
        self.cells[F.OPEN] += 1
        self.cells[F.ACCEPTED] += 1
        return True

    def take_all(self) -> int:
        count = 0
        while self.take():
            count += 1
        return count

    def end(self, count: int) -> None:
        """Let connections end."""
        for _ in range(count):
            self.open.pop().close()
            self.cells[F.OPEN] -= 1

    def close(self) -> None:
        for each in (*self.open, self.reader, self.writer):
            each.close()


class Rig:
    """`tell` speaks to the dispatcher, `heard` is what it said."""

    def __init__(self) -> None:
        self._board_fd = unix_fds.memfd_fixed("board", SIZE)
        self._map = mmap.mmap(self._board_fd, SIZE)
        self.board = memoryview(self._map).cast("Q")
        self.channel, self._theirs = unix_fds.socketpair()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.slots: list[Slot] = []
        self.clients: list[socket.socket] = []
        self.heard: list[Any] = []
        self.pid = 0
        self.begin()

    # ---- the process ---------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start a dispatcher; the channel is the same for all of them, as in the daemon's store."""
        spec = unix_fds.memfd("spec", encode(d.DispatcherSpec("test", None, None, ())))
        null = os.open(os.devnull, os.O_RDWR)
        table = {
            0: null, 1: 2, 2: 2, d.CHANNEL_FD: self._theirs.fileno(), d.BOARD_FD: self._board_fd, d.SPEC_FD: spec,
        }  # fmt: skip
        argv = [sys.executable, "-I", "-m", "pyworker.dispatcher"]
        self.pid = process.spawn(argv, {"PATH": os.environ["PATH"]}, table)
        unix_fds.close_all([spec, null])
        self.hear(d.Up)

    def kill(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        self.pid = 0

    def kill_while(self, is_so: Callable[[], bool]) -> None:
        """Kill it at a moment when this is so: looked at while it is stopped, so that it is still so when it is killed."""

        def stopped() -> bool:
            os.kill(self.pid, signal.SIGSTOP)
            os.waitpid(self.pid, os.WUNTRACED)
            if is_so():
                return True
            os.kill(self.pid, signal.SIGCONT)
            return False

        wait_until(stopped, LONG, "the moment to kill it at")
        self.kill()

    def wait_end(self) -> int:
        ended = wait_until(lambda: os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG), LONG, "its end")
        assert ended is not None
        self.pid = 0
        return ended.si_status

    # ---- the daemon ----------------------------------------------------------------------------------------
    def tell(self, message: d.ToDispatcher, *fds: int) -> None:
        assert unix_fds.send_packet(self.channel, encode(message), fds)

    def hear(self, kind: type) -> Any:
        """Wait for a message of this kind and return it."""

        def look() -> Any:
            packet = unix_fds.recv_packet(self.channel, MAX_MESSAGE, 0)
            if packet is not None and packet.data:
                self.heard.append(decode(d.FromDispatcher, packet.data))
            return next((m for m in self.heard if isinstance(m, kind)), None)

        found = wait_until(look, LONG, lambda: f"{kind.__name__}; heard {self.heard}")
        self.heard.remove(found)
        return found

    def listen(self) -> None:
        self.tell(d.Listen(0), self.listener.fileno())

    def add_slots(self, count: int) -> list[Slot]:
        """Give it slots with inboxes and an open worker each; serial = slot."""
        for _ in range(count):
            number = len(self.slots) + 1
            slot = Slot(self.board, number, number)
            self.slots.append(slot)
            self.tell(d.Inbox(number), slot.writer.fileno(), slot.reader.fileno())
            self.tell(d.Open(number, number, slot.row, "inbox"))
        return self.slots

    def settle(self) -> None:
        """Wait until it has done what it was told: an answer comes after all before it."""
        self.tell(d.Ping(1))
        self.hear(d.Pong)

    # ---- clients -------------------------------------------------------------------------------------------
    def connect(self, count: int = 1, text: bytes = b"") -> list[socket.socket]:
        made = []
        for _ in range(count):
            client = socket.create_connection(self.address, timeout=LONG)
            if text:
                client.sendall(text)
            made.append(client)
        self.clients += made
        return made

    def close(self) -> None:
        if self.pid:
            self.kill()
        for each in (*self.clients, *self.slots, self.channel, self._theirs, self.listener):
            each.close()
        for slot in self.slots:
            slot.cells.release()
        self.board.release()
        self._map.close()
        os.close(self._board_fd)


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    made = Rig()
    try:
        yield made
    finally:
        made.close()


def taken(slots: list[Slot], count: int) -> list[int]:
    """Wait until so many connections came in all, and return how many each slot got."""
    got = [0] * len(slots)

    def look() -> bool:
        for at, slot in enumerate(slots):
            got[at] += slot.take_all()
        return sum(got) >= count

    wait_until(look, LONG, f"{count} connections")
    return got


def in_inbox(slot: Slot) -> bool:
    return bool(select.select([slot.reader], [], [], 0)[0])


def queued(slot: Slot) -> int:
    """How many connections nobody has taken: one byte each."""
    count: int = struct.unpack("i", fcntl.ioctl(slot.reader.fileno(), termios.FIONREAD, b"\0" * 4))[0]
    return count

"""The guardian and the logger, as far as a daemon meets them: the store, the ends of processes, pipes read to their end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyworker.protocol import store as s
from pyworker.protocol.inherited import CONTROL
from pyworker.protocol.wire import decode, encode
from tests.simulation import kernel
from tests.simulation.processes import Move

if TYPE_CHECKING:
    from tests.simulation.world import World

_PIPES = ("out", "err", "tout", "terr")


class Guardian:
    def __init__(self, world: World) -> None:
        self._world = world
        self.store: dict[str, int] = {}
        self.channel: socket.socket | None = None
        self.address = world.home + "/control.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen(64)
        self.store[CONTROL] = listener.detach()

    def starts_daemon(self, reason: str) -> socket.socket:
        """Return the daemon's end of a new channel, in which all waits that is kept for it."""
        self.channel, theirs = kernel.socketpair()
        for end in (self.channel, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        names = list(self.store)
        for begin in range(0, len(names), s.BATCH):
            some = names[begin : begin + s.BATCH]
            self._says(s.Restore(tuple(some)), [self.store[name] for name in some])
        self._says(s.RestoreDone(0, reason, kernel.GUARDIAN, "1"))
        self._says(s.LoggerState(kernel.LOGGER, 0, ""))
        for process in self._zombies():
            if process.is_told:
                self._tells(process.pid)
        return theirs

    def loses_daemon(self) -> None:
        """Take what that has still said."""
        assert self.channel is not None
        while self.reads():
            pass
        self.channel.close()
        self.channel = None

    def moves(self) -> Iterator[Move]:
        if self.channel is not None and kernel.is_readable(self.channel):
            yield Move(6, "guardian reads", self.reads)
        for process in self._zombies():
            if not process.is_told:
                yield Move(3, f"guardian finds {process} ended", lambda pid=process.pid: self._tells(pid))  # type: ignore[misc]
        at_end = [name for name, fd in self.store.items() if name.split(".")[0] in _PIPES and kernel.is_readable(fd)]
        if at_end:
            yield Move(2, "logger has read to the end", lambda: self._closes(at_end))

    def reads(self) -> bool:
        """Take one packet; False when there is none."""
        assert self.channel is not None
        packet = kernel.receive(self.channel, 1 << 20, s.BATCH)
        if packet is None or not packet.data:
            return False
        match decode(s.FromDaemon, packet.data):
            case s.Store(names):
                for name, fd in zip(names, packet.fds, strict=True):
                    self._drops(name)
                    self.store[name] = fd
            case s.Remove(names):
                for name in names:
                    self._drops(name)
            case s.Collected(pids):
                for process in self._zombies():
                    process.is_reaped = process.is_told and process.pid in pids
            case s.Ping(number):
                self._says(s.Pong(number))
        return True

    def _zombies(self) -> list:  # type: ignore[type-arg]
        return [p for p in self._world.processes.values() if p.parent == "guardian" and not (p.is_alive or p.is_reaped)]

    def _tells(self, pid: int) -> None:
        process = self._world.processes[pid]
        process.is_told = True
        self._says(s.Exited(pid, process.status.code, process.status.signal, False))

    def _closes(self, names: list[str]) -> None:
        for name in names:
            self._drops(name)
        self._says(s.Closed(tuple(names)))

    def _drops(self, name: str) -> None:
        if name in self.store:
            os.close(self.store.pop(name))

    def _says(self, message: s.ToDaemon, fds: list[int] | tuple[()] = ()) -> None:
        assert self.channel is not None
        try:
            if not kernel.send(self.channel, encode(message), fds):
                self._world.fail("the daemon does not read what the guardian says")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was killed, which is seen in a moment

"""The kernel that the simulated daemon asks: pidfds, signals, credentials, packets, time and the room for descriptors.

A pidfd is the reading end of a pipe that gets a byte when its process ends. Sockets, pipes, memfds and epoll are real.
Nothing is put back: who installs it is a process that was made for one life.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from pyworker import failpoint
from pyworker.daemon import adopt, handlers, lost, spawn
from pyworker.daemon.loop import Loop
from pyworker.protocol.inherited import WorkerId
from pyworker.unix import fds, oom, process, stderr
from pyworker.unix.process import UNKNOWN, ExitStatus
from tests.simulation.processes import Command, Process, Template, born_by

if TYPE_CHECKING:
    from tests.simulation.world import World

GUARDIAN, LOGGER, DAEMON = 5_000_000, 5_000_001, 5_000_002  # their pids
_FOR_DESCRIPTORS = [(os, "dup"), (os, "pipe2"), (os, "memfd_create"), (fds, "socketpair")]
_REAL: dict[str, Callable[..., Any]] = {name: getattr(module, name) for module, name in _FOR_DESCRIPTORS}
# what the world itself uses
dup, socketpair = os.dup, fds.socketpair
receive, send, _peek, _drop = fds.recv_packet, fds.send_packet, fds.peek_packet, fds.drop_packet
_MARK = b"\0pid %010d\0"  # stands before what a process sends: its credentials
_MARK_SIZE = len(_MARK % 0)


def signed(pid: int, data: bytes) -> bytes:
    return _MARK % pid + data


def is_readable(fd: int | socket.socket, mask: int = select.POLLIN) -> bool:
    poll = select.poll()
    poll.register(fd, mask)
    return bool(poll.poll(0))


def _sender_of(packet: fds.Packet | None) -> fds.Packet | None:
    if packet is None or not packet.data.startswith(b"\0pid "):
        return packet
    return packet._replace(data=packet.data[_MARK_SIZE:], pid=int(packet.data[5:15]))


class Kernel:
    """Answers for one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_inode: dict[int, Process] = {}
        self.tells_status = world.rng.random() < 0.5  # as Linux 6.15 does, by PIDFD_GET_INFO

    def install(self) -> None:
        world = self._world
        for module, name in _FOR_DESCRIPTORS:
            setattr(module, name, self._scarce(_REAL[name]))
        for name in ("send_signal", "kill_group", "kill_group_of", "collect", "last_status", "zombie_status", "owner"):
            setattr(process, name, getattr(self, name))
        for module in (process, adopt):
            module.pidfd_pid = self.pidfd_pid
        for module in (process, spawn):
            module.spawn_watched = self.spawn_watched
        process.is_gone = lambda pidfd: not self.process_of(pidfd).is_alive
        process.state = lambda pid: "S"
        process.time_without_cpu = lambda pid: 0.0
        process.sessions_with_others, process.sessions, process.kill_session = set, dict, self.kill_group
        os.pidfd_open, os.getppid, os.getpid = self.pidfd_open, lambda: GUARDIAN, lambda: DAEMON
        os.kill = lambda pid, number: world.processes[pid].signalled(number)
        oom.kills = lambda *_: oom.OomKills(0, -1)
        oom.limits = lambda *_: oom.Limits(None, None, None)
        fds.recv_packet, fds.send_packet = self.recv_packet, self.send_packet
        fds.peek_packet, fds.drop_packet = self.peek_packet, self.drop_packet
        lost.find, lost.end, lost.end_template = self.find_lost, self.end_lost, self.end_lost_template
        handlers.asker = lambda client: "somebody"
        spawn.runtime_zip, spawn.enter_text = lambda: b"", lambda: ""
        failpoint.hit = world.point
        time.time, time.monotonic = lambda: 1_700_000_040.0 + world.now, lambda: world.now
        stderr.write = lambda text: world.say(f"stderr: {text}")
        stderr.say = lambda who, text: stderr.write(text)  # without a time, which no seed decides

    # ---- processes ---------------------------------------------------------------------------------------
    def knows(self, born: Process) -> None:
        self._by_inode[os.fstat(born.pidfd).st_ino] = born

    def process_of(self, pidfd: int) -> Process:
        return self._by_inode[os.fstat(pidfd).st_ino]

    def spawn_watched(self, argv: list[str], env: dict[str, str], table: dict[int, int]) -> tuple[int, int]:
        with self._world.others_turn():
            if self._world.chance("no_process"):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            born = born_by(self._world, argv, table)
            return born.pid, dup(born.pidfd)

    def pidfd_open(self, pid: int, flags: int = 0) -> int:
        found = self._world.processes.get(pid)
        if found is None or found.is_reaped:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return int(self._scarce(dup)(found.pidfd))

    def pidfd_pid(self, pidfd: int) -> int:
        found = self.process_of(pidfd)
        return 0 if found.is_reaped else found.pid

    def owner(self, pid: int) -> int | None:
        found = self._world.processes.get(pid)
        return os.geteuid() if found is not None and not found.is_reaped else None

    def send_signal(self, pidfd: int, number: int) -> bool:
        found = self.process_of(pidfd)
        found.signalled(number)
        return not found.is_reaped

    def kill_group(self, pid: int, number: int) -> None:
        found = self._world.processes[pid]
        if found.is_reaped:
            self._world.fail(f"signal {number} to the group of {found}, whose number may be another's")
        found.signalled(number)

    def kill_group_of(self, pidfd: int, number: int = signal.SIGKILL) -> bool:
        found = self.process_of(pidfd)
        found.signalled(number)
        return found.is_alive

    def collect(self, pidfd: int, *, reap: bool = True) -> ExitStatus | None:
        found = self.process_of(pidfd)
        if found.parent != "daemon" or found.is_reaped:
            return UNKNOWN
        if found.is_alive:
            return None
        found.is_reaped = reap
        return found.status

    def last_status(self, pidfd: int) -> ExitStatus | None:
        found = self.process_of(pidfd)
        return found.status if found.is_reaped and self.tells_status else None

    def zombie_status(self, pid: int, pidfd: int) -> tuple[ExitStatus, int] | None:
        found = self.process_of(pidfd)
        if found.is_alive or found.is_reaped or not found.status.code:  # 0 is not told apart from "not known"
            return None
        parent = {"guardian": GUARDIAN, "daemon": DAEMON}.get(str(found.parent), found.parent)
        return found.status, int(parent)

    def find_lost(self, guardian: int, worker: WorkerId, pipe: int | None) -> int:
        found = [p for p in self._world.alive(Command) if p.parent == "guardian" and p.id == worker and p.is_direct]
        return found[0].pid if found else 0

    def end_lost(self, pid: int, worker: WorkerId) -> bool:
        found = self._world.processes.get(pid)
        is_it = found is not None and found.is_alive and getattr(found, "id", None) == worker
        if is_it and found is not None:
            found.signalled(signal.SIGKILL)
        return is_it

    def end_lost_template(self, guardian: int, pipe: int) -> bool:
        there = os.fstat(pipe).st_ino
        found = [p for p in self._world.alive(Template) if p.parent == "guardian" and p.writes_to == there]
        for each in found:
            each.signalled(signal.SIGKILL)
        return bool(found)

    # ---- packets -----------------------------------------------------------------------------------------
    def recv_packet(self, sock: socket.socket, size: int, max_fds: int) -> fds.Packet | None:
        packet = receive(sock, size + _MARK_SIZE, max_fds)
        if size > 1 and self._world.is_daemons_turn:  # else it drops what it has peeked at
            self._world.point("received")
        return _sender_of(packet)

    def peek_packet(self, sock: socket.socket, size: int) -> fds.Packet | None:
        packet = _peek(sock, size + _MARK_SIZE)
        self._world.point("peeked")
        return _sender_of(packet)

    def drop_packet(self, sock: socket.socket | None) -> None:
        if not self._world.is_dying:
            _drop(sock)

    def send_packet(self, sock: socket.socket, data: bytes, given: tuple[int, ...] | list[int] = ()) -> bool:
        self._world.point("about to send")
        if self._world.chance("full"):
            if self._world.rng.random() < 0.5:
                return False
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        sent = send(sock, data, given)
        self._world.point("sent")
        return sent

    # ---- descriptors -------------------------------------------------------------------------------------
    def _scarce(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **named: object) -> object:
            if self._world.is_daemons_turn and self._world.chance("no_descriptor"):
                self._world.say(f"no descriptor for {real.__name__}")
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(*args, **named)

        return call


class _Epoll:
    """Says what is ready in any order, and not always all of it."""

    def __init__(self, real: select.epoll, loop: SimulatedLoop) -> None:
        self.real, self._loop = real, loop
        self.register, self.unregister, self.modify, self.close = real.register, real.unregister, real.modify, real.close

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        ready = sorted(self.real.poll(0, most))
        world = self._loop.world
        world.rng.shuffle(ready)
        # what is due, or was put off to soon, comes after all that has come: that is promised
        if len(ready) > 1 and world.rng.random() < 0.3 and not self._loop.has_more():
            ready = ready[: world.rng.randrange(1, len(ready))]
        return ready


class SimulatedLoop(Loop):
    """The daemon's own, which never waits; what it reports is a violation."""

    _epoll: Any

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls = 0
        super().__init__(clock=lambda: world.now, report=world.report)
        self._epoll = _Epoll(self._epoll, self)

    def next_timer(self) -> float | None:
        return min((at for at, _, timer in self._timers if timer.callback is not None), default=None)

    def has_more(self) -> bool:
        at = self.next_timer()
        return bool(self._soon) or (at is not None and at <= self.world.now)

    def is_idle(self) -> bool:
        return not self._soon and not self._epoll.real.poll(0, 8)

    def _guarded(self, callback: Callable[[], None], what: str) -> None:
        self.calls += 1
        super()._guarded(callback, what)

    def _replace_epoll(self) -> NoReturn:
        raise AssertionError("an fd was closed before it was removed")

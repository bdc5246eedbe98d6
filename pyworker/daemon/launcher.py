"""Daemon: the process that starts scripts and commands. Made when it is needed, sent away when nothing is due.

What was handed to a launcher that died is given up: its process may be there or not, and two on one channel would be
worse than none. Policy then tries it again like any other worker that died.
"""

from __future__ import annotations

import errno as errnos
import functools
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyworker.daemon.loop import READ, Loop, Timer
from pyworker.policy.pulse import NOTICED
from pyworker.protocol.names import ENV_FAILPOINTS, ENV_SOFT_NOFILE
from pyworker.protocol.template import Launch, Launched
from pyworker.protocol.wire import MAX_MESSAGE, WireError, decode, encode
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

PYTHON = (sys.executable, "-I", "-m", "pyworker.template")
IDLE = 1.0  # seconds after the last launch
HANGS = 30.0  # seconds without an answer: a machine may be busy enough to take 10, at its boot for one
_CHANNEL_FD = 3

Failed = Callable[[int], None]  # is given an errno; 0: nobody knows
Started = Callable[[int], None]  # is given the pid; 0: a process was forked for it, whose Hello says it


def environ() -> dict[str, str]:
    found = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    return found | {name: os.environ[name] for name in (ENV_SOFT_NOFILE, ENV_FAILPOINTS) if name in os.environ}


class _Due(NamedTuple):
    number: int
    data: bytes
    fds: list[int]  # ours, until they are sent
    failed: Failed
    started: Started


class Launcher:
    """One process at most. What does not fit into its channel waits here."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.channel: socket.socket | None = None
        self.pidfd = -1
        self.last_status = process.UNKNOWN  # of the last one that has ended
        self._number = 0
        self._due: deque[_Due] = deque()
        self._sent: dict[int, _Due] = {}
        self._timer: Timer | None = None

    @property
    def is_idle(self) -> bool:
        """Whether all that it was asked for was started or given up: nobody else could tell what runs."""
        return not self._sent and not self._due

    def launch(self, table: dict[int, int], spec_fd: int, failed: Failed, started: Started, *, direct: bool) -> None:
        """Start the process that the spec (at the place `spec_fd` of the table) describes; OSError when it cannot even be tried.

        `table` maps the process's fd numbers to ours, which stay the caller's. `failed` or `started` is called later or never.
        `direct`: it is started directly when that can be done.
        """
        if self.channel is None:
            self._start()
        if not self._sent and not self._due:
            self._look_in(HANGS)
        self._number += 1
        message = Launch(self._number, spec_fd, tuple(table), direct=direct)
        copies: list[int] = []
        try:
            copies.extend(os.dup(fd) for fd in table.values())
        except OSError:
            unix_fds.close_all(copies)
            raise
        self._due.append(_Due(self._number, encode(message), copies, failed, started))
        self._flush()

    def _start(self) -> None:
        ours, theirs = unix_fds.socketpair()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            table = {0: null, 1: 2, 2: 2, _CHANNEL_FD: theirs.fileno()}
            _, self.pidfd = process.spawn_watched([*PYTHON, "--serve", str(_CHANNEL_FD)], environ(), table)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(null)
        self.channel = ours
        self._loop.add(ours.fileno(), READ, lambda _: self._on_message())

    def _flush(self) -> None:
        channel = self.channel
        assert channel is not None
        while self._due:
            due = self._due[0]
            try:
                if not unix_fds.send_packet(channel, due.data, due.fds):
                    break  # its answers come, and then there is room
                self._sent[due.number] = due
            except OSError as error:
                if error.errno == errnos.ETOOMANYREFS and self._sent:
                    break  # it has not taken the last ones yet
                if error.errno == errnos.EPIPE or error.errno == errnos.ECONNRESET:
                    break  # its end is read in a moment, and the rest goes to another one
                self._give_up([due], error.errno or 0)
            self._due.popleft()
            unix_fds.close_all(due.fds)

    def _on_message(self) -> None:
        channel = self.channel
        while channel is not None and channel is self.channel:
            packet = unix_fds.recv_packet(channel, MAX_MESSAGE, 0)
            if packet is None:
                break
            if not packet.data:
                self._ended()
                return
            try:
                message: Launched = decode(Launched, packet.data)
            except WireError:
                self._kill(self.pidfd)
                continue
            due = self._sent.pop(message.number, None)
            if due is not None and message.errno:
                due.failed(message.errno)
            elif due is not None:
                due.started(message.pid)
        if channel is self.channel:
            self._flush()
            self._look_in(HANGS if self._sent or self._due else IDLE)

    def _look_in(self, seconds: float) -> None:
        """Look again after this time without an answer: nothing is due, so it may go, or it hangs."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        if self.channel is None or self._timer is None:
            return
        if self._loop.clock() - self._timer.deadline > NOTICED:
            self._look_in(HANGS)  # we have stood still, and with us perhaps the whole machine: that is no hang
        elif self._sent or self._due:
            self._kill(self.pidfd)  # its end is read like any other
        else:
            self._ended()

    def _ended(self) -> None:
        """It has gone, or leaves as soon as it sees that nobody needs it."""
        channel, self.channel = self.channel, None
        assert channel is not None
        self._loop.remove(channel.fileno())
        channel.close()
        if self._timer is not None:
            self._timer.cancel()
        pidfd, self.pidfd = self.pidfd, -1
        # somebody may have stopped it: it would never see that it is not needed
        kill = self._loop.call_later(HANGS, lambda: self._kill(pidfd))
        self._loop.add(pidfd, READ, lambda _: self._reap(pidfd, kill))
        given_up, self._sent = self._sent, {}
        self._give_up(given_up.values(), 0)
        if not self._due or self.channel is not None:
            return
        try:
            self._start()
        except OSError as error:
            waiting, self._due = self._due, deque()
            for each in waiting:
                unix_fds.close_all(each.fds)
            self._give_up(waiting, error.errno or 0)
            return
        self._look_in(HANGS)
        self._flush()

    def _give_up(self, those: Iterable[_Due], number: int) -> None:
        """Have each of them told by itself, soon: nothing that one does keeps the others from it."""
        for due in those:
            self._loop.call_soon(functools.partial(due.failed, number))

    def _kill(self, pidfd: int) -> None:
        process.send_signal(pidfd, signal.SIGKILL)

    def _reap(self, pidfd: int, kill: Timer) -> None:
        kill.cancel()
        self._loop.remove(pidfd)
        self.last_status = process.collect(pidfd) or process.UNKNOWN
        os.close(pidfd)

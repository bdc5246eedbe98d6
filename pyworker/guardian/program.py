"""Guardian: one of the two programs it keeps alive (daemon, logger), its channel, its pings, its next start.

Does not decide when to start or stop; that is the guardian's loop.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

from pyworker.guardian.outbox import Outbox
from pyworker.guardian.store import FdStore
from pyworker.protocol.store import CHANNEL_FD, MISSED, Leave, Ping
from pyworker.record import record
from pyworker.unix import fds, process
from pyworker.unix.process import ExitStatus

HUNG = "hung"  # why one was killed that gave no sign of life
STARTING = 20.0  # seconds until one that has not said Hello is asked for a sign of life


@record
class Backoff:
    """Seconds until a program that ended is started again: none after a good life, else doubling."""

    good_life: float = 5.0
    first: float = 0.05
    most: float = 5.0

    def delay(self, early_deaths: int) -> float:
        """Return the delay after so many deaths in a row that came before `good_life`."""
        return 0.0 if early_deaths <= 1 else min(self.most, self.first * 2 ** min(early_deaths - 2, 30))


class Program:
    """A program with its end of a channel as fd 3."""

    def __init__(self, name: str, argv: list[str], store: FdStore, backoff: Backoff, reason: str = "boot") -> None:
        self.name = name
        self.reason = reason  # why it is started next
        self.outbox = Outbox(store)
        self.channel: socket.socket | None = None
        self.pid = 0  # 0 = does not run
        self.undying: set[int] = set()  # the pids of those before, which SIGKILL has not ended yet
        self.starts = 0
        self.next_start = 0.0
        self.kill_at: float | None = None
        self.killed_at: float | None = None  # SIGKILL was sent
        self.version = ""  # what it said that it is
        self.leaving = False  # it was asked to make room
        self._argv = argv
        self._backoff = backoff
        self._pidfd = -1
        self._started_at = 0.0
        self._answered_at = 0.0
        self._early_deaths = 0
        self._why_killed = ""
        self._ping = 0
        self._unanswered = 0

    def start(self, now: float, extra_fds: dict[int, int]) -> None:
        """Start it. OSError when the system refuses: nothing has changed."""
        self.channel = self._spawn(extra_fds)
        self.outbox.clear()
        self.starts += 1
        self._started_at = now
        self._why_killed = self.version = ""
        self.leaving = False
        self._unanswered = 0
        self.kill_at = self.killed_at = None

    def say(self, message: Any, *, droppable: bool = False) -> None:
        """Queue a message, if it runs; the next one is told all that is so by then."""
        if self.pid:
            self.outbox.say(message, droppable=droppable)

    def restore(self, names: Iterable[str]) -> None:
        if self.pid:
            self.outbox.restore(names)

    def try_later(self, now: float) -> None:
        """It could not be started."""
        self._schedule(now, early=True)

    @property
    def dies_young(self) -> bool:
        """Whether it has ended early again and again."""
        return self._early_deaths > 2

    @property
    def has_lived(self) -> bool:
        """Whether it has answered later than one would that hangs from its start on."""
        return self._answered_at - self._started_at >= self._backoff.good_life

    def _spawn(self, extra_fds: dict[int, int]) -> socket.socket:
        """Make the process and return its channel, or make nothing at all. Raises OSError."""
        ours, theirs = fds.socketpair()
        try:
            with open(os.devnull, "r+b", buffering=0) as null:
                table = {0: null.fileno(), 1: 1, 2: 2, CHANNEL_FD: theirs.fileno(), **extra_fds}
                self.pid, self._pidfd = process.spawn_watched(self._argv, dict(os.environ), table)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def ended(self, now: float, status: ExitStatus) -> None:
        """Note that the process is gone (its channel was read to the end), and why."""
        self.close_channel()
        os.close(self._pidfd)
        self.pid = 0
        self._pidfd = -1
        self.version = ""  # a signal that comes now is for the next one
        self.kill_at = self.killed_at = None
        self._schedule(now, early=not self.leaving and now - self._started_at < self._backoff.good_life)
        self.reason = self._why_killed or _words(status)

    def leave(self, now: float, patience: float) -> None:
        """Ask it to make room for another one; it is killed when it has not within `patience`."""
        self.leaving = True
        self._why_killed = "upgrade"
        self.kill_at = now + patience
        self.say(Leave())

    def memo(self) -> dict[str, Any]:
        """What the guardian that this process becomes by exec must know of it; its fds go along."""
        channel = -1 if self.channel is None else self.channel.fileno()
        return {
            "pid": self.pid, "pidfd": self._pidfd, "channel": channel,
            "starts": self.starts, "started_at": self._started_at, "version": self.version,
        }  # fmt: skip

    def fds(self) -> list[int]:
        """Return the fds of `memo`."""
        return [fd for fd in (self._pidfd, -1 if self.channel is None else self.channel.fileno()) if fd >= 0]

    def take_over(self, memo: dict[str, Any]) -> None:
        """Go on with the process of a memo: still our child, its channel still open."""
        self.pid, self._pidfd = int(memo["pid"]), int(memo["pidfd"])
        self.starts, self._started_at = int(memo["starts"]), float(memo["started_at"])
        self.version = str(memo["version"])
        self.reason = "upgrade"
        os.set_inheritable(self._pidfd, False)
        if int(memo["channel"]) >= 0:
            self.channel = socket.socket(fileno=int(memo["channel"]))
            self.channel.setblocking(False)
            os.set_inheritable(self.channel.fileno(), False)

    @property
    def is_settled(self) -> bool:
        return bool(self.pid) and not self.leaving and self.version != ""

    def _schedule(self, now: float, *, early: bool) -> None:
        self._early_deaths = self._early_deaths + 1 if early else 0
        self.next_start = now + self._backoff.delay(self._early_deaths)

    def close_channel(self) -> None:
        """Close our end; the other side sees end-of-file."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def signal(self, signum: int) -> None:
        if self.pid:
            process.send_signal(self._pidfd, signum)

    def kill(self, why: str) -> None:
        """SIGKILL; `why` is the reason its successor is told."""
        self._why_killed = why
        self.killed_at = self.killed_at or time.monotonic()
        self.signal(signal.SIGKILL)

    def may_be_asked(self, now: float) -> bool:
        """False while it starts (reading and restoring all that is wanted is no hang), and once it was killed for a hang."""
        return self._why_killed != HUNG and (self.version != "" or now >= self._started_at + STARTING)

    def ping(self) -> bool:
        """Ask for a sign of life; False when too many were not answered.

        Called once a tick of the guardian's own clock: a machine that was frozen as a whole misses nothing.
        """
        if self._unanswered >= MISSED:
            return False
        self._ping += 1
        self._unanswered += 1
        self.say(Ping(self._ping))
        return True

    def ponged(self, number: int) -> None:
        """Note an answer; an old one is as good a sign of life as the latest."""
        if 0 < number <= self._ping:
            self._unanswered = 0
            self._answered_at = time.monotonic()


def _words(status: ExitStatus) -> str:
    if status.signal is not None:
        try:
            return f"killed by {signal.Signals(status.signal).name.removeprefix('SIG')}"
        except ValueError:
            return f"killed by signal {status.signal}"
    return "ended, nobody knows how" if status.code is None else f"exited with code {status.code}"

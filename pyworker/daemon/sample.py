"""Daemon: CPU, memory and request rates of workers. Measured only when somebody asks.

A worker's figures are those of its whole session: what it starts counts for it, also when the one between has died.
Read from /proc directly: the session of every process of the machine is one system call each, where a tree of
parents would take a file each. Nothing here decides what is too much.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Container
from typing import NamedTuple

from pyworker.protocol.figures import Totals, error_share, quantile
from pyworker.record import record
from pyworker.unix.process import all_pids, stat_fields

FRESH = 0.5  # seconds in which the same answer is given again
PSS_FRESH = 5.0  # the same for what takes longer to find out
_PSS_TIME = 0.02  # seconds that one request may spend on that
_FAMILY_TIME = 0.5  # ... of our processor time, on one worker and all that it has started
_KEEP = 60.0  # seconds after which an earlier reading is too old to be compared with
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@record
class Figures:
    """cpu_percent (100 = one core) and requests a second since the last reading, or of its life if there is none."""

    cpu_percent: float | None
    rss: int
    requests_per_s: float | None
    cpu_s: float = 0.0  # of its life


@record
class Served:
    """What an app answered lately: since the last reading, or in all its life if there is none."""

    p50_s: float | None
    p99_s: float | None
    error_share: float | None


class _AppReading(NamedTuple):
    at: float
    totals: Totals
    served: Served


class _Reading(NamedTuple):
    at: float
    started: int  # tells the process from a later one of the same pid
    cpu: float
    requests: int
    figures: Figures


class _Stat(NamedTuple):
    started: int  # clock ticks since the boot
    cpu: float  # seconds, of children that were reaped too: so a child's share does not vanish when it ends
    rss: int


class Sampler:
    """Remembers one earlier reading of each worker. `clock` is monotonic seconds, the `now` of `figures`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readings: dict[int, _Reading] = {}
        self._apps: dict[str, _AppReading] = {}
        self._shares: dict[int, tuple[float, int | None]] = {}  # pid -> when, PSS
        self._sessions: dict[int, list[int]] = {}
        self._scanned_at = -1e9

    def want(self, alive: Container[int]) -> None:
        """Somebody asks: forget readings of who is gone, and those that are too old to be compared with."""
        now = self._clock()
        self._readings = {p: each for p, each in self._readings.items() if p in alive and 0 <= now - each.at < _KEEP}
        self._shares = {pid: share for pid, share in self._shares.items() if pid in self._readings}
        self._apps = {name: each for name, each in self._apps.items() if 0 <= now - each.at < _KEEP}

    def figures(self, pid: int, requests: int, now: float) -> Figures | None:
        """Return a worker's figures, None when it is gone. `requests` is its count so far."""
        before = self._readings.get(pid)
        if before is not None and 0 <= now - before.at < FRESH:
            return before.figures
        mine = _stat(pid)
        if mine is None:
            self._readings.pop(pid, None)
            return None
        family = [mine, *(stat for other in self._members(pid) if (stat := _stat(other)) is not None)]
        cpu, rss = sum(s.cpu for s in family), sum(s.rss for s in family)
        if before is not None and before.started == mine.started and 0 < now - before.at < _KEEP:
            took, spent, served = now - before.at, cpu - before.cpu, requests - before.requests
        else:  # the mean of its life is what can be said
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - mine.started / _TICKS
            took, spent, served = max(0.01, age), cpu, requests
        figures = Figures(max(0.0, round(100 * spent / took, 1)), rss, max(0.0, round(served / took, 1)), round(cpu, 2))
        self._readings[pid] = _Reading(now, mine.started, cpu, requests, figures)
        return figures

    def served(self, app: str, totals: Totals, now: float) -> Served:
        """Return how an app answered lately. `totals` are its counts so far."""
        before = self._apps.get(app)
        if before is not None and 0 <= now - before.at < FRESH:
            return before.served
        recent = before is not None and 0 < now - before.at < _KEEP
        lately = totals.since(before.totals) if recent and before is not None else totals
        served = Served(_quantile(lately, 0.5), _quantile(lately, 0.99), error_share(lately.status))
        self._apps[app] = _AppReading(now, totals, served)
        return served

    def pss(self, pid: int) -> int | None:
        """Return the memory of a worker and what it started, each shared page counted in equal parts; None when gone or not
        permitted.

        Some 300 us a process, 20 ms for one of 1 GB: who starts a thousand, or a hundred of these, must not keep the daemon
        from everybody else. Of so many the first count.
        """
        until = time.thread_time() + _FAMILY_TIME
        total = _pss(pid)
        if total is None:
            return None
        for other in self._members(pid):
            if time.thread_time() > until:
                break
            total += _pss(other) or 0
        return total

    def pss_lately(self, pids: list[int], now: float) -> dict[int, int | None]:
        """The same of many, for those who ask again and again: some seconds old; a pid that there was no time for is missing.

        The kernel walks all pages of a process for this, so a request has a small budget, spent on what is known worst:
        many or big workers are looked at in turn, over several requests, and the daemon is never away for long.
        """
        known = self._shares
        stale = [pid for pid in pids if pid not in known or not 0 <= now - known[pid][0] < PSS_FRESH]
        until = time.perf_counter() + _PSS_TIME
        for pid in sorted(stale, key=lambda pid: known[pid][0] if pid in known else -1.0):
            known[pid] = (now, self.pss(pid))
            if time.perf_counter() > until:
                break
        return {pid: known[pid][1] for pid in pids if pid in known}

    def _members(self, pid: int) -> list[int]:
        """Return the other processes of a session leader's session; nobody for a process that leads none."""
        now = self._clock()
        if not 0 <= now - self._scanned_at < FRESH:
            self._scanned_at = now
            self._sessions = {}
            for other in all_pids():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    self._sessions.setdefault(os.getsid(other), []).append(other)
        return [member for member in self._sessions.get(pid, ()) if member != pid]


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has resident; 0 of one that is gone."""
    found = _stat(pid)
    return found.rss if found is not None else 0


def _stat(pid: int) -> _Stat | None:
    """Read proc_pid_stat(5); None for a process that is gone, or dead and not reaped."""
    try:
        fields = stat_fields(pid)
        if fields[0] in (b"Z", b"X"):
            return None
        cpu = sum(int(ticks) for ticks in fields[11:15]) / _TICKS  # utime stime cutime cstime
        return _Stat(int(fields[19]), cpu, int(fields[21]) * _PAGE)
    except (OSError, ValueError, IndexError):
        return None


def _pss(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _quantile(totals: Totals, share: float) -> float | None:
    found = quantile(totals.latency, share)
    return None if found is None else round(found, 6)

"""Daemon: CPU, memory and request rates of workers. Measured only when somebody asks (28 us a process).

A worker's figures are those of its whole session: what it starts counts for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

_KEEP = 60.0  # seconds after which an earlier reading is too old to be compared with


@dataclass(frozen=True)
class Figures:
    """cpu_percent of one core since the last reading (None: this was the first), resident bytes, requests a second."""

    cpu_percent: float | None
    rss: int
    requests_per_s: float | None


@dataclass
class _Reading:
    at: float
    cpu: float
    requests: int


class Sampler:
    """Remembers one earlier reading of each worker."""

    def __init__(self) -> None:
        self._readings: dict[int, _Reading] = {}
        self._last: dict[int, tuple[float, Figures]] = {}

    def want(self) -> None:
        """Somebody asks: forget readings of processes that are gone."""
        for pid in [p for p in self._readings if not psutil.pid_exists(p)]:
            self._readings.pop(pid, None)
            self._last.pop(pid, None)

    def figures(self, pid: int, requests: int, now: float) -> Figures | None:
        """Return a worker's figures, None when it is gone. `requests` is its count so far, `now` monotonic seconds."""
        known = self._last.get(pid)
        if known is not None and now - known[0] < 0.5:
            return known[1]
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                cpu = times.user + times.system
                rss = process.memory_info().rss
                created = process.create_time()
        except psutil.Error:
            return None
        for child in _children(pid):
            try:
                rss += child.memory_info().rss
                child_times = child.cpu_times()
                cpu += child_times.user + child_times.system
            except psutil.Error:
                continue
        before = self._readings.get(pid)
        percent: float | None = None
        rate: float | None = None
        if before is not None and 0 < now - before.at < _KEEP:
            percent = max(0.0, round(100 * (cpu - before.cpu) / (now - before.at), 1))
            rate = max(0.0, round((requests - before.requests) / (now - before.at), 1))
        else:  # the mean of its life is what can be said
            lived = max(0.01, time.time() - created)
            percent = round(100 * cpu / lived, 1)
            rate = round(requests / lived, 1)
        self._readings[pid] = _Reading(now, cpu, requests)
        figures = Figures(percent, rss, rate)
        self._last[pid] = (now, figures)
        return figures

    def rss(self, pid: int) -> int | None:
        """Return the resident bytes of a worker and what it started, None when it is gone."""
        try:
            total = int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
        for child in _children(pid):
            try:
                total += int(child.memory_info().rss)
            except psutil.Error:
                continue
        return total


def _children(pid: int) -> list[psutil.Process]:
    """Return what a worker has started. Most have no child, which one small file says at once."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            if not file.read(1):
                return []
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except (OSError, psutil.Error):
        return []
    return found

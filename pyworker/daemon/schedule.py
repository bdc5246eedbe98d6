"""Daemon: once a minute, by the wall clock: jobs (`cron`) and timed reloads (`reload.cron`) that are due.

Which they are is policy/cron.py's. A job whose last run is still at work is not started a second time, and no reload takes the
place of one that is under way. What was due between two daemons (one was killed, or upgraded) is made up for; what was while
nothing of pyworker ran is not.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time

from pyworker.config.timetable import CronError, parse
from pyworker.daemon.app import App
from pyworker.daemon.requests.auto import reload_by_itself
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.wallclock import local_minute
from pyworker.policy.cron import due, latest
from pyworker.protocol.inherited import MINUTES
from pyworker.unix.fds import memfd_fixed

_MINUTES = struct.Struct("<qq")  # of the wall clock; the same without zone and summer time


class Schedule:
    """Wakes at each full minute."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        seconds = time.time()
        self._last = local_minute(seconds)
        self._looked_at = _minute(seconds)
        if (fd := desk.brain.store.get(MINUTES)) is not None:
            with contextlib.suppress(OSError, struct.error):
                self._last, self._looked_at = _MINUTES.unpack(os.pread(fd, _MINUTES.size, 0))
            desk.brain.loop.call_soon(self._tick)
            return
        with contextlib.suppress(OSError):  # no descriptor is left
            desk.brain.store.put(MINUTES, memfd_fixed("pyworker-minutes", _MINUTES.size))
        self._write_down()
        self._wake()

    def _write_down(self) -> None:
        if (fd := self._desk.brain.store.get(MINUTES)) is not None:
            with contextlib.suppress(OSError):  # no memory is left (vm.overcommit_memory = 2)
                os.pwrite(fd, _MINUTES.pack(self._last, self._looked_at), 0)

    def _wake(self) -> None:
        loop = self._desk.brain.loop
        loop.call_at(loop.clock() + 60.05 - time.time() % 60, self._tick, lazy=True)  # also after a standstill

    def _tick(self) -> None:
        self._wake()
        seconds = time.time()
        self.look(local_minute(seconds), _minute(seconds))

    def look(self, now: int, at: int) -> None:
        """Start and reload what is due at this minute of the wall clock; `at`: the same without zone and summer time."""
        last, self._last = self._last, latest(self._last, now)
        passed, self._looked_at = at - self._looked_at, at
        for app in list(self._desk.brain.apps.values()):
            config = app.config
            if config is None or not app.running:
                continue
            if config.cron is not None and _is_due(config.cron, last, now, passed):
                self._start_job(app)
            if config.reload.cron is not None and _is_due(config.reload.cron, last, now, passed):
                self._reload(app, config.reload.cron)
        self._write_down()  # last: a daemon after this one looks again at what it has not come to

    def _start_job(self, app: App) -> None:
        brain = self._desk.brain
        if any(w.is_alive for w in app.workers.values()):
            brain.remark(app, "its last run is still at work: this one is left out")
            return
        app.finished_slots.clear()
        app.write_memo()  # a daemon after this one must know that it is due: else it would stop the run
        brain.poke(app)

    def _reload(self, app: App, text: str) -> None:
        if app.target is not None or app.starting:  # each would replace the one before, and none come to its end
            what = "reload" if app.target is not None else "start"
            words = f"its last {what} is still at work: the reload of its timetable ({text}) is left out"
            self._desk.brain.remark(app, words)
            return
        reload_by_itself(self._desk, app, f"its timetable: {text}")


def _minute(seconds: float) -> int:
    return int(seconds // 60)


def _is_due(text: str, last: int, now: int, passed: int) -> bool:
    try:
        return due(parse(text), last, now, passed)
    except CronError:  # checked when the file was read
        return False

"""Daemon: this machine's wall clock as timetables count it (config/timetable.py), and back."""

from __future__ import annotations

import time

from pyworker.config.timetable import CronError, Timetable, next_after, parse
from pyworker.policy.cron import due, latest

_AROUND = 3 * 3600  # s: who is as far from a change to or from summer time has no part in it


def local_minute(seconds: float) -> int:
    """Return the minute number of a Unix time in this machine's zone."""
    time.tzset()  # which may have been set since we looked at it: cloud-init and timedatectl do it to a running machine
    return int(seconds + time.localtime(seconds).tm_gmtoff) // 60


def next_at(text: str, seconds: float) -> float | None:
    """Return when (Unix time) a timetable comes next after a Unix time."""
    try:
        table = parse(text)
    except CronError:  # checked when the file was read
        return None
    # an hour that comes again has minutes that have been before
    found = _near(table, seconds, seconds) if _jumps(seconds) else None
    minute = local_minute(seconds)
    while found is None:
        following = next_after(table, minute)
        if following is None:
            return None
        minute = following
        at = time.mktime((*time.gmtime(minute * 60)[:8], -1))
        found = _near(table, at, seconds) if _jumps(at) else at
    return found


def _near(table: Timetable, at: float, seconds: float) -> float | None:
    """Return the first run after `seconds` in the hours around `at`: what the schedule will find, minute by minute."""
    begin = at - at % 60 - _AROUND
    last = local_minute(begin)
    for minute in range(1, 2 * _AROUND // 60):
        found = begin + minute * 60
        now = local_minute(found)
        if due(table, last, now, 1) and found > seconds:
            return found
        last = latest(last, now)
    return None


def _jumps(at: float) -> bool:
    return time.localtime(at - _AROUND).tm_gmtoff != time.localtime(at + _AROUND).tm_gmtoff

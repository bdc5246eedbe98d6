"""Daemon: this machine's wall clock as timetables count it (config/timetable.py), and back."""

from __future__ import annotations

import time

from pyworker.config.timetable import CronError, next_after, parse


def local_minute(seconds: float) -> int:
    """Return the minute number of a Unix time in this machine's zone."""
    time.tzset()  # which may have been set since we looked at it: cloud-init and timedatectl do it to a running machine
    return int(seconds + time.localtime(seconds).tm_gmtoff) // 60


def next_at(text: str, seconds: float) -> float | None:
    """Return when (Unix time) a timetable comes next after a Unix time."""
    try:
        minute = next_after(parse(text), local_minute(seconds))
    except CronError:  # checked when the file was read
        return None
    if minute is None:
        return None
    found = time.mktime((*time.gmtime(minute * 60)[:8], -1))
    return found if found > seconds else found + 3600  # the hour that comes twice when summer time ends

"""Whether a job is due: decided from the timetable and minute numbers (config/timetable.py). Pure: no clock here."""

from __future__ import annotations

from pyworker.config.timetable import Timetable, matches

_JUMP = 3 * 60  # a clock that moved by no more than this changed to or from summer time; more: somebody set it


def due(table: Timetable, last: int, now: int, passed: int) -> bool:
    """Whether a job is to run now. `last`: the latest minute of the wall clock that was looked at before this one.
    `passed`: the minutes since the look before this one, by a clock that knows no summer time.

    Minutes that were missed (a busy machine) count once, together. What runs at times of day (02:30) runs once in the night
    in which summer time begins, though 02:30 is jumped over, and in the one in which it ends, though it comes twice. What
    runs every so often goes on in both by the time that has passed, but for a jump over hours of which it names some. A
    clock that was set by more than three hours starts afresh.
    """
    gap = now - last
    if table.is_fixed:
        if -_JUMP <= gap <= 0:
            return False
    elif gap <= 0 or len(table.hours) == 24:
        gap = passed
        if gap == 0:
            return False
    if 0 < gap <= _JUMP:
        return any(matches(table, minute) for minute in range(now - gap + 1, now + 1))
    return matches(table, now)


def latest(last: int, now: int) -> int:
    """Return what `last` is for the next call of `due`."""
    return now if now > last or now < last - _JUMP else last

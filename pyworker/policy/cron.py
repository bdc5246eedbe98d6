"""Whether a job is due: decided from the timetable and two minute numbers (config/timetable.py). Pure: no clock here."""

from __future__ import annotations

from pyworker.config.timetable import Timetable, matches

_JUMP = 3 * 60  # a clock that moved by no more than this changed to or from summer time; more: somebody set it


def due(table: Timetable, last: int, now: int) -> bool:
    """Whether a job is to run now. `last`: the latest minute that was looked at before this one.

    Minutes that were jumped over (summer time begins, a busy machine) count once, together. Minutes that come a second
    time (summer time ends) count again only for what runs every so often: a job of 02:30 runs once that night. A clock
    that was set by more than three hours starts afresh.
    """
    gap = now - last
    if gap == 0:
        return False
    if 0 < gap <= _JUMP:
        return any(matches(table, minute) for minute in range(last + 1, now + 1))
    if -_JUMP <= gap < 0:
        return not table.is_fixed and matches(table, now)
    return matches(table, now)


def latest(last: int, now: int) -> int:
    """Return what `last` is for the next call of `due`."""
    return now if now > last or now < last - _JUMP else last

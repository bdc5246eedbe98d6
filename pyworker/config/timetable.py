"""Timetables in cron's five fields: parse, does this minute match, which is the next. Pure: no clock, no time zone.

A time is a *minute number*: whole minutes of local wall-clock time since 1970-01-01 00:00. The caller makes it, so that
what happens when summer time begins or ends is decided in one place (policy/cron.py) and can be tested as a table.
"""

from __future__ import annotations

from pyworker.errors import Hinted
from pyworker.record import record

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NICKNAMES = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DAY = 24 * 60
_HORIZON = 8 * 366  # days: 29 February comes within eight years, also around 2100


class CronError(Hinted):
    """Not a timetable."""


@record
class Timetable:
    """The minutes that match: each field as a set. `either_day`: both day fields are limited, so one is enough."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 = Sunday
    last_day: bool  # L: the last day of the month
    either_day: bool
    is_fixed: bool  # minute and hour are named: runs at times of day, not every so often


def parse(text: str) -> Timetable:
    """Return the timetable of "minute hour day month weekday" or "@daily" and its like; raise CronError."""
    words = text.split()
    if len(words) == 1 and words[0].startswith("@"):
        if words[0].lower() not in _NICKNAMES:
            raise CronError(f"has no timetable called {words[0]}", "known: " + " ".join(_NICKNAMES))
        words = _NICKNAMES[words[0].lower()].split()
    if len(words) != 5:
        hint = '"0 4 * * *" is every day at 04:00: minute, hour, day of month, month, weekday'
        if len(words) == 6:
            hint = "seconds are not a field here; " + hint
        raise CronError(f"must have five fields, not {len(words)}", hint)
    minute, hour, day, month, weekday = words
    last_day = any(part.upper() == "L" for part in day.split(","))
    days = ",".join(part for part in day.split(",") if part.upper() != "L")
    weekdays = _field("weekday", weekday, 0, 7, _WEEKDAYS)
    found = Timetable(
        minutes=_field("minute", minute, 0, 59),
        hours=_field("hour", hour, 0, 23),
        days=_field("day of month", days, 1, 31) if days else frozenset(),
        months=_field("month", month, 1, 12, _MONTHS),
        weekdays=frozenset(d % 7 for d in weekdays),
        last_day=last_day,
        either_day=not day.startswith("*") and not weekday.startswith("*"),
        is_fixed=not minute.startswith("*") and not hour.startswith("*"),
    )
    if next_after(found, 0) is None:
        raise CronError("names a day that never comes", "February has 29 days at most, April, June… have 30")
    return found


def matches(table: Timetable, minute: int) -> bool:
    day, of_day = divmod(minute, _DAY)
    return of_day // 60 in table.hours and of_day % 60 in table.minutes and _day_matches(table, day)


def next_after(table: Timetable, minute: int) -> int | None:
    """Return the first minute of the timetable after this one; None when there is none."""
    first = (minute + 1) // _DAY
    for day in range(first, first + _HORIZON):
        if not _day_matches(table, day):
            continue
        for hour in sorted(table.hours):
            for of_hour in sorted(table.minutes):
                found = day * _DAY + hour * 60 + of_hour
                if found > minute:
                    return found
    return None


def _day_matches(table: Timetable, day: int) -> bool:
    year, month, of_month = _date(day)
    if month not in table.months:
        return False
    by_date = of_month in table.days or (table.last_day and of_month == _length(year, month))
    by_weekday = (day + 4) % 7 in table.weekdays  # 1970-01-01 was a Thursday
    return (by_date or by_weekday) if table.either_day else (by_date and by_weekday)


def _date(day: int) -> tuple[int, int, int]:
    """Return (year, month, day of month) of a day since 1970-01-01."""
    year = 1970 + day * 400 // 146097  # right, or one too many or few
    while day < _before(year):
        year -= 1
    while day >= _before(year + 1):
        year += 1
    left = day - _before(year)
    month = 1
    while left >= _length(year, month):
        left -= _length(year, month)
        month += 1
    return year, month, left + 1


def _before(year: int) -> int:
    """Return the days from 1970-01-01 to the year's first day."""
    past = year - 1
    return (year - 1970) * 365 + (past // 4 - past // 100 + past // 400) - (1969 // 4 - 1969 // 100 + 1969 // 400)


def _length(year: int, month: int) -> int:
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and is_leap else _LENGTHS[month - 1]


def _field(name: str, text: str, low: int, high: int, names: tuple[str, ...] = ()) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        step = 1
        if slash:
            if not _is_number(step_text) or not 0 < int(step_text) <= high:
                raise CronError(f"has {part!r} as {name}: what follows / must be a number from 1 to {high}")
            step = int(step_text)
        if span == "*":
            first, last = low, high
        elif "-" in span[1:]:
            first_text, _, last_text = span.partition("-")
            first = _number(name, part, first_text, low, high, names)
            last = _number(name, part, last_text, low, high, names)
            if last < first:
                if not names:
                    raise CronError(f"has {part!r} as {name}: the range runs backwards")
                length = 7 if high == 7 else 12  # fri-mon, nov-feb
                found.update((v - low) % length + low for v in range(first, last + length + 1, step))
                continue
        else:
            first = _number(name, part, span, low, high, names)
            last = high if slash else first  # "5/15" is from 5 on, as cron has it
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(name: str, part: str, text: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + (1 if high == 12 else 0)
    if _is_number(text) and low <= int(text) <= high:
        return int(text)
    hint = f"or a name: {' '.join(names)}" if names else ""
    raise CronError(f"has {part!r} as {name}: it must be from {low} to {high}", hint)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6

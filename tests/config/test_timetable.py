"""config/timetable.py: timetables, against known dates and against a second implementation."""

from __future__ import annotations

import datetime as dt
import random

import pytest

from pyworker.config import timetable as cron

EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  wall-clock time has no zone here


def minute(text: str) -> int:
    return int((dt.datetime.fromisoformat(text) - EPOCH).total_seconds() // 60)


def text(number: int | None) -> str | None:
    return None if number is None else (EPOCH + dt.timedelta(minutes=number)).isoformat(" ", "minutes")


@pytest.mark.parametrize(
    ("table", "after", "expected"),
    [
        ("* * * * *", "2026-11-23 22:49", "2026-11-23 22:50"),
        ("0 4 * * *", "2026-11-23 03:59", "2026-11-23 04:00"),
        ("0 4 * * *", "2026-11-23 04:00", "2026-11-24 04:00"),
        ("*/15 * * * *", "2026-12-31 23:50", "2027-01-01 00:00"),
        ("5/15 * * * *", "2026-01-01 00:06", "2026-01-01 00:20"),
        ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00"),
        ("0 0 29 2 *", "2096-03-01 00:00", "2104-02-29 00:00"),
        ("0 0 L * *", "2026-02-01 00:00", "2026-02-28 00:00"),
        ("0 0 L * *", "2026-12-01 00:00", "2026-12-31 00:00"),
        ("0 0 1,L 2 *", "2028-02-02 00:00", "2028-02-29 00:00"),
        ("30 8 * * mon-fri", "2026-11-27 09:00", "2026-11-30 08:30"),
        ("30 8 * * 7", "2026-11-23 09:00", "2026-11-29 08:30"),
        ("0 0 * * fri-mon", "2026-11-24 00:00", "2026-11-27 00:00"),
        ("0 0 * * fri-mon", "2026-11-29 00:00", "2026-11-30 00:00"),
        ("0 0 1 nov-feb *", "2026-03-01 00:00", "2026-11-01 00:00"),
        ("0 0 1 nov-feb *", "2027-01-01 00:00", "2027-02-01 00:00"),
        ("0 0 * * fri-tue/2", "2026-11-28 00:00", "2026-11-29 00:00"),
        ("0 0 13 * fri", "2026-11-23 00:00", "2026-11-27 00:00"),  # both day fields limited: one is enough
        ("0 0 */2 * mon", "2026-11-01 00:00", "2026-11-09 00:00"),  # a field that begins with * limits nothing
        ("@weekly", "2026-11-23 00:00", "2026-11-29 00:00"),
        ("@hourly", "2026-11-23 22:00", "2026-11-23 23:00"),
    ],
)
def test_the_next_time_is_the_one_that_cron_has(table: str, after: str, expected: str) -> None:
    assert text(cron.next_after(cron.parse(table), minute(after))) == expected


def test_every_day_from_1970_to_2200_has_the_calendars_date() -> None:
    day = dt.date(1970, 1, 1)
    for number in range(84_000):
        assert cron._date(number) == (day.year, day.month, day.day)
        day += dt.timedelta(days=1)


def test_random_timetables_agree_with_another_implementation() -> None:
    other = pytest.importorskip("cronsim", reason="the second implementation is a development dependency")
    random.seed(7)

    def field(low: int, high: int) -> str:
        kind = random.randrange(5)
        a, b = sorted(random.sample(range(low, high + 1), 2))
        return ["*", str(a), f"{a}-{b}", f"{a},{b}", f"*/{random.randint(1, high)}"][kind]

    for _ in range(300):
        table = " ".join((field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6)))
        start = EPOCH + dt.timedelta(minutes=random.randrange(20_000_000, 40_000_000))
        expected = other.CronSim(table, start)
        at = int((start - EPOCH).total_seconds() // 60)
        parsed = cron.parse(table)
        for _ in range(3):
            found = cron.next_after(parsed, at)
            assert found is not None
            assert text(found) == next(expected).isoformat(" ", "minutes"), table
            assert cron.matches(parsed, found)
            at = found


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ("", "five fields, not 0", "every day at 04:00"),
        ("5", "five fields, not 1", "every day at 04:00"),
        ("* * * *", "five fields, not 4", "every day at 04:00"),
        ("0 0 4 * * *", "five fields, not 6", "seconds are not a field"),
        ("60 * * * *", "as minute: it must be from 0 to 59", ""),
        ("* 24 * * *", "as hour", ""),
        ("* * 0 * *", "as day of month", ""),
        ("* * * 13 *", "as month", "jan feb"),
        ("* * * * 8", "as weekday", "sun mon"),
        ("*/0 * * * *", "what follows /", ""),
        ("5-1 * * * *", "backwards", ""),
        ("@reboot", "no timetable called @reboot", "@daily"),
        ("0 0 30 2 *", "never comes", "29 days"),
        ("1,,2 * * * *", "as minute", ""),
        ("² * * * *", "as minute", ""),
        ("9" * 5000 + " * * * *", "as minute", ""),
    ],
)
def test_what_is_no_timetable_says_why(table: str, message: str, hint: str) -> None:
    with pytest.raises(cron.CronError) as caught:
        cron.parse(table)
    assert message in caught.value.message
    assert hint in caught.value.hint

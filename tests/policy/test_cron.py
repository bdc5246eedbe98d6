"""policy/cron.py: a job runs once, whatever the clock does."""

from __future__ import annotations

import calendar
import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from pyworker.config.timetable import Timetable, parse
from pyworker.policy import cron

EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  wall-clock time has no zone here


def minute(text: str) -> int:
    return int((dt.datetime.fromisoformat(text) - EPOCH).total_seconds() // 60)


NIGHTLY, OFTEN = parse("30 2 * * *"), parse("*/15 * * * *")


@pytest.mark.parametrize(
    ("table", "last", "now", "expected"),
    [
        (NIGHTLY, "2026-03-28 02:29", "2026-03-28 02:30", True),
        (NIGHTLY, "2026-03-28 02:30", "2026-03-28 02:30", False),  # looked at already
        (OFTEN, "2026-03-28 02:30", "2026-03-28 02:30", False),
        (NIGHTLY, "2026-03-28 02:28", "2026-03-28 02:31", True),  # a busy machine: late, not never
        (OFTEN, "2026-03-28 02:28", "2026-03-28 02:31", True),
        (NIGHTLY, "2026-03-28 01:00", "2026-03-28 04:00", True),  # by three hours at most
        (NIGHTLY, "2026-03-28 01:00", "2026-03-28 04:01", False),
        (NIGHTLY, "2026-11-23 12:00", "2026-11-24 12:00", False),  # the clock was set: nothing is made up for
        (NIGHTLY, "2026-11-24 12:00", "2026-11-23 02:30", True),
        (NIGHTLY, "2026-11-24 02:31", "2026-11-24 02:30", False),  # it was set back by a moment
        (OFTEN, "2026-11-24 12:01", "2026-11-24 11:45", True),
    ],
)
def test_a_job_runs_once_whatever_the_clock_is_set_to(table: Timetable, last: str, now: str, expected: bool) -> None:
    assert cron.due(table, minute(last), minute(now), minute(now) - minute(last)) is expected


def test_the_next_look_follows_a_clock_that_was_set_back_far_and_not_one_that_was_by_little() -> None:
    noon = minute("2026-11-24 12:00")
    assert cron.latest(noon, minute("2026-11-23 12:00")) == minute("2026-11-23 12:00")
    assert cron.latest(noon, minute("2026-11-24 09:00")) == noon
    assert cron.latest(noon, minute("2026-11-24 08:59")) == minute("2026-11-24 08:59")


BEGINS, ENDS = "2026-03-29", "2026-10-25"  # in Berlin: 02:00 CET is 03:00 CEST, 03:00 CEST is 02:00 CET


@pytest.mark.parametrize(
    ("text", "night", "expected"),
    [
        ("30 2 * * *", BEGINS, ["03:00 CEST"]),
        ("30 2 * * *", ENDS, ["02:30 CEST"]),
        ("59 2 * * *", ENDS, ["02:59 CEST"]),
        ("0 3 * * *", BEGINS, ["03:00 CEST"]),
        ("0 3 * * *", ENDS, ["03:00 CET"]),
        ("0 * * * *", BEGINS, ["01:00 CET", "03:00 CEST", "04:00 CEST"]),
        ("0 * * * *", ENDS, ["01:00 CEST", "02:00 CEST", "02:00 CET", "03:00 CET", "04:00 CET"]),
        ("1 * * * *", BEGINS, ["01:01 CET", "03:01 CEST", "04:01 CEST"]),
        ("59 * * * *", BEGINS, ["00:59 CET", "01:59 CET", "03:59 CEST"]),
        ("59 * * * *", ENDS, ["00:59 CEST", "01:59 CEST", "02:59 CEST", "02:59 CET", "03:59 CET"]),
        ("*/30 2 * * *", BEGINS, ["03:00 CEST"]),
        ("*/30 2 * * *", ENDS, ["02:00 CEST", "02:30 CEST", "02:00 CET", "02:30 CET"]),
    ],
)
@pytest.mark.parametrize("step", [1, 2])  # minutes between two looks
def test_a_night_in_berlin_in_which_summer_time_begins_or_ends(
    text: str, night: str, expected: list[str], step: int
) -> None:
    zone, table = ZoneInfo("Europe/Berlin"), parse(text)
    begin, end = (int(dt.datetime.fromisoformat(f"{night}T{at}").replace(tzinfo=zone).timestamp()) for at in ("00:31", "04:02"))
    found, last = [], 0
    for seconds in range(begin, end, 60 * step):
        local = dt.datetime.fromtimestamp(seconds, zone)
        now = calendar.timegm(local.timetuple()) // 60
        if last and cron.due(table, last, now, step):
            found.append(local)
        last = cron.latest(last, now)
    assert len(found) == len(expected)
    if step == 1:
        assert [local.strftime("%H:%M %Z") for local in found] == expected

"""policy/cron.py: a job runs once, whatever the clock does."""

from __future__ import annotations

import datetime as dt

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
        (NIGHTLY, "2026-03-28 02:28", "2026-03-28 02:31", True),  # a busy machine: late, not never
        (NIGHTLY, "2026-03-29 01:59", "2026-03-29 03:00", True),  # summer time begins: 02:30 did not exist
        (OFTEN, "2026-03-29 01:59", "2026-03-29 03:00", True),
        (NIGHTLY, "2026-10-25 02:59", "2026-10-25 02:30", False),  # summer time ends: it ran an hour ago
        (OFTEN, "2026-10-25 02:59", "2026-10-25 02:30", True),
        (OFTEN, "2026-10-25 02:59", "2026-10-25 02:31", False),
        (NIGHTLY, "2026-11-23 12:00", "2026-11-24 12:00", False),  # the clock was set: nothing is made up for
        (NIGHTLY, "2026-11-24 12:00", "2026-11-23 02:30", True),
    ],
)
def test_a_job_runs_once_whatever_the_clock_does(table: Timetable, last: str, now: str, expected: bool) -> None:
    assert cron.due(table, minute(last), minute(now)) is expected


def test_the_hour_that_comes_twice_is_remembered_until_it_is_over() -> None:
    last = minute("2026-10-25 02:59")
    for now in range(minute("2026-10-25 02:00"), minute("2026-10-25 03:00")):
        assert not cron.due(NIGHTLY, last, now)
        last = cron.latest(last, now)
    assert cron.latest(last, minute("2026-10-25 03:00")) == minute("2026-10-25 03:00")
    assert cron.latest(last, minute("2026-10-20 03:00")) == minute("2026-10-20 03:00")

"""daemon/wallclock.py: when a timetable comes next, by a clock with summer time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pyworker.daemon.wallclock import next_at

BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as zone:
        zone.setenv("TZ", BERLIN)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("table", "now", "found"),
    [
        ("0 4 * * *", 1795892400, 1795921200),  # 2026-11-28 20:00 CET -> 04:00 CET
        ("0 4 * * *", 1795921200, 1796007600),  # at it: the day after
        ("0 4 * * *", 1774695600, 1774749600),  # 2026-03-28 12:00 CET -> 04:00 CEST, an hour less
        ("*/30 * * * *", 1792890600, 1792891800),  # 2026-10-25 02:10 CET, when that hour comes for the second time
        ("*/20 * * * *", 1792889100, 1792890000),  # 2026-10-25 02:45 CEST -> 02:00 CET
        ("*/20 2 * * *", 1792889100, 1792890000),
        ("30 2 * * *", 1792879200, 1792888200),  # 00:00 CEST -> 02:30 CEST
        ("30 2 * * *", 1792890600, 1792978200),  # 02:10 CET: it has run; the day after
        ("30 2 * * *", 1774740000, 1774746000),  # 2026-03-29 00:20 CET: 02:30 does not come -> 03:00 CEST
        ("30 2 * * *", 1774746000, 1774830600),  # at it: the day after
        ("30 2 30 2 *", 0, None),
    ],
)
def test_when_a_timetable_comes_next(table: str, now: float, found: float | None) -> None:
    assert next_at(table, now) == found

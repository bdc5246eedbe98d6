"""When something is said of a TLS certificate's time."""

from __future__ import annotations

import pytest

from pyworker.policy.certificate import trouble

DAY, HOUR = 86400.0, 3600.0
YEAR, QUARTER, WEEK = 365 * DAY, 90 * DAY, 6 * DAY


@pytest.mark.parametrize(
    ("life", "left", "said"),
    [
        (YEAR, YEAR, ""),
        (YEAR, 15 * DAY, ""),
        (YEAR, 14 * DAY, ""),
        (YEAR, 14 * DAY - 1, "expires in 13 days"),
        (QUARTER, 10 * DAY, ""),
        (QUARTER, 9 * DAY - 1, "expires in 8 days"),
        (QUARTER, DAY, "expires in 1 day"),
        (WEEK, DAY, ""),
        (WEEK, 14 * HOUR, "expires in 14 hours"),
        (WEEK, 90.0, "expires in 1 minute"),
        (WEEK, 1.0, "expires in less than a minute"),
        (YEAR, 0.0, "has expired less than a minute ago"),
        (YEAR, -3 * HOUR, "has expired 3 hours ago"),
        (YEAR, -YEAR, "has expired 365 days ago"),
        (YEAR, YEAR + 1, "is not valid yet, but in less than a minute"),
        (YEAR, YEAR + 2 * DAY, "is not valid yet, but in 2 days"),
    ],
)
def test_a_certificate_is_mentioned_near_its_end_and_outside_of_its_time(life: float, left: float, said: str) -> None:
    until = 2_000_000_000.0
    what, step = trouble(until - life, until, until - left)
    assert what == said
    assert ("clock" in step, "renew" in step) == ("not valid yet" in said, "expire" in said)

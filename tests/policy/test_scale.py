"""What `scale` understands."""

from __future__ import annotations

import pytest

from pyworker.policy.scale import scaled


@pytest.mark.parametrize(
    ("current", "change", "expected"),
    [
        (4, "8", 8),
        (4, "+2", 6),
        (4, "-1", 3),
        (4, "-9", 0),
        (4, "0", 0),
        (4, "auto", 16),
        (4, " +2 ", 6),
        (4, "5000", 5000),
        (4, "", None),
        (4, "+", None),
        (4, "two", None),
        (4, "1.5", None),
        (4, "٣", None),
        (4, "999999", 999999),
        (4, "1000000", None),
        (4, "99999999999", None),
    ],
)
def test_scaling(current: int, change: str, expected: int | None) -> None:
    assert scaled(current, change, 16) == expected

"""Every failpoint that is declared is passed somewhere, once, and none is passed that is not declared."""

from __future__ import annotations

import pathlib
import re
from collections import Counter

from pyworker.failpoint import POINTS

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "pyworker"


def test_declared_and_used_failpoints_are_the_same() -> None:
    used = Counter(
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r'failpoint\.hit\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    )
    assert sorted(used) == sorted(POINTS)
    assert [name for name, count in used.items() if count > 1] == []


def test_every_failpoint_is_run_in_the_system_tests() -> None:
    from tests.system.test_failpoints import SCENARIOS

    assert sorted(SCENARIOS) == sorted(POINTS)

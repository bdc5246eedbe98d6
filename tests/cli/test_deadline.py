"""cli/deadline.py, on a clock of ours."""

from __future__ import annotations

import time

import pytest

from pyworker.cli.deadline import Deadline


def test_a_time_in_which_nobody_ran_leaves_what_was_left_and_any_other_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    answer, turn = Deadline(10.0), Deadline(60.0, 15.0)
    for passed, lefts in ((4.0, (6.0, 56.0)), (70.0, (6.0, 56.0)), (5.5, (0.5, 50.5)), (1.0, (-0.5, 49.5)), (15.0, (-0.5, 34.5))):
        now += passed
        assert (answer.left(), turn.left()) == lefts

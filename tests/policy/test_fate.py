"""When a foreground pyworker ends, and how: a table."""

from __future__ import annotations

import pytest

from pyworker.policy.fate import AppEnd, fate

GOING = AppEnd("going")
FAILING = AppEnd("failing")
FAILED = AppEnd("failed")
UNUSABLE = AppEnd("unusable")
WAITS = AppEnd("waits")


def finished(*codes: int) -> AppEnd:
    return AppEnd("finished", codes)


@pytest.mark.parametrize(
    ("apps", "code"),
    [
        ([GOING], None),
        ([GOING, FAILED], None),
        ([FAILING], 1),
        ([GOING, UNUSABLE, finished(0)], None),
        ([FAILED], 1),
        ([FAILED, finished(0)], 1),
        ([UNUSABLE], 78),
        ([UNUSABLE, FAILED], 78),
        ([finished(0)], 0),
        ([finished(0, 0)], 0),
        ([finished(0), finished(0)], 0),
        ([finished(0, 3)], 1),
        ([finished(3), finished(0)], 1),
        ([finished()], 0),
        ([WAITS, GOING], None),
        ([WAITS, FAILING], None),
        ([WAITS, FAILED], 1),
        ([WAITS, finished(3)], 1),
        ([WAITS, WAITS, finished(0)], 1),
        ([WAITS, UNUSABLE], 78),
        ([], 0),
    ],
)
def test_the_end_of_all_apps_is_the_exit_code(apps: list[AppEnd], code: int | None) -> None:
    assert fate(apps) == code


@pytest.mark.parametrize("code", range(256))
def test_a_single_job_s_code_is_passed_on(code: int) -> None:
    assert fate([finished(code)]) == code

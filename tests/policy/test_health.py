"""Health verdicts as a table."""

from __future__ import annotations

import pytest

from pyworker.config.schema import HealthConfig
from pyworker.policy.health import HealthRecord, after_check, expects

CONFIG = HealthConfig(retries=3, start_period=5.0)


def verdicts(results: list[bool], age: float = 100.0) -> list[str]:
    record, said = HealthRecord(), []
    for ok in results:
        record, verdict = after_check(record, ok, age, CONFIG)
        said.append(verdict)
    return said


def test_three_failures_in_a_row_are_sick() -> None:
    assert verdicts([False, False, False]) == ["wait", "wait", "sick"]


def test_one_pass_starts_the_count_again() -> None:
    assert verdicts([False, False, True, False, False]) == ["wait", "wait", "well", "wait", "wait"]


def test_failures_in_the_start_period_do_not_count() -> None:
    assert verdicts([False] * 5, age=1.0) == ["wait"] * 5


def test_start_period_is_over_once_a_check_has_passed() -> None:
    assert verdicts([True, False, False, False], age=1.0)[-1] == "sick"


@pytest.mark.parametrize(
    ("expect", "status", "expected"),
    [("2xx", 204, True), ("2xx", 301, False), ("200", 200, True), ("200,3xx", 302, True), ("", 200, False)],
)
def test_expected_status(expect: str, status: int, expected: bool) -> None:
    assert expects(expect, status) is expected

"""Health: when to check and what a row of answers means."""

from __future__ import annotations

import pytest

from pyworker.config.schema import HealthConfig
from pyworker.policy.health import EAGER, LATE, Health, after_check, begin, expects

CONFIG = HealthConfig(interval=10.0, retries=3)


def run(health: Health, *answers: bool | None, config: HealthConfig = CONFIG) -> Health:
    """Check at each instant that is asked for; an answer takes no time."""
    for ok in answers:
        at = health.next_at
        health = after_check(health, ok, "" if ok else "no", started_at=at, now=at, config=config)
    return health


def test_first_check_is_due_at_once_and_says_nothing_yet() -> None:
    health = begin(50.0)
    assert (health.next_at, health.verdict, health.passed) == (50.0, "unknown", False)


def test_one_success_is_enough() -> None:
    health = run(begin(0.0), True)
    assert (health.verdict, health.passed, health.next_at, health.reason) == ("ok", True, 10.0, "")


def test_failures_in_a_row_make_it_failing_and_one_success_heals() -> None:
    health = run(begin(0.0), True, False, False)
    assert (health.verdict, health.failures, health.reason) == ("ok", 2, "no")
    assert health.next_at == 30.0  # a moment's trouble is none: not sooner than after a success
    health = run(health, False)
    assert health.verdict == "failing"
    health = run(health, True)
    assert (health.verdict, health.failures) == ("ok", 0)


@pytest.mark.parametrize("start_period", [0.0, 7.0])
def test_one_that_has_never_passed_is_late_a_while_after_its_start_period(start_period: float) -> None:
    config = HealthConfig(interval=10.0, retries=3, start_period=start_period)
    health = begin(0.0)
    while health.next_at < start_period + LATE:
        health = run(health, False, config=config)
        assert health.verdict == "unknown"
    health = run(health, False, config=config)
    assert (health.verdict, health.reason) == ("late", "no")
    assert run(health, True, config=config).verdict == "ok"


def test_one_that_has_passed_is_never_late() -> None:
    assert run(begin(0.0), True, False, False).verdict == "ok"


def test_checks_that_could_not_be_made_are_no_failures_and_do_not_end_a_row_of_them() -> None:
    assert run(begin(0.0), True, None, None, None, None).verdict == "ok"
    health = run(begin(0.0), True, False, None, None, False)
    assert (health.verdict, health.failures) == ("ok", 2)
    assert run(health, None, False).verdict == "failing"
    assert run(begin(0.0), None, None, None, None).failures == 0


@pytest.mark.parametrize(
    ("answers", "late"), [([], False), ([False] * 7, True), ([False] * 70, True), ([True], False), ([True, False, False, False], False)]
)
def test_whoever_waits_is_told_of_one_that_had_the_time_to_pass_once_and_has_not(answers: list[bool], late: bool) -> None:
    assert run(begin(0.0), *answers).is_late is late


def test_success_in_between_starts_the_row_again() -> None:
    assert run(begin(0.0), True, False, False, True, False, False).verdict == "ok"


def test_after_the_first_success_each_failure_counts_however_close_to_the_one_before() -> None:
    health = run(begin(0.0), True)
    for started_at, now in ((10.0, 15.0), (20.0, 20.0)):  # a time-out, then a refusal
        health = after_check(health, False, "no", started_at=started_at, now=now, config=CONFIG)
    assert health.failures == 2


def test_before_the_first_success_checks_are_frequent_but_count_once_an_interval() -> None:
    health = run(begin(0.0), False)
    assert health.next_at == EAGER
    health = run(health, *[False] * 10)
    assert (health.failures, health.verdict) == (1, "late")
    health = run(health, *[False] * 30)
    assert health.verdict == "failing"
    assert 2 * CONFIG.interval <= health.next_at - EAGER <= 2 * CONFIG.interval + 1


def test_before_the_first_success_no_failure_counts_sooner_than_an_interval_after_the_one_before() -> None:
    health = run(begin(100.0), *[False] * 30)  # the last at 114.5
    assert (health.failures, health.counted_at) == (2, 110.0)


def test_failures_in_the_start_period_do_not_count() -> None:
    config = HealthConfig(interval=1.0, retries=1, start_period=30.0)
    health = run(begin(100.0), *[False] * 59, config=config)
    assert (health.verdict, health.failures) == ("unknown", 0)
    assert run(health, *[False] * 4, config=config).verdict == "failing"


def test_start_period_ends_with_the_first_success() -> None:
    config = HealthConfig(interval=1.0, retries=1, start_period=30.0)
    assert run(begin(0.0), True, False, config=config).verdict == "failing"


def test_slow_answer_is_not_followed_at_once_by_the_next_check() -> None:
    config = HealthConfig(interval=2.0, timeout=3.0)
    health = after_check(begin(0.0), True, "", started_at=0.0, now=3.0, config=config)
    assert health.next_at == 4.0


@pytest.mark.parametrize(
    ("expect", "status", "fits"),
    [
        ("2xx", 200, True),
        ("2xx", 299, True),
        ("2xx", 302, False),
        ("200", 200, True),
        ("200", 204, False),
        ("2xx, 3XX", 302, True),
        ("2xx,404", 404, True),
        ("", 200, False),
        ("2x", 200, False),
    ],
)
def test_expected_status_is_a_list_of_patterns(expect: str, status: int, fits: bool) -> None:
    assert expects(expect, status) is fits

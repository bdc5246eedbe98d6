"""The limiter: against a small model, and the table of known situations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.config.schema import RestartConfig
from pyworker.policy.restart import (
    CLEAR,
    Record,
    after_helper_death,
    after_refusal,
    after_unstable_death,
    is_stable,
    wants_replacement,
)

CONFIG = RestartConfig()


def deaths_at(times: list[float], config: RestartConfig = CONFIG) -> Record:
    record = CLEAR
    for t in times:
        record = after_unstable_death(record, t, config, jitter=0.0)
    return record


def test_first_delay_is_a_tenth_of_a_second_and_doubles() -> None:
    delays = [deaths_at([0.0] * n).next_at for n in range(1, 10)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6])


def test_delay_is_capped_at_thirty_seconds() -> None:
    far_apart = [i * 100.0 for i in range(2000)]
    record = deaths_at(far_apart)
    assert record.next_at - far_apart[-1] == pytest.approx(30.0)
    assert not record.failed


def test_jitter_takes_off_at_most_a_quarter() -> None:
    assert after_unstable_death(CLEAR, 0.0, CONFIG, jitter=1.0).next_at == pytest.approx(0.075)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_a_fast_loop_is_called_failed_whatever_the_jitter(jitter: float) -> None:
    now, record = 0.0, CLEAR
    for _ in range(CONFIG.max_restarts):
        assert not record.failed
        now = max(now, record.next_at) + 0.5
        record = after_unstable_death(record, now, CONFIG, jitter=jitter)
    assert record.failed


def test_tenth_death_in_the_window_fails_and_probes_every_retry() -> None:
    record = deaths_at([float(i) for i in range(9)])
    assert not record.failed
    record = after_unstable_death(record, 9.0, CONFIG, jitter=0.5)
    assert record.failed
    assert record.next_at == 9.0 + 60.0
    again = after_unstable_death(record, 69.0, CONFIG, jitter=0.5)
    assert again.failed
    assert again.next_at == 129.0
    assert not again.permanent


@pytest.mark.parametrize("before", [[], [0.0]])
def test_what_is_waited_between_the_deaths_of_the_window_makes_it_so_much_longer(before: list[float]) -> None:
    config = RestartConfig(max_restarts=3, window=10.0)
    first = 100.0
    waited = 0.3 if not before else 0.6  # 0.1 + 0.2, or 0.2 + 0.4: those between the last three deaths
    assert deaths_at([*before, first, first + 5, first + 9.99 + waited], config).failed
    assert not deaths_at([*before, first, first + 5, first + 10.01 + waited], config).failed


@pytest.mark.parametrize("retry", [0.0, 60.0])
def test_a_helper_that_dies_again_and_again_is_tried_ever_more_seldom_and_for_ever(retry: float) -> None:
    config = RestartConfig(retry=retry, max_restarts=3)
    now, record, delays = 0.0, CLEAR, []
    for _ in range(12):
        record = after_helper_death(record, now, now, config, jitter=0.0)
        delays.append(record.next_at - now)
        now = record.next_at
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0])
    assert after_helper_death(record, now, now + config.min_uptime, config, jitter=0.0) == CLEAR


def test_retry_of_zero_gives_up_for_good() -> None:
    config = RestartConfig(retry=0.0)
    assert not deaths_at([float(i) for i in range(9)], config).permanent
    assert deaths_at([float(i) for i in range(10)], config).permanent


def test_death_before_ready_is_unstable_however_long_it_took() -> None:
    assert not is_stable(None, 1000.0, CONFIG)
    assert not is_stable(5.0, 14.9, CONFIG)
    assert is_stable(5.0, 15.0, CONFIG)


def test_refusal_is_permanent_whatever_dies_after_it() -> None:
    refused = after_refusal(CLEAR)
    assert refused.permanent
    assert refused.deaths == ()  # it is no restart
    assert after_unstable_death(refused, 2.0, CONFIG, jitter=0.0).permanent
    assert not Record(permanent=True).is_clear


def test_a_record_of_one_death_is_not_clear_and_that_of_none_is() -> None:
    assert CLEAR.is_clear
    assert not deaths_at([1.0]).is_clear
    assert not deaths_at([1.0]).permanent


def test_without_a_retry_only_a_failed_app_is_given_up() -> None:
    assert not deaths_at([1.0, 2.0], RestartConfig(retry=0.0)).permanent


@pytest.mark.parametrize(
    ("policy", "clean", "expected"),
    [
        ("always", True, True),
        ("always", False, True),
        ("on-failure", True, False),
        ("on-failure", False, True),
        ("never", True, False),
        ("never", False, False),
    ],
)
def test_policy_says_who_is_replaced(policy: str, clean: bool, expected: bool) -> None:
    assert wants_replacement(RestartConfig(policy=policy), clean=clean) is expected  # type: ignore[arg-type]


def starts_in_an_hour(lives: float, uptime_before: float = 0.0) -> tuple[int, float | None]:
    """Simulate one worker that dies `lives` seconds after each start; return (starts, when it failed)."""
    now, record, starts, failed_at = uptime_before, CLEAR, 0, None
    end = uptime_before + 3600.0
    while now < end:
        starts += 1
        now += lives
        record = after_unstable_death(record, now, CONFIG, jitter=0.0)
        if record.failed and failed_at is None:
            failed_at = now - uptime_before
        now = max(now, record.next_at)
    return starts, failed_at


def back_after_an_outage(outage: float) -> float:
    """Simulate one worker that dies 0.3 s after each start until `outage` is over; return how long it is down then."""
    now, record = 0.0, CLEAR
    while now < outage:
        now += 0.3
        record = after_unstable_death(record, now, CONFIG, jitter=0.0)
        now = max(now, record.next_at)
    return now - outage


# ten deaths within the window of 60 s and the 51 s that are waited between them
@pytest.mark.parametrize(("lives", "starts", "failed_after"), [(0.3, 68, 54.1), (3.0, 65, 81.1), (6.6, 62, 117.1), (7.0, 104, None)])
def test_golden_starts_in_an_hour(lives: float, starts: int, failed_after: float | None) -> None:
    found, failed_at = starts_in_an_hour(lives)
    assert found == starts
    assert failed_at == (None if failed_after is None else pytest.approx(failed_after, abs=0.06))


@pytest.mark.parametrize(("outage", "down"), [(60.0, 54.0), (1200.0, 59.8)])
def test_golden_time_until_it_is_back_after_an_outage(outage: float, down: float) -> None:
    assert back_after_an_outage(outage) == pytest.approx(down, abs=0.5)
    assert back_after_an_outage(outage) <= CONFIG.retry + 0.3


def test_an_hour_of_health_does_not_disarm_the_limiter() -> None:
    assert starts_in_an_hour(0.3, uptime_before=3600.0) == pytest.approx(starts_in_an_hour(0.3))


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.floats(0.0, 40.0), max_size=30), st.integers(1, 12))
def test_limiter_is_the_model(gaps: list[float], limit: int) -> None:
    config = RestartConfig(max_restarts=limit)
    record, now = CLEAR, 0.0
    history: list[float] = []
    tripped = False
    for gap in gaps:
        now += gap
        record = after_unstable_death(record, now, config, jitter=0.0)
        history.append(now)
        waited = sum([0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, *[30.0] * 30][max(1, len(history) - limit + 1) : len(history)])
        tripped = tripped or len([t for t in history if t > now - config.window - waited]) >= limit
        assert record.failed is tripped
        expected = config.retry if tripped else min(30.0, 0.1 * 2 ** (len(history) - 1))
        assert record.next_at == pytest.approx(now + expected)

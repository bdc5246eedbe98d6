from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.protocol.figures import Totals, bound, error_share, quantile, totals_of
from pyworker.protocol.scoreboard import LATENCY_BUCKETS

EMPTY = (0,) * LATENCY_BUCKETS


def bucket_of(time_us: int) -> int:
    return min(time_us.bit_length(), LATENCY_BUCKETS - 1)


def histogram(times_us: list[int]) -> tuple[int, ...]:
    found = [0] * LATENCY_BUCKETS
    for time in times_us:
        found[bucket_of(time)] += 1
    return tuple(found)


def test_without_requests_there_is_no_quantile_and_no_share() -> None:
    assert quantile(EMPTY, 0.5) is None
    assert error_share((3, 0, 0, 0, 0)) is None  # 1xx are no answers


@given(st.lists(st.integers(1, 2**29), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantile_is_in_the_bucket_of_the_true_one(times: list[int], share: float) -> None:
    found = quantile(histogram(times), share)
    rank = max(1, -(-len(times) * share // 1))
    bucket = bucket_of(sorted(times)[int(rank) - 1])
    assert found is not None
    assert (bound(bucket - 1) if bucket else 0.0) <= found <= bound(bucket)


def test_quantiles_grow_with_the_share() -> None:
    rng = random.Random(1)
    buckets = histogram([rng.randrange(1, 10**7) for _ in range(500)])
    found = [quantile(buckets, share / 100) for share in range(101)]
    assert found == sorted(found, key=lambda v: v or 0.0)


def test_the_last_bucket_answers_with_its_lower_bound() -> None:
    buckets = (*(0,) * (LATENCY_BUCKETS - 1), 4)
    assert quantile(buckets, 0.99) == bound(LATENCY_BUCKETS - 2)


def test_what_was_answered_in_so_much_time_is_told_per_second() -> None:
    requests, p50, p99, errors = Totals(100, (0, 90, 0, 0, 10), 150_000, histogram([1500] * 100)).over(2.0)
    assert (requests, errors) == (50.0, 0.1)
    assert (p50, p99) == pytest.approx((1024e-6 * 1.5, 1024e-6 * 1.99))  # of the bucket from 1,024 to 2,048 µs


def test_error_share_is_of_final_answers() -> None:
    assert error_share((50, 90, 5, 3, 2)) == pytest.approx(0.02)


def test_a_difference_is_never_below_nothing() -> None:
    old = Totals(10, (0, 9, 0, 0, 1), 500, histogram([5] * 10))
    assert Totals(12, (0, 11, 0, 0, 1), 600, histogram([5] * 12)).since(old) == Totals(
        2, (0, 2, 0, 0, 0), 100, histogram([5] * 2)
    )
    assert Totals(0, (0,) * 5, 0, EMPTY).since(old) == Totals(0, (0,) * 5, 0, EMPTY)


@pytest.mark.parametrize("http", [None, 3, {}, {"status": {}, "latency_sum_s": 0, "latency_buckets": []}])
def test_a_document_of_another_version_has_no_totals(http: object) -> None:
    assert totals_of({"requests": 3, "http": http}) is None


def test_totals_are_read_from_the_document_of_ps() -> None:
    status = {"1xx": 0, "2xx": 2, "3xx": 0, "4xx": 0, "5xx": 1}
    http = {"status": status, "latency_sum_s": 0.25, "latency_buckets": list(EMPTY)}
    assert totals_of({"requests": 3, "http": http}) == Totals(3, (0, 2, 0, 0, 1), 250_000, EMPTY)

"""A worker's share of a limited machine."""

from __future__ import annotations

import pytest

from pyworker.policy.memory import OWN, share, whole


@pytest.mark.parametrize("limit", [64 * 2**20, 256 * 2**20, 2**30, 2**36])
@pytest.mark.parametrize("workers", [0, 1, 2, 7, 64])
def test_all_workers_and_one_more_fit_into_the_limit(limit: int, workers: int) -> None:
    assert 0 < share(limit, workers) * (workers + 1) <= limit


def test_what_pyworker_itself_needs_is_left_to_it() -> None:
    assert share(2**30, 3) == (2**30 - OWN) // 4


def test_a_small_limit_leaves_half_of_it_to_the_workers() -> None:
    assert share(128 * 2**20, 1) == 32 * 2**20


def test_the_whole_of_which_a_limit_is_the_share() -> None:
    assert share(whole(2**28, 4), 4) == 2**28

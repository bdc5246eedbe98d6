"""Who gets the next connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.policy import balance


@pytest.mark.parametrize(
    ("loads", "after", "chosen"),
    [
        ([0], -1, 0),
        ([3, 1, 2], -1, 1),
        ([1, 1, 1], -1, 0),
        ([1, 1, 1], 0, 1),
        ([1, 1, 1], 2, 0),
        ([1, 0, 0], 1, 2),
        ([0, 5, 5], 0, 0),
        ([2, 1, 1, 1], 3, 1),
    ],
)
def test_the_fewest_win_and_equals_take_turns(loads: list[int], after: int, chosen: int) -> None:
    assert balance.least_loaded(loads, after) == chosen


@given(st.integers(1, 9), st.integers(1, 200))
def test_a_burst_of_lasting_connections_is_spread_evenly(workers: int, connections: int) -> None:
    loads, turn = [0] * workers, -1
    for _ in range(connections):
        turn = balance.least_loaded(loads, turn)
        loads[turn] += 1
    assert max(loads) - min(loads) <= 1


@given(st.integers(0, 2**60), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_worker_that_lies_is_believed_within_what_it_was_given(handed: int, accepted: int, opened: int) -> None:
    assert 0 <= balance.open_connections(handed, accepted, opened) <= handed


@pytest.mark.parametrize(
    ("handed", "accepted", "opened", "load"),
    [(10, 10, 3, 3), (10, 8, 1, 3), (10, 9, 0, 1), (10, 9, 1, 2), (10, 10, 0, 0), (0, 0, 0, 0)],
    ids=["all taken", "two on their way", "one on its way", "seen between its two writes", "all closed", "new"],
)
def test_connections_on_their_way_count_as_open(handed: int, accepted: int, opened: int, load: int) -> None:
    assert balance.open_connections(handed, accepted, opened) == load

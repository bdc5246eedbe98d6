"""Ids of requests: each once, in one worker and among workers."""

from __future__ import annotations

import itertools

from pyworker.worker.engines import request_id
from tests.support.steps import acts_at


def test_ids_are_a_counter_behind_what_is_random() -> None:
    made = list(itertools.islice(request_id.ids(), 300))
    prefix = made[0].partition(b"-")[0]
    assert made == [b"%b-%06x" % (prefix, n) for n in range(300)]
    assert all(map(request_id.acceptable, made))


def test_two_workers_make_different_ids() -> None:
    assert next(request_id.ids()) != next(request_id.ids())


def test_ids_go_on_where_the_handler_of_a_signal_has_raised() -> None:
    new_id = request_id.ids().__next__
    step = next(step for step in itertools.count(1) if not acts_at(step, lambda: [new_id() for _ in range(300)]))
    assert step > 1
    assert new_id() != new_id()

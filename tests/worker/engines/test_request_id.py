"""Ids of requests: each once, in one worker and among workers."""

from __future__ import annotations

import itertools

from pyworker.worker.engines import request_id


def test_ids_count_on_past_the_digits_that_are_formatted_ahead() -> None:
    made = list(itertools.islice(request_id.ids(), 70000))
    prefix = made[0].partition(b"-")[0]
    assert made == [b"%b-%06x" % (prefix, n) for n in range(70000)]
    assert all(map(request_id.acceptable, made))


def test_two_workers_make_different_ids() -> None:
    assert next(request_id.ids()) != next(request_id.ids())

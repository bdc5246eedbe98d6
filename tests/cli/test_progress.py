from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyworker.cli.progress import Board, flat, plain
from pyworker.cli.render import Look
from pyworker.protocol.events import TYPES
from tests.support.fake_control import event

PLAIN = Look(tty=True, color=False, ascii=False, width=0)


def board(*events: Any) -> Board:
    found = Board()
    for progress in events:
        found.apply(progress.event, 100.0)
    return found


def test_the_one_before_leaves_the_row_to_its_successor() -> None:
    found = board(
        event("api", 2, "worker_starting", generation=7, pid=11),
        event("api", 2, "worker_ready", generation=7, pid=11, took_s=0.5),
        event("api", 2, "worker_draining", generation=7, pid=9, reason="restart"),
    )
    assert found.lines(100.0, PLAIN, 10) == ["  api.2  ✓ ready     0.50s    pid 11   old pid 9 drains"]


def test_a_worker_that_is_stopped_for_good_says_so() -> None:
    found = board(
        event("api", 1, "worker_draining", generation=7, pid=9, reason="stop"),
        event("api", 1, "worker_stopped", generation=7, pid=9, took_s=1.25, requests=4, cancelled=0, killed=False),
    )
    assert found.lines(100.0, PLAIN, 10) == ["  api.1  ○ stopped   1.2s"]


def test_what_tells_nothing_of_how_far_a_worker_is_makes_no_row() -> None:
    found = board(
        event("api", 2, "worker_stopping", by="deploy"),
        event("api", 2, "worker_message", generation=7, pid=9, message="hello", size=7, cut=False),
    )
    found.apply({"app": "api", "worker": 2, "type": "worker_of_the_next_version", "data": {}}, 100.0)
    assert found.lines(100.0, PLAIN, 10) == []


def test_a_worker_that_was_never_born_does_not_stop() -> None:
    left = event("api", 1, "worker_stopped", generation=7, pid=0, took_s=0.0, requests=0, cancelled=0, killed=False)
    assert plain(left.event, board()) == ""


def test_a_worker_that_had_nothing_to_finish_is_not_said_to_have_served_nothing() -> None:
    def stopped(requests: int) -> str:
        left = event("api", 1, "worker_stopped", generation=7, pid=9, took_s=0.5, requests=requests, cancelled=0, killed=False)
        return plain(left.event, board())

    assert (stopped(0), stopped(3)) == ("api.1 stopped 0.5s pid=9", "api.1 stopped 0.5s pid=9 requests=3")


def test_a_worker_that_is_ready_before_the_commit_has_replaced_nobody_yet() -> None:
    """A command with a port cannot be held: it accepts before the rest of its generation is there."""
    begun = (
        event("api", None, "reload_started", **{"from": 1, "to": 2}),
        event("api", 1, "worker_starting", generation=2, pid=11),
        ready := event("api", 1, "worker_ready", generation=2, pid=11, took_s=0.5),
    )
    assert board(*begun).lines(100.0, PLAIN, 10) == ["  api.1  1 → 2  ✓ ready     0.50s    pid 11"]
    assert plain(ready.event, board(*begun)) == "api gen=2 worker=1 ready 0.50s pid=11"
    committed = board(*begun, event("api", None, "reload_committed", **{"from": 1, "to": 2}))
    assert committed.lines(100.0, PLAIN, 10) == ["  api.1  1 → 2  ✓ replaced  0.50s    pid 11"]
    assert plain(ready.event, committed) == "api gen=2 worker=1 replaced ready=0.50s pid=11"


def test_the_row_of_a_command_whose_old_worker_leaves_first_is_its_successors() -> None:
    found = board(
        event("api", None, "reload_started", **{"from": 1, "to": 2}),
        event("api", 1, "worker_draining", generation=1, pid=9, reason="replaced by generation 2"),
    )
    assert found.lines(100.0, PLAIN, 10) == ["  api.1  1 → 2  ⠋ starting  0.0s     old pid 9 drains"]


def test_a_slot_that_stays_empty_has_no_row_at_the_end() -> None:
    found = board(
        event("api", None, "app_started", generation=7, workers=2, scheduled=False, listen=[]),
        event("api", 1, "worker_starting", generation=7, pid=11),
        event("api", 3, "worker_starting", generation=7, pid=13),
    )
    found.drop_unborn("api")
    assert [row.worker for row in found.rows.values()] == [1, 3]


def test_a_scale_that_another_one_adds_to_goes_on_from_the_first_number() -> None:
    found = board(*(event("api", None, "scaled", **{"from": n, "to": n + 1}) for n in (2, 3)))
    assert found.scaled == {"api": (2, 4)}


def test_a_long_name_leaves_room_for_the_state() -> None:
    found = board(event("payments-of-the-northern-region-in-production", 12, "worker_ready", generation=7, pid=11, took_s=0.5))
    narrow = PLAIN._replace(width=60)
    assert found.lines(100.0, narrow, 10) == ["  payments-of-the-northern-r….12  ✓ ready     0.50s    pid 11"]


def test_a_backoff_shows_its_try() -> None:
    found = board(event("api", 1, "worker_backoff", **{"try": 3, "max": 10, "delay_s": 1.6}))
    assert found.lines(100.0, PLAIN, 10)[0].endswith("try 3 of 10 in 1.6 s")


def test_a_backoff_beyond_the_limit_names_none_in_a_pipe_either() -> None:
    tried = {"type": "worker_backoff", "app": "api", "worker": 1, "data": {"try": 13, "max": 10, "delay_s": 30.0}}
    assert plain(tried, board()) == "api.1 backoff try 13 in 30.0 s"
    assert plain({**tried, "worker": None}, board()) == "api backoff try 13 in 30.0 s"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_no_event_can_break_the_view(data: st.DataObject) -> None:
    found = Board()
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(sorted(TYPES)))
        keys = data.draw(st.sets(st.sampled_from(TYPES[kind]))) if TYPES[kind] else set()
        odd: dict[str, Any] = {
            "type": kind,
            "app": data.draw(st.sampled_from(["api", "", None, 3])),
            "worker": data.draw(st.sampled_from([1, 2, None, "x", -1])),
            "data": data.draw(json_values | st.just({key: data.draw(json_values) for key in keys})),
        }
        found.apply(odd, 1.0)
        plain(odd, found)
        json.dumps(flat(odd))
        found.lines(2.0, PLAIN, 5)

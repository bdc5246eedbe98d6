"""The primary of Node's cluster as a table of what it is told and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyworker.protocol.nodecluster import (
    Action,
    Close,
    Drop,
    Leaving,
    Listening,
    Online,
    Open,
    Primary,
    Query,
    Release,
    Say,
    Watch,
)

KEY = "null:8000:4:undefined:0"


def query(seq: int = 1, **fields: Any) -> dict[str, Any]:
    message = {
        "cmd": "NODE_CLUSTER",
        "act": "queryServer",
        "index": 0,
        "data": None,
        "address": None,
        "port": 8000,
    }
    return {**message, "addressType": 4, "backlog": 0, "seq": seq, **fields}


def says(actions: list[Action]) -> list[tuple[Any, dict[str, Any]]]:
    return [(a.worker, a.message) for a in actions if isinstance(a, Say)]


def offers(actions: list[Action]) -> list[tuple[Any, Any]]:
    """Return (worker, connection) of each connection that is offered."""
    return [(a.worker, a.connection) for a in actions if isinstance(a, Say) and a.connection is not None]


def seq_of(actions: list[Action], worker: Any) -> int:
    return next(m["seq"] for w, m in reversed(says(actions)) if w == worker)


def answer(seq: int, *, accepted: bool) -> dict[str, Any]:
    return {"cmd": "NODE_CLUSTER", "ack": seq, "accepted": accepted, "seq": 99}


def cluster(*workers: str, **options: Any) -> Primary:
    primary = Primary(**options)
    for worker in workers:
        primary.received(worker, query())
    primary.opened(KEY, "::", 8000, "IPv6")
    return primary


def test_the_first_question_opens_the_listener_and_the_others_wait_for_it() -> None:
    primary = Primary()
    assert primary.received("a", query(5)) == [Open(KEY, Query("any", None, 8000, 511, False), shared=False)]
    assert primary.received("b", query(6)) == []
    actions = primary.opened(KEY, "::", 8000, "IPv6")
    sockname = {"address": "::", "family": "IPv6", "port": 8000}
    replies = [
        (w, {k: m[k] for k in ("errno", "key", "ack", "sockname")})
        for w, m in says(actions)
        if w in ("a", "b")
    ]
    assert replies == [
        ("a", {"errno": 0, "key": KEY, "ack": 5, "sockname": sockname}),
        ("b", {"errno": 0, "key": KEY, "ack": 6, "sockname": sockname}),
    ]
    assert Watch(KEY, on=True) in actions


def test_an_address_that_cannot_be_had_is_an_error_for_all_and_the_next_has_another_try() -> None:
    primary = Primary()
    primary.received("a", query(5))
    primary.received("b", query(6))
    assert [(w, m["errno"], m["ack"]) for w, m in says(primary.failed(KEY, 98))] == [
        ("a", -98, 5),
        ("b", -98, 6),
    ]
    assert isinstance(primary.received("a", query(7))[0], Open)


def test_connections_go_round_and_a_worker_waits_at_the_end_after_its_turn() -> None:
    primary = cluster("a", "b", "c")
    order = []
    for number in range(7):
        actions = primary.accepted(KEY, number)
        ((worker, connection),) = offers(actions)
        order.append(worker)
        released = primary.received(worker, answer(seq_of(actions, worker), accepted=True))
        assert Release(connection, worker) in released
    assert order == ["a", "b", "c", "a", "b", "c", "a"]


def test_nothing_is_accepted_while_no_worker_is_free() -> None:
    primary = cluster("a")
    actions = primary.accepted(KEY, 1)
    assert offers(actions) == [("a", 1)]
    assert Watch(KEY, on=False) in actions
    assert Watch(KEY, on=True) in primary.received("a", answer(seq_of(actions, "a"), accepted=True))


def test_what_a_dead_worker_had_not_taken_goes_to_the_next_one_first() -> None:
    primary = cluster("a", "b")
    primary.accepted(KEY, 1)  # a
    second = primary.accepted(KEY, 2)  # b
    primary.accepted(KEY, 3)  # waits
    assert offers(primary.lost("a")) == []
    freed = primary.received("b", answer(seq_of(second, "b"), accepted=True))
    assert offers(freed) == [("b", 1)]


def test_a_refused_connection_goes_to_another_and_is_dropped_when_all_refuse() -> None:
    primary = cluster("a", "b")
    first = primary.accepted(KEY, 1)
    second = primary.received("a", answer(seq_of(first, "a"), accepted=False))
    assert offers(second) == [("b", 1)]
    assert Drop(1) in primary.received("b", answer(seq_of(second, "b"), accepted=False))
    assert offers(primary.accepted(KEY, 2)) == [("a", 2)], "they are asked again for the next one"


def test_a_connection_that_could_not_be_handed_over_goes_to_another() -> None:
    primary = cluster("a", "b")
    primary.accepted(KEY, "c1")
    assert offers(primary.refused("a", "c1")) == [("b", "c1")]


def test_only_the_worker_that_was_offered_a_connection_can_take_it() -> None:
    primary = cluster("a", "b")
    actions = primary.accepted(KEY, 1)
    assert primary.received("b", answer(seq_of(actions, "a"), accepted=True)) == []


def test_of_two_that_a_worker_was_offered_the_one_that_could_not_be_handed_over_goes_to_another() -> None:
    primary = cluster("a", "b")
    other = "null:9000:4:undefined:0"
    for worker in ("a", "b"):
        primary.received(worker, query(port=9000))
    primary.opened(other, "::", 9000, "IPv6")
    primary.accepted(KEY, "c1")
    primary.accepted(other, "c2")
    assert offers(primary.refused("a", "c2")) == [("b", "c2")]
    assert primary.refused("a", "c3") == []


def test_while_one_waits_for_the_only_worker_that_has_not_refused_it_nothing_more_is_accepted() -> None:
    primary = cluster("a", "b")
    first = primary.accepted(KEY, 1)
    busy = primary.accepted(KEY, 2)
    assert Watch(KEY, on=True) not in primary.received("a", answer(seq_of(first, "a"), accepted=False))
    freed = primary.received("b", answer(seq_of(busy, "b"), accepted=True))
    assert offers(freed) == [("b", 1)]
    assert Watch(KEY, on=True) in freed


def test_what_comes_behind_one_that_all_have_refused_is_offered() -> None:
    primary = cluster("a", "b")
    first = primary.accepted(KEY, 1)
    primary.accepted(KEY, 2)
    primary.received("a", answer(seq_of(first, "a"), accepted=False))
    primary.accepted(KEY, 3)  # had been accepted before the pause was heard of
    left = primary.received("b", {"cmd": "NODE_CLUSTER", "act": "close", "key": KEY})
    assert Drop(1) in left
    assert offers(left) == [("a", 3)]


def test_the_listener_closes_with_its_last_worker() -> None:
    primary = cluster("a", "b")
    assert Close(KEY) not in primary.received("a", {"cmd": "NODE_CLUSTER", "act": "close", "key": KEY})
    assert Close(KEY) in primary.received("b", {"cmd": "NODE_CLUSTER", "act": "close", "key": KEY})
    assert primary.keys == ()
    assert Close(KEY) in cluster("a").lost("a")


def test_a_worker_that_closes_its_listener_is_offered_nothing_more_on_it() -> None:
    close = {"cmd": "NODE_CLUSTER", "act": "close", "key": KEY}
    primary = cluster("a", "b", "c")
    offered = primary.accepted(KEY, 1)
    primary.received("a", close)
    primary.received("a", answer(seq_of(offered, "a"), accepted=True))
    primary.received("b", close)
    busy = primary.accepted(KEY, 2)
    assert offers(busy) == [("c", 2)]
    assert offers(primary.accepted(KEY, 3)) == []


def test_where_the_last_free_worker_leaves_nothing_is_accepted() -> None:
    primary = cluster("a", "b")
    primary.accepted(KEY, 1)
    assert Watch(KEY, on=False) in primary.disconnect("b")


@pytest.mark.parametrize("end", [Primary.lost, Primary.disconnect])
def test_a_worker_that_goes_before_its_listener_is_open_is_given_nothing(end: Callable[[Primary, str], object]) -> None:
    primary = Primary()
    primary.received("a", query())
    end(primary, "a")
    assert primary.opened(KEY, "::", 8000, "IPv6") == [Close(KEY)]
    primary = Primary()
    for worker in ("a", "b"):
        primary.received(worker, query())
    end(primary, "a")
    assert {worker for worker, _ in says(primary.opened(KEY, "::", 8000, "IPv6"))} == {"b"}


def test_a_worker_that_leaves_has_nothing_opened() -> None:
    primary = Primary()
    primary.disconnect("a")
    assert primary.received("a", query()) == []
    assert primary.keys == ()


def test_the_late_answer_of_a_worker_that_is_gone_takes_nothing() -> None:
    primary = cluster("a", "b")
    offered = primary.accepted(KEY, 1)
    assert offers(primary.lost("a")) == [("b", 1)]
    assert primary.received("a", answer(seq_of(offered, "a"), accepted=True)) == []


@pytest.mark.parametrize(("accepted", "action"), [(True, Release(1, "a")), (False, Drop(1))])
def test_what_was_offered_when_its_listener_was_closed_is_taken_or_dropped_once(accepted: bool, action: Action) -> None:
    primary = cluster("a")
    offered = answer(seq_of(primary.accepted(KEY, 1), "a"), accepted=accepted)
    primary.forget(KEY)
    assert primary.received("a", offered) == [action]
    assert primary.received("a", offered) == []


def test_an_answer_is_for_what_this_worker_was_offered() -> None:
    primary = cluster("a", "b")
    seq = seq_of(primary.accepted(KEY, "c1"), "a")
    assert primary.offered("a", seq) == "c1"
    assert primary.offered("b", seq) is None
    assert [primary.offered("a", other) for other in (seq + 1, None, "x", [1])] == [None] * 4


def test_what_is_being_opened_stays_for_who_asked_for_it() -> None:
    primary = Primary()
    primary.received("a", query())
    assert primary.close() == []
    assert {worker for worker, _ in says(primary.opened(KEY, "::", 8000, "IPv6"))} == {"a"}


def test_of_a_listener_that_is_gone_by_now_nothing_stays_open() -> None:
    primary = Primary()
    assert primary.opened(KEY, "::", 8000, "IPv6") == [Close(KEY)]
    assert primary.accepted(KEY, 1) == [Drop(1)]
    assert primary.failed(KEY, 98) == []


def test_a_held_listener_outlives_a_worker_that_dies_and_its_connection_waits_for_the_successor() -> None:
    primary = cluster("a", hold=True)
    primary.accepted(KEY, 1)
    assert Close(KEY) not in primary.lost("a")
    assert offers(primary.received("b", query(9))) == [("b", 1)]


def test_a_held_listener_closes_when_its_last_worker_leaves_on_purpose() -> None:
    primary = cluster("a", hold=True)
    assert Close(KEY) in primary.disconnect("a")


def test_a_held_listener_stays_when_its_last_worker_leaves_while_others_are_expected() -> None:
    primary = cluster("a", hold=True)
    primary.expected = True
    assert Close(KEY) not in primary.disconnect("a")
    assert Close(KEY) not in primary.lost("a")
    primary.expected = False
    assert primary.close() == [Close(KEY)]


def test_what_a_dying_worker_closes_is_held_for_its_successor() -> None:
    primary = cluster("a", hold=True)
    primary.dying("a")
    assert Close(KEY) not in primary.received("a", {"cmd": "NODE_CLUSTER", "act": "close", "key": KEY})
    assert primary.keys == (KEY,)


def test_held_listeners_close_when_nobody_will_come() -> None:
    primary = cluster("a", hold=True)
    primary.accepted(KEY, 1)
    primary.lost("a")
    assert primary.close() == [Close(KEY), Drop(1)]


def test_a_listener_that_is_forgotten_is_closed_with_what_waits() -> None:
    primary = cluster("a", hold=True)
    primary.expected = True
    primary.accepted(KEY, "one")
    primary.lost("a")
    assert primary.forget(KEY) == [Close(KEY), Drop("one")]
    assert primary.forget(KEY) == []
    assert primary.keys == ()


def test_a_worker_that_is_asked_to_leave_gets_no_more_but_may_take_what_it_was_offered() -> None:
    primary = cluster("a", "b")
    first = primary.accepted(KEY, 1)
    assert says(primary.disconnect("a"))[0][1]["act"] == "disconnect"
    assert offers(primary.accepted(KEY, 2)) == [("b", 2)]
    assert Release(1, "a") in primary.received("a", answer(seq_of(first, "a"), accepted=True))
    assert primary.received("a", query(9)) == [], "it may not listen again"


def test_a_worker_that_leaves_by_itself_is_acknowledged() -> None:
    primary = cluster("a")
    actions = primary.received("a", {"cmd": "NODE_CLUSTER", "act": "exitedAfterDisconnect", "seq": 4})
    assert actions[0] == Leaving("a")
    assert [(w, m["ack"]) for w, m in says(actions)] == [("a", 4)]


def test_a_held_listener_closes_when_its_last_worker_ends_after_it_has_said_that_it_will() -> None:
    primary = cluster("a", hold=True)
    primary.received("a", {"cmd": "NODE_CLUSTER", "act": "exitedAfterDisconnect", "seq": 4})
    assert Close(KEY) in primary.lost("a")


def test_shared_listeners_are_handed_out() -> None:
    primary = Primary(round_robin=False)
    assert primary.received("a", query()) == [Open(KEY, Query("any", None, 8000, 511, False), shared=True)]
    (say,) = primary.opened(KEY, "::", 8000, "IPv6")
    assert isinstance(say, Say)
    assert say.listener == KEY


def test_udp_is_always_shared() -> None:
    (opened,) = Primary().received("a", query(addressType="udp4", address="127.0.0.1", flags=4))
    assert isinstance(opened, Open)
    assert opened.shared
    assert opened.query == Query("udp4", "127.0.0.1", 8000, 511, False, reuse_address=True)


def test_the_data_of_the_first_worker_is_told_to_all() -> None:
    primary = Primary()
    primary.received("a", query(data={"ticketKeys": "x"}))
    primary.opened(KEY, "::", 8000, "IPv6")
    assert says(primary.received("b", query(data={"ticketKeys": "y"})))[0][1]["data"] == {"ticketKeys": "x"}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, Query("any", None, 8000, 511, False)),
        ({"address": "127.0.0.1", "backlog": 9}, Query("tcp4", "127.0.0.1", 8000, 9, False)),
        ({"address": "::1", "addressType": 6, "flags": 1}, Query("tcp6", "::1", 8000, 511, True)),
        ({"address": "/tmp/x", "addressType": -1, "port": -1}, Query("unix", "/tmp/x", None, 511, False)),
        ({"address": "\0x", "addressType": -1, "port": -1}, Query("unix", "\0x", None, 511, False)),
        ({"backlog": "many", "flags": "all"}, Query("any", None, 8000, 511, False)),
        ({"backlog": 2**31, "port": 0}, Query("any", None, 0, 511, False)),
        ({"backlog": 1, "port": 65535, "fd": -1}, Query("any", None, 65535, 1, False)),
    ],
)
def test_questions_are_understood(fields: dict[str, Any], wanted: Query) -> None:
    (opened,) = Primary().received("a", query(**fields))
    assert isinstance(opened, Open)
    assert opened.query == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 70000},
        {"port": "80"},
        {"port": True},
        {"port": 65536},
        {"port": None},
        {"address": 5},
        {"address": "x" * 5000},
        {"address": "\ud800"},
        {"address": "a\0b"},
        {"addressType": -1, "address": None},
        {"addressType": -1, "address": "a\0b"},
        {"fd": 3},
    ],
)
def test_questions_that_make_no_sense_are_answered_with_an_error(fields: dict[str, Any]) -> None:
    primary = Primary()
    (say,) = primary.received("a", query(**fields))
    assert isinstance(say, Say)
    assert say.message["errno"] < 0
    assert say.message["ack"] == 1
    assert primary.keys == ()


def test_a_key_can_be_passed_on_whatever_it_is_made_of() -> None:
    (opened,) = Primary().received("a", query(index="\ud800"))
    assert isinstance(opened, Open)
    assert opened.key == "null:8000:4:undefined:?"


@pytest.mark.parametrize(
    "message",
    [
        {"cmd": "NODE_HANDLE", "act": "online"},
        {"cmd": "NODE_CLUSTER"},
        {"cmd": "NODE_CLUSTER", "act": 5},
        {"cmd": "NODE_CLUSTER", "act": "nothing"},
        {"cmd": "NODE_CLUSTER", "act": "close"},
        {"cmd": "NODE_CLUSTER", "act": "close", "key": ["x"]},
        {"cmd": "NODE_CLUSTER", "act": "queryServer"},
        {"cmd": "NODE_CLUSTER", "ack": 12345, "accepted": True},
    ],
)
def test_what_means_nothing_is_ignored(message: dict[str, Any]) -> None:
    assert cluster("a").received("a", message) == []


def test_reports_of_a_worker_are_passed_on() -> None:
    primary = Primary()
    assert primary.received("a", {"cmd": "NODE_CLUSTER", "act": "online"}) == [Online("a")]
    message = {"cmd": "NODE_CLUSTER", "act": "listening", "address": None, "port": 8000, "addressType": 4}
    assert primary.received("a", message) == [Listening("a", None, 8000, 4, None)]


def test_what_a_worker_that_was_leaving_had_not_taken_goes_to_another_when_it_dies() -> None:
    primary = cluster("a", "b")
    primary.accepted(KEY, 1)
    primary.disconnect("a")
    assert offers(primary.lost("a")) == [("b", 1)]


def test_what_a_worker_had_not_taken_is_dropped_when_it_dies_after_its_listener_was_closed() -> None:
    primary = cluster("a")
    primary.accepted(KEY, 1)
    assert Close(KEY) in primary.received("a", {"cmd": "NODE_CLUSTER", "act": "close", "key": KEY})
    assert primary.lost("a") == [Drop(1)]

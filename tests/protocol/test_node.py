"""Node's channel: lines, descriptors, acknowledgements. No socket is opened: numbers stand for descriptors."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.protocol.node import (
    MAX_DEPTH,
    MAX_RETRANSMISSIONS,
    Event,
    Handle,
    Internal,
    Link,
    Malformed,
    Message,
    MessageError,
    NotReceived,
    Sent,
    Stray,
    check_message,
)
from tests.support.steps import acts_at

ACK = b'{"cmd":"NODE_HANDLE_ACK"}\n'
NACK = b'{"cmd":"NODE_HANDLE_NACK"}\n'


def line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def handle_line(message: Any = None, kind: str = "net.Native", **notes: Any) -> bytes:
    return line({"cmd": "NODE_HANDLE", "type": kind, **notes, "msg": message})


def drain(link: Link) -> tuple[list[tuple[bytes, int]], list[Event]]:
    """Write all that may be written, whole."""
    frames: list[tuple[bytes, int]] = []
    events: list[Event] = []
    while (frame := link.to_write()) is not None:
        frames.append((bytes(frame.data), frame.fd))
        events += link.written(len(frame.data))
    return frames, events


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(JSON, max_size=6), st.lists(st.integers(1, 40), max_size=60))
def test_messages_arrive_whole_and_in_order_however_the_stream_is_cut(values: list[Any], cuts: list[int]) -> None:
    sender, receiver = Link(), Link()
    for value in values:
        sender.send(value)
    stream = b"".join(data for data, _ in drain(sender)[0])
    events: list[Event] = []
    for cut in cuts:
        events += receiver.feed(stream[:cut])
        stream = stream[cut:]
    events += receiver.feed(stream)
    assert events == [Message(value) for value in values]


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 20), max_size=3))
def test_nothing_that_a_peer_sends_makes_it_raise_and_no_descriptor_is_forgotten(data: bytes, fds: list[int]) -> None:
    link = Link(max_line=100)
    found = list(fds)
    for event in [*link.feed(data, fds), *link.feed(b"\n\n")]:
        if isinstance(event, Stray):
            for fd in event.fds:
                found.remove(fd)
        elif isinstance(event, (Message, Internal)) and event.handle is not None:
            found.remove(event.handle.fd)
    assert found == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"nonsense\n", "no JSON"),
        (b"\xff\xfe\n", "no JSON"),
        (b"[" * 90 + b"\n", "no JSON"),
        (b"NaN\n", "not a number"),
        (b'{"a":[-Infinity]}\n', "not a number"),
        (b"1e999\n", "not a number"),
        (b'"' + b"x" * 200 + b'"\n', "more than 100 bytes"),
        (line({"cmd": "NODE_HANDLE", "msg": 1}), "without a type"),
        (ACK, "acknowledgement of nothing"),
        (NACK, "acknowledgement of nothing"),
    ],
)
def test_a_malformed_line_is_reported_and_the_next_one_read(data: bytes, reason: str) -> None:
    first, second = Link(max_line=100).feed(data + b"7\n")
    assert isinstance(first, Malformed)
    assert reason in first.reason
    assert second == Message(7)


def test_a_message_is_as_deep_as_those_who_walk_through_it_can_go() -> None:
    link = Link()
    for depth, kind in ((MAX_DEPTH, Message), (MAX_DEPTH + 1, Malformed), (600, Malformed), (100_000, Malformed)):
        assert [type(e) for e in link.feed(b"[" * depth + b"]" * depth + b"\n")] == [kind]
        assert [type(e) for e in link.feed(b'{"a":[' * (depth // 2) + b"[]" * (depth % 2) + b"]}" * (depth // 2) + b"\n")] == [kind]
    assert [type(e) for e in link.feed(b"[" + b"[]," * MAX_DEPTH + b"{}]\n")] == [Message]


def test_a_line_that_is_too_long_is_not_kept_while_it_comes() -> None:
    link = Link(max_line=100)
    for _ in range(50):
        assert link.feed(b"x" * 90) == []
    assert sum(map(len, link._parts)) <= 100
    first, second = link.feed(b'5\n"next"\n')
    assert isinstance(first, Malformed), "its end is no message either"
    assert second == Message("next")


def test_a_line_that_comes_in_parts_is_taken_however_much_came_before_it() -> None:
    link = Link(max_line=100)
    for number in range(100):
        assert link.feed(b'"half') == []
        assert link.feed(b' and half %d"\n' % number) == [Message(f"half and half {number}")]


def test_empty_lines_are_nothing() -> None:
    assert Link().feed(b"\n  \n\r\n5\r\n") == [Message(5)]


def test_messages_of_nodes_own_machinery_are_told_apart() -> None:
    values: list[Any] = [
        {"cmd": "NODE_CLUSTER", "act": "online"},
        {"cmd": "NODE_"},
        {"cmd": "restart"},
        {"cmd": 5},
        "NODE_X",
        [1],
    ]
    kinds = [type(e) for v in values for e in Link().feed(line(v))]
    assert kinds == [Internal, Message, Message, Message, Message, Message]


# ---- descriptors that come ---------------------------------------------------------------------------
def test_a_descriptor_comes_with_its_message_and_is_acknowledged() -> None:
    link = Link()
    events = link.feed(handle_line({"a": 1}, "net.Socket", key="k"), [7])
    assert events == [Message({"a": 1}, Handle("net.Socket", 7, {"key": "k"}))]
    assert drain(link)[0] == [(ACK, -1)]


def test_an_internal_message_with_a_descriptor_is_internal() -> None:
    inner = {"cmd": "NODE_CLUSTER", "act": "newconn"}
    assert Link().feed(handle_line(inner), [3]) == [Internal(inner, Handle("net.Native", 3, {}))]


def test_a_descriptor_belongs_to_the_line_whose_bytes_it_came_with() -> None:
    link = Link()
    whole = handle_line("mine")
    # plain bytes before it, in the same read; its line ends in a later one
    assert link.feed(b"1\n2\n" + whole[:5], [7]) == [Message(1), Message(2)]
    assert link.feed(whole[5:]) == [Message("mine", Handle("net.Native", 7, {}))]


def test_a_lost_descriptor_is_not_replaced_by_the_next_one() -> None:
    link = Link()
    assert link.feed(handle_line("lost")) == []
    assert drain(link)[0] == [(NACK, -1)]
    assert link.feed(handle_line("second"), [8]) == [Message("second", Handle("net.Native", 8, {}))]


def test_descriptors_that_no_line_claims_are_given_back_to_be_closed() -> None:
    link = Link()
    assert link.feed(b"1\n", [4]) == [Message(1), Stray((4,))]
    assert link.feed(handle_line("x"), [5, 6]) == [Message("x", Handle("net.Native", 5, {})), Stray((6,))]
    assert link.feed(line({"cmd": "NODE_HANDLE"}), [9])[-1] == Stray((9,))
    link.feed(b"1", [10])
    assert link.feed(b"\n" + handle_line("y"), [11]) == [Message(1), Stray((10,)), Message("y", Handle("net.Native", 11, {}))]


def test_a_line_that_never_ends_cannot_bring_descriptors_without_end() -> None:
    link = Link()
    kept = set(range(10, 10_000))
    for fd in sorted(kept):
        for event in link.feed(b"x", [fd]):
            assert isinstance(event, Stray)
            kept -= set(event.fds)
    assert len(kept) <= 64
    assert set(link.abandon()[1]) == kept


def test_a_peer_that_takes_no_acknowledgement_is_owed_so_many_at_most() -> None:
    link = Link()
    events = [event for _ in range(10_000) for event in link.feed(handle_line("lost"))]
    assert link.backlog < 64 * 1024
    assert all(isinstance(event, Malformed) for event in events)


def test_a_descriptor_of_a_line_that_never_ends_is_given_back_at_the_end() -> None:
    link = Link()
    assert link.feed(b'{"cmd":', [4]) == []
    assert link.abandon() == ([], (4,))
    assert link.abandon() == ([], ()), "nothing is closed twice"


# ---- descriptors that go -----------------------------------------------------------------------------
def test_what_follows_a_descriptor_waits_for_its_acknowledgement() -> None:
    link = Link()
    link.send("before", "t0")
    link.send_handle("with", "net.Socket", 7, "t1")
    assert link.send("after", "t2") is True
    frames, events = drain(link)
    assert [fd for _, fd in frames] == [-1, 7]
    assert events == [Sent("t0")]
    assert link.send("later") is True, "little waits, and it waits in here"
    assert link.send_handle("another", "net.Socket", 8) is False, "the caller is told to wait"
    assert link.feed(ACK) == [Sent("t1")]
    frames, events = drain(link)
    assert [fd for _, fd in frames] == [-1, 8]
    assert frames[0] == (b'"after"\n"later"\n', -1)
    assert events == [Sent("t2")]
    assert link.is_calm
    link.feed(ACK)
    assert link.is_idle


def test_it_is_idle_only_once_all_has_gone_and_been_acknowledged() -> None:
    link = Link()
    link.send("plain")
    assert not link.is_idle, "it waits"
    frame = link.to_write()
    assert frame is not None
    assert not link.is_idle, "it is being written"
    link.written(len(frame.data))
    assert link.is_idle
    link.send_handle("with", "net.Socket", 7)
    drain(link)
    assert not link.is_idle, "it is not acknowledged"
    link.feed(ACK)
    link.feed(handle_line("theirs"), [8])
    assert not link.is_idle, "an acknowledgement of ours waits"
    drain(link)
    assert link.is_idle
    assert link.backlog == 0


def test_an_acknowledgement_is_of_what_has_gone_also_where_the_send_was_ended_before_it_was_noted() -> None:
    """By an exception of a signal's handler; another thread reads the acknowledgement."""
    link = Link()
    link.send_handle("a", "net.Native", 5, "token")
    frame = link.to_write()
    assert frame is not None
    link.gone.append(len(frame.data))
    assert link.feed(ACK) == [Sent("token")]
    assert link.is_idle


def test_an_acknowledgement_of_ours_overtakes_what_waits() -> None:
    link = Link()
    link.send_handle("mine", "net.Socket", 7)
    drain(link)
    link.send("waits")
    link.feed(handle_line("theirs"), [8])
    assert drain(link)[0] == [(ACK, -1)], "or both ends wait for ever"


def test_an_acknowledgement_never_lands_inside_a_half_written_message() -> None:
    link = Link()
    link.send("0123456789")
    link.to_write()
    link.written(4)
    link.feed(handle_line("theirs"), [8])
    frames, _ = drain(link)
    assert [data for data, _ in frames] == [b'3456789"\n', ACK]


def test_the_descriptor_goes_with_the_first_byte_only() -> None:
    link = Link()
    link.send_handle("x", "net.Socket", 7)
    frame = link.to_write()
    assert frame is not None
    assert frame.fd == 7
    link.written(3)
    rest = link.to_write()
    assert rest is not None
    assert rest.fd == -1


def test_a_descriptor_that_did_not_arrive_is_sent_again_and_given_up_in_the_end() -> None:
    link = Link()
    link.send_handle("x", "net.Socket", 7, "token")
    for _ in range(MAX_RETRANSMISSIONS):
        assert [fd for _, fd in drain(link)[0]] == [7]
        assert link.feed(NACK) == []
    drain(link)
    assert link.feed(NACK) == [NotReceived("token")]
    assert link.is_idle
    assert link.backlog == 0


def test_the_end_of_the_channel_names_what_was_not_delivered() -> None:
    link = Link()
    link.send_handle("unacknowledged", "net.Socket", 7, "a")
    drain(link)
    link.send("queued", "b")
    assert link.abandon() == (["a", "b"], ())
    assert link.is_idle
    assert link.backlog == 0


def test_the_end_of_the_channel_names_what_was_half_written_and_nothing_more_is_written() -> None:
    link = Link()
    link.send("half written", "a")
    assert link.to_write() is not None
    link.written(4)
    link.feed(handle_line("theirs"), [8])
    assert link.abandon() == (["a"], ())
    assert link.written(5) == [], "a send that had begun before it"
    assert link.is_idle
    assert link.to_write() is None


def test_a_descriptor_that_may_not_be_sent_is_given_up_and_what_follows_it_goes() -> None:
    link = Link()
    link.send_handle("x", "net.Socket", 7, "token")
    link.send("next")
    assert link.to_write() is not None
    assert link.refused() == [NotReceived("token")]
    assert drain(link)[0] == [(b'"next"\n', -1)]
    assert link.is_idle
    assert link.backlog == 0
    assert link.send_handle("y", "net.Socket", 7), "none is under way"


def test_a_full_queue_says_slow_down() -> None:
    link = Link()
    assert link.send("x") is True
    assert link.send("x" * 70_000) is False
    drain(link)
    assert link.backlog == 0


def test_what_waits_is_counted_right_wherever_a_send_was_ended() -> None:
    for step in range(1, 1000):
        link = Link()
        has_come = acts_at(step, partial(link.send_handle, "x" * 70_000, "net.Native", 5))
        drain(link)
        link.feed(ACK)
        assert link.backlog == 0
        assert [link.send_handle(number, "net.Native", 5) for number in (1, 2)] == [True, False]
        if not has_come:
            return
    raise AssertionError("a send takes more calls than that")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_what_json_cannot_say_is_refused_by_the_sender(value: Any) -> None:
    with pytest.raises(MessageError, match="cannot be sent as JSON"):
        Link().send(value)


def test_a_message_that_is_too_long_is_refused_by_the_sender() -> None:
    with pytest.raises(MessageError, match="100 are the most"):
        Link(max_line=100).send("x" * 200)


def test_a_program_may_not_send_what_the_other_end_takes_for_its_own() -> None:
    with pytest.raises(MessageError, match="NODE_"):
        check_message({"cmd": "NODE_CLUSTER"})
    check_message({"cmd": "node"})

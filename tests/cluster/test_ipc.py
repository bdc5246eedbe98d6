"""Two ends of a channel in one process: whatever is sent in whatever order, all of it comes once, or its sender is told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.cluster import ipc
from pyworker.cluster.ipc import (
    ChannelClosedError,
    HandleNotDeliveredError,
    LoopChannel,
    Receiver,
    ThreadChannel,
)
from pyworker.unix.fds import close_all, recv_packet, refuse_fds
from tests.cluster.helpers import asynchronous, eventually, open_fds
from tests.support.steps import Rung, acts_at, keeps_locks, no_collection


class Heard(Receiver):
    """Keeps what comes. A handle is read and closed."""

    def __init__(self, on_message: Callable[[], None] = lambda: None) -> None:
        self.values: list[Any] = []
        self.inheritable: list[bool] = []
        self.errors: list[Exception] = []
        self.closed = threading.Event()
        self._then = on_message

    def on_message(self, value: Any, handle: Any) -> None:
        if handle is not None:
            self.inheritable.append(os.get_inheritable(handle.fileno()))
            content = os.pread(handle.fileno(), 20, 0).decode()
            handle.close()
            value = (value, content)
        self.values.append(value)
        self._then()

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)

    def on_closed(self) -> None:
        self.closed.set()


def numbered(number: int) -> Any:
    """An open file that holds a number."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  whoever it is sent by closes it
    file.write(b"%d" % number)
    return file


@contextlib.contextmanager
def channels() -> Iterator[tuple[ThreadChannel, ThreadChannel]]:
    """Both ends of a channel, which nobody but the test turns."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ends = ThreadChannel(ours, Heard()), ThreadChannel(theirs, Heard())
        yield ends
        for end in ends:
            end.disconnect()


# what one end does: a message of some size, a handle (kept, given away, or closed by its owner at once), a moment's rest
MESSAGE = st.tuples(st.just("message"), st.sampled_from([0, 10, 3_000, 70_000]))
HANDLE = st.tuples(st.just("handle"), st.sampled_from(["kept", "given", "closed"]))
REST = st.tuples(st.just("rest"), st.none())
STEPS = st.lists(st.one_of(MESSAGE, MESSAGE, HANDLE, REST), max_size=25)


class End:
    """One end, and what its sender was told of each thing it sent."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.sent: list[Any] = []  # as it should arrive
        self.told: dict[int, list[Exception | None]] = {}
        self.files: dict[int, tuple[Any, str]] = {}

    def do(self, step: tuple[str, Any]) -> None:
        what, how = step
        number = len(self.sent)
        self.told[number] = []
        callback = self.told[number].append
        if what == "message":
            value = [number, "x" * how]
            self.channel.send(value, callback=callback)
            self.sent.append(value)
            return
        file = numbered(number)
        self.files[number] = file, how
        self.channel.send(number, file, keep_open=how == "kept", callback=callback)
        if how == "closed":
            file.close()
        self.sent.append((number, str(number)))

    def check(self, came: list[Any], *, ended: bool) -> None:
        """Compare what the other end has heard with what was sent, and with what the sender was told."""
        assert came == self.sent[: len(came)], "in order, none twice"
        assert ended or len(came) == len(self.sent)
        for number, (error,) in self.told.items():
            assert error is None or (ended and isinstance(error, (ChannelClosedError, HandleNotDeliveredError)))
            if number not in self.files:
                continue
            file, how = self.files[number]
            assert error is not None or number < len(came), "a handle that was said to be there is there"
            assert file.closed == (how == "closed" or (how == "given" and error is None))

    def close(self) -> None:
        for file, _ in self.files.values():
            file.close()


def finished(channel: ThreadChannel) -> bool:
    """Wait for the end of its thread."""
    channel._thread.join(20)
    return not channel._thread.is_alive()


def settled(ends: list[End]) -> bool:
    return all(len(told) == 1 for end in ends for told in end.told.values())


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS)
def test_everything_comes_once_and_in_order_in_both_directions(here: list[Any], there: list[Any]) -> None:
    asyncio.run(asyncio.wait_for(exchange(here, there, None), 60))


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS, st.integers(0, 50), st.sampled_from(["disconnect", "die"]))
def test_at_an_end_in_the_middle_each_thing_has_come_or_its_sender_is_told(
    here: list[Any], there: list[Any], when: int, how: str
) -> None:
    asyncio.run(asyncio.wait_for(exchange(here, there, (when, how)), 60))


async def exchange(here: list[Any], there: list[Any], end: tuple[int, str] | None) -> None:
    """One end in a loop, the other in a thread; `there` may end after so many steps."""
    before = open_fds()
    ours, theirs = socket.socketpair()
    in_loop, in_thread = Heard(), Heard()
    first, second = End(LoopChannel(ours, in_loop)), End(ThreadChannel(theirs, in_thread))
    second.channel.start()
    loop = asyncio.get_running_loop()

    async def act(one: End, steps: list[Any]) -> None:
        for at, step in enumerate(steps):
            if one is second and end is not None and at == end[0]:
                break
            if step[0] == "rest":
                await asyncio.sleep(0.001)
                continue
            try:
                if one is first:
                    one.do(step)
                else:
                    await loop.run_in_executor(None, one.do, step)
            except ChannelClosedError:
                return
        if one is second and end is not None:
            one.channel.disconnect() if end[1] == "disconnect" else theirs.shutdown(socket.SHUT_RDWR)

    try:
        await asyncio.gather(act(first, here), act(second, there))
        if end is None:
            while not (settled([first, second]) and len(in_thread.values) == len(first.sent)):
                await asyncio.sleep(0.001)
            while len(in_loop.values) < len(second.sent):
                await asyncio.sleep(0.001)
        first.channel.disconnect()
        while not (in_loop.closed.is_set() and in_thread.closed.is_set() and settled([first, second])):
            await asyncio.sleep(0.001)
        first.check(in_thread.values, ended=end is not None)
        second.check(in_loop.values, ended=end is not None)
        for heard in (in_loop, in_thread):
            assert heard.errors == []
            assert not any(heard.inheritable), "close-on-exec when they come"
    finally:
        for one in (first, second):
            one.close()
    assert finished(second.channel)
    assert open_fds() == before


@asynchronous
async def test_a_message_that_has_half_come_when_its_receiver_disconnects_comes_whole() -> None:
    ours, theirs = socket.socketpair()
    heard = Heard()
    channel = LoopChannel(ours, heard)
    with theirs:
        theirs.send(b'"begun')
        await eventually(lambda: channel.link.offset)
        channel.disconnect()
        theirs.send(b' and ended"\n')
        await eventually(heard.closed.is_set)
    assert heard.values == ["begun and ended"]


@asynchronous
async def test_the_end_is_told_after_the_call_that_asks_for_it() -> None:
    ours, theirs = socket.socketpair()
    heard = Heard()
    channel = LoopChannel(ours, heard)
    with theirs:
        channel.disconnect()
        channel.send("x", callback=lambda error: None)
        assert not heard.closed.is_set(), "who asks for it in the next line is told, too"
        await asyncio.sleep(0)
        assert heard.closed.is_set()


def test_a_handle_may_be_closed_while_it_waits_to_be_sent() -> None:
    ours, theirs = socket.socketpair()
    heard = Heard()
    sender, receiver = ThreadChannel(ours, Receiver()), ThreadChannel(theirs, heard)
    for number in range(5):
        with numbered(number) as file:
            sender.send(number, file, keep_open=True)  # none of them is acknowledged yet
    sender.start()
    receiver.start()
    while len(heard.values) < 5:
        heard.closed.wait(0.001)
    assert heard.values == [(number, str(number)) for number in range(5)]
    sender.disconnect()
    assert heard.closed.wait(20)
    assert finished(sender)
    assert finished(receiver)


def test_a_sender_of_handles_is_told_to_slow_down_and_when_to_go_on() -> None:
    ours, theirs = socket.socketpair()
    heard = Heard()
    sender, receiver = ThreadChannel(ours, Receiver()), ThreadChannel(theirs, heard)
    sender.start()
    first, second = numbered(1), numbered(2)
    assert sender.send(1, first) is True
    assert sender.send(2, second) is False
    calm = threading.Event()
    sender.when_calm(calm.set)
    assert not calm.is_set(), "nobody has taken one"
    receiver.start()
    assert calm.wait(20)
    sender.disconnect()
    assert heard.closed.wait(20)
    assert finished(sender)
    assert finished(receiver)
    assert heard.values == [(1, "1"), (2, "2")]
    assert first.closed
    assert second.closed


def test_whoever_is_told_may_send_from_another_thread_and_wait_for_it() -> None:
    ours, theirs = socket.socketpair()
    heard = Heard()
    sender, receiver = ThreadChannel(ours, Receiver()), ThreadChannel(theirs, heard)
    sender.start()
    receiver.start()

    def told(_: Exception | None) -> None:
        other = threading.Thread(target=sender.send, args=("by the other",))
        other.start()
        other.join(20)
        assert not other.is_alive(), "nothing is locked while a callback runs"

    sender.send("first", callback=told)
    while len(heard.values) < 2:
        heard.closed.wait(0.001)
    assert heard.values == ["first", "by the other"]
    sender.disconnect()
    assert heard.closed.wait(20)
    assert finished(sender)
    assert finished(receiver)


def test_the_end_is_told_after_all_messages_whoever_closes_the_channel() -> None:
    heard: list[Any] = []

    def disconnect() -> None:
        heard.append(receiver.values[-1])
        other = threading.Thread(target=channel.disconnect)
        other.start()
        other.join()
        heard.append(receiver.closed.is_set())

    ours, theirs = socket.socketpair()
    receiver = Heard(disconnect)
    channel = ThreadChannel(theirs, receiver)
    with ours:
        ours.sendall(b"1\n2\n")
        channel.start()
        assert receiver.closed.wait(20)
    assert heard == [1, False, 2, False]
    assert finished(channel)


def test_a_handle_that_nobody_can_send_is_refused_and_nothing_is_left_of_it() -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    channel = ThreadChannel(ours, Receiver(), files=False)
    with numbered(1) as file:
        with pytest.raises(TypeError, match="Node has no way"):
            channel.send("x", file)
        channel.files = True
        with pytest.raises(ValueError, match="cannot be sent as JSON"):
            channel.send({1}, file)
    with pytest.raises(ValueError, match="closed"):
        channel.send("x", file)
    channel.disconnect()
    theirs.close()
    assert open_fds() == before


@pytest.mark.parametrize("raises", [None, Rung])
def test_the_handler_of_a_signal_may_send_or_raise_in_the_middle_of_a_send(raises: type[Rung] | None) -> None:
    if raises and keeps_locks():
        pytest.skip("this Python leaves a lock locked where a handler raises: docs/reliability.md")
    ours, theirs = socket.socketpair()
    heard = Heard()
    sender, receiver = ThreadChannel(ours, Receiver()), ThreadChannel(theirs, heard)
    receiver.start()
    rung, inside = 0, False

    def ring(*_: object) -> None:
        nonlocal rung, inside
        if inside:
            inside = False
            rung += 1
            if raises:
                raise raises
            sender.send(-rung)

    before = signal.signal(signal.SIGALRM, ring)
    sent: list[int] = []
    unsure: set[int] = set()  # whether it was sent, a send that did not return does not say
    number = 0
    with no_collection():
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        try:
            while rung < 1000:
                number += 1
                try:
                    unsure.add(number)
                    inside = True
                    sender.send(number)
                    inside = False
                    sent.append(number)
                except Rung:
                    pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert not heard.closed.is_set()
    sender.wait_sent(20, 20)
    sender.start()
    sender.disconnect()
    assert heard.closed.wait(20)
    assert finished(sender)
    assert finished(receiver)
    own = [value for value in heard.values if value > 0]
    assert own == sorted(set(own)), "in order, none of them twice"
    assert set(sent) <= set(own) <= unsure, "none is lost"
    assert [-value for value in heard.values if value < 0] == ([] if raises else [*range(1, rung + 1)])
    assert not heard.errors


def test_no_copy_of_a_handle_is_left_wherever_a_send_was_ended() -> None:
    for step in range(1, 1000):
        with channels() as (here, there), numbered(1) as file:
            open_before = open_fds()
            has_come = acts_at(step, partial(here.send, "a file", file, keep_open=True))
            with here._lock:
                here._flush()
            there._read()
            here._read()
            assert here.link.is_idle
            assert open_fds() == open_before
        if not has_come:
            return
    raise AssertionError("a send takes more calls than that")


@asynchronous
async def test_a_channel_is_closed_by_who_tries_again_wherever_that_was_ended() -> None:
    for step in itertools.count(1):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = LoopChannel(ours, Heard())
            has_come = acts_at(step, channel.disconnect, within="cluster/ipc.py")
            channel.disconnect()
            assert theirs.recv(1) == b""
            assert channel.closed
        if not has_come:
            break


def test_a_close_that_was_ended_and_is_done_again_closes_nothing_that_was_opened_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    def rung(fds: tuple[int, ...]) -> None:
        close_all(fds)
        raise Rung

    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = ThreadChannel(ours, Heard())
        with monkeypatch.context() as patch:
            patch.setattr(ipc, "close_all", rung)
            with pytest.raises(Rung):
                channel.disconnect()
        others = os.pipe()
        channel.disconnect()
        assert channel.closed
        for fd in others:
            os.close(fd)


def test_the_handler_of_a_signal_may_send_while_an_acknowledgement_is_on_its_way() -> None:
    for step in range(1, 1000):
        told: list[Exception | None] = []
        with channels() as (here, there), numbered(1) as file:
            there.send("a file", file, keep_open=True, callback=told.append)
            has_come = acts_at(step, here._read, partial(here.send, "rung"))
            there._read()
            assert told == [None]
            assert not there.receiver.errors
            if not has_come:
                return
            assert there.receiver.values == ["rung"]
    raise AssertionError("a read takes more calls than that")


def test_what_the_handler_of_a_signal_raises_in_a_read_is_not_the_end() -> None:
    for step in range(1, 1000):
        with channels() as (here, there):
            there.sock.send(b"half a message: nobody is told of it")
            has_come = acts_at(step, here._read)
            assert here.connected
            assert not here.closed
            if not has_come:
                return
    raise AssertionError("a read takes more calls than that")


def test_a_peer_that_may_be_sent_no_handles_gets_all_else() -> None:
    """So it is for a worker of another user's, whose peer is the daemon."""
    with channels() as (ours, theirs), numbered(1) as file:
        refuse_fds(theirs.sock)
        told: list[Exception | None] = []
        ours.send("one", file, callback=told.append)
        ours.send("two", callback=told.append)
        for end in (theirs, ours, theirs, ours):
            end._read()
        heard = theirs.receiver
        assert isinstance(heard, Heard)
        if heard.values != [("one", "1"), "two"]:  # Linux 6.16 and later
            assert heard.values == ["two"]
            assert isinstance(told[0], HandleNotDeliveredError)
            assert told[1:] == [None]
        assert ours.connected
        assert not file.closed


@pytest.mark.parametrize("under_way", [True, False])
def test_of_a_handle_that_is_closed_before_it_has_come_nothing_is_sent_any_more_nor_what_has_its_number(under_way: bool) -> None:
    """A worker may answer for a connection, which closes it, and then say that it has not come."""
    with channels() as (ours, theirs), numbered(1) as other:
        told: list[Exception | None] = []
        if not under_way:
            ours.send_raw("before", other, keep_open=True)
        handle = socket.socket()
        ours.send_raw("one", handle, keep_open=True, callback=told.append)
        number = handle.fileno()
        handle.close()
        close_all(recv_packet(theirs.sock, 1000, 1).fds)
        os.dup2(other.fileno(), number)
        try:
            theirs.sock.send(b'{"cmd":"NODE_HANDLE_%s"}\n' % (b"NACK" if under_way else b"ACK"))
            ours._read()
        finally:
            os.close(number)
        assert recv_packet(theirs.sock, 1000, 1) is None
        assert [type(error) for error in told] == [HandleNotDeliveredError]
        assert ours.connected

"""dispatcher/main.py: what it says of want, and what time does. What it does with connections is in test_inbox.py and test_relay.py."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
from collections.abc import Callable

import pytest

from pyworker.dispatcher.main import CALM, REST, Dispatcher
from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import SIZE, F, row_slice
from pyworker.protocol.wire import MAX_MESSAGE, decode
from pyworker.unix.fds import recv_packet, socketpair
from tests.support.pyworker import open_fds


def test_a_want_of_descriptors_that_comes_and_goes_is_one_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socketpair()
    with ours, theirs:
        dispatcher = Dispatcher(theirs, memoryview(mmap.mmap(-1, SIZE)).cast("Q"))
        waits: list[Callable[[], None]] = []

        def later(delay: float, callback: Callable[[], None]) -> None:
            if delay == CALM:
                waits.append(callback)

        monkeypatch.setattr(dispatcher.loop, "later", later)

        def said() -> list[type]:
            found = []
            while (packet := recv_packet(ours, MAX_MESSAGE, 0)) is not None:
                found.append(type(decode(d.FromDispatcher, packet.data)))
            return found

        for _ in range(2):
            dispatcher.out_of_files(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            dispatcher._resume()
        assert (said(), len(waits)) == ([d.Trouble], 1)
        waits.pop()()  # it has failed again meanwhile
        assert said() == []
        waits.pop()()
        assert said() == [d.Over]
        assert waits == []


@pytest.mark.parametrize("what", ["a listener", "a listener of Node's", "a Node worker's channel"])
def test_what_cannot_be_waited_for_now_is_waited_for_later(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def no_room(fd: int, mask: int, handler: Callable[[int], None]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ours, theirs = socketpair()
    it = socket.create_server(("127.0.0.1", 0))
    with ours, theirs, it:
        dispatcher = Dispatcher(theirs, memoryview(mmap.mmap(-1, SIZE)).cast("Q"))
        later: list[Callable[[], None]] = []
        with monkeypatch.context() as patched:
            patched.setattr(dispatcher.loop, "add", no_room)
            patched.setattr(dispatcher.loop, "later", lambda _, callback: later.append(callback))
            match what:
                case "a listener":
                    dispatcher._listeners[0] = it
                    dispatcher._open = [object()]  # type: ignore[list-item]
                    dispatcher._set_accepting()
                case "a listener of Node's":
                    dispatcher._node._listeners["key"] = it
                    dispatcher._node._set_watched("key", on=True)
                case _:
                    dispatcher._node.attach(1, it, ())
            assert not dispatcher.loop.watches(it.fileno())
        for callback in later:
            callback()
        assert dispatcher.loop.watches(it.fileno())
        packet = recv_packet(ours, MAX_MESSAGE, 0)
        assert packet is not None
        assert b"fs.epoll.max_user_watches (sysctl) is reached" in packet.data


def test_the_listeners_of_node_workers_rest_too_for_want_of_descriptors() -> None:
    ours, theirs = socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    with ours, theirs, listener:
        dispatcher = Dispatcher(theirs, memoryview(mmap.mmap(-1, SIZE)).cast("Q"))
        node, loop = dispatcher._node, dispatcher.loop
        node._listeners["key"] = listener
        node._set_watched("key", on=True)
        assert loop.watches(listener.fileno())
        dispatcher.out_of_files(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        node._set_watched("key", on=True)
        assert not loop.watches(listener.fileno())
        dispatcher._resume()
        assert loop.watches(listener.fileno())


class Still:
    """A dispatcher for which time passes when it is told to look, and its workers."""

    def __init__(self, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
        ends = (*socketpair(), *socket.socketpair())
        self._given = [stack.enter_context(end) for end in ends][-1]
        self._board = memoryview(mmap.mmap(-1, SIZE)).cast("Q")
        self.dispatcher = Dispatcher(ends[0], self._board)
        monkeypatch.setattr(self.dispatcher.loop, "later", lambda delay, callback: None)
        for slot in range(1, workers + 1):
            self.dispatcher._take(d.Inbox(slot), [end.detach() for end in socketpair()])
            self.dispatcher._take(d.Open(slot, slot, slot, "inbox"), [])
            stack.callback(self.dispatcher._inboxes[slot].close)
            stack.callback(self.take, slot)

    def give(self, count: int) -> None:
        for _ in range(count):
            self.dispatcher._deal(os.dup(self._given.fileno()))

    def take(self, slot: int) -> None:
        """Have a worker take all that it was given, and end it."""
        while (fd := self.dispatcher._inboxes[slot].take_back()) is not None:
            os.close(fd)
            self.accepted(slot)

    def accepted(self, slot: int) -> None:
        self._board[row_slice(slot)][F.ACCEPTED] += 1

    @property
    def queued(self) -> list[int]:
        return [inbox.queued() for inbox in self.dispatcher._inboxes.values()]


def test_a_worker_that_stands_still_is_given_nothing_until_it_takes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 2)
        still.give(2)
        assert still.queued == [1, 1]
        for _ in range(3):
            still.take(1)
            still.dispatcher._look()
        assert still.queued == [0, 0], "what it had was given to the other"
        for _ in range(3):
            still.give(1)
            assert still.queued == [1, 0]
            still.take(1)
            still.dispatcher._look()
        still.accepted(2)  # it goes on
        still.dispatcher._look()
        still.give(1)
        assert still.queued == [0, 1]


def test_what_nobody_else_could_take_stays_with_a_worker_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 1)
        still.give(3)
        for _ in range(3):
            still.dispatcher._look()
        assert (still.queued, [*still.dispatcher._waiting]) == ([3], [])


def test_what_cannot_be_placed_again_and_again_costs_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 2)
        still.give(400)
        still.dispatcher._take(d.Gone(1), [])
        before = open_fds(os.getpid())
        for _ in range(10):
            still.dispatcher._retry()
        assert sum(still.queued) == 400
        assert open_fds(os.getpid()) <= before


def test_a_worker_and_its_successor_in_the_slot_are_given_as_much_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 2)
        still.dispatcher._take(d.Open(3, 1, 3, "inbox"), [])
        still.give(6)
        assert still.queued == [3, 3]


def test_one_that_is_let_in_again_has_no_connections_that_others_took_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 2)
        still.give(4)
        still.dispatcher._take(d.Shut(1), [])
        assert still.queued == [0, 4]
        still.dispatcher._take(d.Open(1, 1, 1, "inbox"), [])
        assert [worker.load() for worker in still.dispatcher._open] == [0, 4]


def test_what_has_waited_for_a_worker_is_given_to_the_first_that_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 1)
        still.dispatcher._take(d.Shut(1), [])
        still.give(2)
        still.dispatcher._retry()
        still.dispatcher._take(d.Open(1, 1, 1, "inbox"), [])
        assert still.queued == [2]


def test_what_an_inbox_that_is_broken_does_not_take_goes_to_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 2)
        still.dispatcher._inboxes[1]._reader.shutdown(socket.SHUT_RD)
        still.give(3)
        assert still.queued == [0, 3]


def test_what_nobody_has_room_for_is_left_in_the_queue_of_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 1)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        still.give(400)
        stack.callback(lambda: [*map(os.close, still.dispatcher._waiting)])
        for _ in range(2):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        still.dispatcher._acceptor(listener)(listener.fileno())
        listener.accept()[0].close()


def test_a_worker_that_could_not_be_reached_rests_and_is_given_connections_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        still = Still(stack, monkeypatch, 2)
        rested: list[Callable[[], None]] = []
        monkeypatch.setattr(
            still.dispatcher.loop, "later", lambda delay, callback: rested.append(callback) if delay == REST else None
        )
        unreached = still.dispatcher._open[0]
        for _ in range(2):
            still.dispatcher.deal_again(os.dup(still._given.fileno()), unreached)
        still.give(1)
        assert still.queued == [0, 3]
        (rest_is_over,) = rested
        rest_is_over()
        still.give(3)
        assert still.queued == [3, 3]

"""A worker's side of its slot's inbox: it takes while it may, and leaves the rest to its successor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from pyworker.protocol.dispatcher import HAND_OVER, LAST
from pyworker.unix.fds import recv_packet, send_packet, socketpair
from pyworker.worker.inbox import InboxLoop
from tests.support.addresses import has_ipv6


@contextlib.contextmanager
def limit_of_descriptors(limit: Callable[[int], int]) -> Iterator[None]:
    """Have so many descriptors at most; `limit` is given the lowest number that is free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit(lowest), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Post:
    """The dispatcher's end, and what the worker has been given."""

    def __init__(self) -> None:
        self.reader, self.writer = socketpair()
        self.served: list[socket.SocketType] = []
        self.kinds: list[bool] = []
        self.addresses: list[Any] = []
        self.early: list[bool] = []

    def put(self, count: int = 1) -> None:
        for _ in range(count):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                assert send_packet(self.writer, HAND_OVER, [theirs.fileno()])

    def loop(self) -> InboxLoop:
        inbox = socket.socket(fileno=os.dup(self.reader.fileno()))
        return InboxLoop(asyncio.get_running_loop(), inbox, self.serve)

    def serve(self, connection: socket.SocketType, unix: bool, addresses: Any, early: bool) -> None:
        self.served.append(connection)
        self.kinds.append(unix)
        self.addresses.append(addresses)
        self.early.append(early)

    def left(self) -> int:
        count = 0
        while (packet := recv_packet(self.reader, 16, 1)) is not None and packet.fds:
            socket.socket(fileno=packet.fds[0]).close()
            count += 1
        return count

    def close(self) -> None:
        for each in (self.reader, self.writer, *self.served):
            each.close()


@pytest.fixture
def post() -> Iterator[Post]:
    made = Post()
    yield made
    made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def test_it_takes_what_was_there_before_it_and_what_comes(post: Post) -> None:
    async def live() -> None:
        post.put(3)
        inbox = post.loop()
        await inbox.start()
        await until(lambda: len(post.served) == 3)
        post.put(40)
        await until(lambda: len(post.served) == 43)
        assert all(post.kinds)
        assert all(post.early)
        assert not any(os.get_inheritable(connection.fileno()) for connection in post.served)
        assert not any(os.get_blocking(connection.fileno()) for connection in post.served)
        await inbox.stop(to_empty=False)

    asyncio.run(live())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_connection_is_of_the_family_that_its_listener_was(post: Post, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and not has_ipv6():
        pytest.skip("no IPv6 here")

    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        with socket.socket(family) as listener, socket.socket(family) as client:
            listener.bind({socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0), socket.AF_UNIX: ""}[family])
            listener.listen()
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                assert send_packet(post.writer, HAND_OVER, [accepted.fileno()])
            await until(lambda: len(post.served) == 1)
            assert post.addresses == [None if family == socket.AF_UNIX else (None, listener.getsockname())]
        await inbox.stop(to_empty=False)

    asyncio.run(live())
    assert post.served[0].family == family
    assert post.kinds == [family == socket.AF_UNIX]


def test_what_comes_after_it_has_stopped_is_left_to_its_successor(post: Post) -> None:
    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        number = inbox._inbox.fileno()
        post.put(2)
        await inbox.stop(to_empty=False)
        post.put(1)
        assert not asyncio.get_running_loop().remove_reader(number)  # it would spin

    asyncio.run(live())
    assert post.left() == 3
    assert not post.served


def test_it_takes_nothing_while_it_is_held(post: Post) -> None:
    async def live() -> None:
        inbox = post.loop()
        inbox.hold(True)
        await inbox.start()
        post.put(2)
        await asyncio.sleep(0)
        assert not post.served
        assert not asyncio.get_running_loop().remove_reader(inbox._inbox.fileno())  # it would spin
        inbox.hold(False)
        await until(lambda: len(post.served) == 2)
        await inbox.stop(to_empty=False)

    asyncio.run(live())


def test_one_that_has_stopped_may_be_held_and_let_go(post: Post) -> None:
    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        await inbox.stop(to_empty=False)
        inbox.hold(True)  # the requests that it still has take all its threads
        inbox.hold(False)

    asyncio.run(live())


@pytest.mark.parametrize(("room", "taken"), [(50, 30), (0, 0)])
def test_it_takes_none_that_it_has_no_descriptor_for(post: Post, room: int, taken: int) -> None:
    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        post.put(100)
        with limit_of_descriptors(lambda lowest: lowest + room):
            await until(lambda: inbox._paused is not None)
            assert taken <= len(post.served) <= room
            assert not asyncio.get_running_loop().remove_reader(inbox._inbox.fileno())  # it would spin
        await until(lambda: len(post.served) == 100)
        await inbox.stop(to_empty=False)

    asyncio.run(live())


def test_the_last_worker_takes_all_up_to_the_word_that_it_is_all(post: Post) -> None:
    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        post.put(3)
        stopping = asyncio.ensure_future(inbox.stop(to_empty=True))
        await until(lambda: len(post.served) == 3)
        post.put(1)  # the dispatcher had it still
        send_packet(post.writer, LAST)
        await stopping
        assert len(post.served) == 4
        assert not any(post.early)

    asyncio.run(live())


def test_one_that_never_accepted_leaves_everything(post: Post) -> None:
    async def live() -> None:
        inbox = post.loop()
        post.put(2)
        await inbox.stop(to_empty=True)

    asyncio.run(live())
    assert post.left() == 2


def test_what_waits_is_taken_later_when_there_is_no_room_to_wait_for_it(
    post: Post, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        refusals, add_reader = [1, 2], loop.add_reader

        def refuse(*arguments: Any) -> None:
            if refusals:
                refusals.pop()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            add_reader(*arguments)

        monkeypatch.setattr(loop, "add_reader", refuse)
        post.put()
        inbox = post.loop()
        await inbox.start()
        await until(lambda: len(post.served) == 1)
        await inbox.stop(to_empty=False)

    asyncio.run(live())
    assert capsys.readouterr().err.count("cannot take connections: No space left on device; trying again") == 1


def test_no_connection_has_the_time_out_that_the_app_gives_its_sockets(post: Post) -> None:
    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        post.put()
        await until(lambda: len(post.served) == 1)
        await inbox.stop(to_empty=False)

    socket.setdefaulttimeout(600)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(live())
    finally:
        socket.setdefaulttimeout(None)
    assert not post.served[0].timeout  # else a look at what has come waits for it


def test_one_that_is_full_in_the_middle_of_a_turn_leaves_the_rest_to_others(post: Post) -> None:
    async def live() -> None:
        def serve(*given: Any) -> None:
            post.serve(*given)
            inbox.hold(True)

        inbox = InboxLoop(asyncio.get_running_loop(), post.reader.dup(), serve)
        post.put(3)
        await inbox.start()
        await until(lambda: bool(post.served))
        await inbox.stop(to_empty=False)

    asyncio.run(live())
    assert len(post.served) == 1
    assert post.left() == 2


def test_one_that_may_have_few_descriptors_keeps_some_free_and_takes_connections(post: Post) -> None:
    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        post.put(1)
        with limit_of_descriptors(lambda lowest: lowest * 4 // 3 + 2):
            await until(lambda: len(post.served) == 1)
        await inbox.stop(to_empty=False)

    asyncio.run(live())


def test_the_last_worker_goes_on_after_a_connection_for_which_it_had_no_descriptor(
    post: Post, capsys: pytest.CaptureFixture[str]
) -> None:
    async def live() -> None:
        inbox = post.loop()
        await inbox.start()
        post.put(2)
        send_packet(post.writer, LAST)
        with limit_of_descriptors(lambda lowest: lowest):
            stopping = asyncio.ensure_future(inbox.stop(to_empty=True))
            await until(lambda: inbox._paused is not None)
        await stopping
        inbox._resume()  # the pause is over, and so is all

    asyncio.run(live())
    assert len(post.served) == 1  # the kernel has closed the other
    assert "cannot take connections: too many open files; trying again" in capsys.readouterr().err

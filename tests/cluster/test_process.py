"""`pyworker.process` in a child: what waits for whom, and what still goes when the program ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker import child_process, process
from pyworker.cluster.parent import ChildProcess
from pyworker.cluster.process import _Process, _ToLoop
from tests.cluster.helpers import Inbox, asynchronous, eventually, open_fds
from tests.support.forked import ends_well_while_held
from tests.support.steps import Rung, acts_at
from tests.support.wait import wait_until


def start(folder: Path, source: str, **options: Any) -> ChildProcess:
    (folder / "child.py").write_text(source)
    return child_process.fork(folder / "child.py", **options)


@asynchronous
async def test_messages_wait_for_the_program_and_keep_their_order(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "import sys, threading\nfrom pyworker import process\nended = threading.Event()\n"
        "process.on('disconnect', ended.set)\n"  # the channel is read from here on, and nobody listens to messages
        "sys.stdin.readline()\ngot = []\n"
        "@process.on('message')\n"
        "def take(message, handle):\n    got.append(message)\n    if message == 'last': process.send(got)\n"
        "ended.wait()",
        stdin="pipe",
    )
    inbox = Inbox(child)
    for number in range(400):  # fewer than are kept, even if all come before it listens
        child.send(number)
    assert child.stdin is not None
    child.stdin.write(b"\n")
    for number in range(400, 800):
        child.send(number)
        await asyncio.sleep(0)
    child.send("last")
    assert await inbox.next() == [*range(800), "last"]
    child.disconnect()
    await child.wait_closed()


GREEN = "import select\ndel select.epoll, select.poll\n"  # as eventlet.monkey_patch() does


@pytest.mark.parametrize("first", [GREEN + "from pyworker import process\n", "from pyworker import process\n" + GREEN])
@asynchronous
async def test_a_program_whose_poll_was_taken_away_gets_its_messages(tmp_path: Path, first: str) -> None:
    child = start(
        tmp_path,
        f"{first}import threading\nended = threading.Event()\nprocess.on('disconnect', ended.set)\n"
        "process.on('message', lambda message, handle: process.send(message))\nended.wait()",
    )
    inbox = Inbox(child)
    for message in ("a", "x" * 1_000_000):  # one that is written at once, and one that has to wait for room
        child.send(message)
        assert await inbox.next() == message
    child.disconnect()
    await child.wait_closed()


@asynchronous
async def test_the_thread_that_reads_needs_nothing_of_who_starts_it(tmp_path: Path) -> None:
    """A green thread may run, with all that its program does, before the call returns that starts it."""
    child = start(
        tmp_path,
        "import threading\nfrom pyworker import process\n"
        "got = threading.Event()\n"
        "class Thread(threading.Thread):\n    def start(self):\n        super().start()\n        got.wait()\n"
        "threading.Thread = Thread\n"
        "def take(message, handle):\n    process.on('error', print)\n    process.send(message)\n    got.set()\n"
        "process.on('message', take)\nprocess.disconnect()",
    )
    inbox = Inbox(child)
    child.send("a")
    assert await inbox.next() == "a"
    await child.wait_closed()


@asynchronous
async def test_who_listens_once_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "import queue, threading\nfrom pyworker import process\nended = threading.Event()\n"
        "process.on('disconnect', ended.set)\n"
        "def receive():\n"
        "    got = queue.SimpleQueue()\n    process.once('message', lambda m, h: got.put(m))\n    return got.get()\n"
        "process.send([receive() for _ in range(200)])\nended.wait()",
    )
    inbox = Inbox(child)
    for number in range(200):
        child.send(number)
    assert await inbox.next() == list(range(200))
    child.disconnect()
    await child.wait_closed()


@asynchronous
async def test_messages_can_be_iterated_in_a_loop_of_the_child(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "import asyncio\nfrom pyworker import process\n"
        "async def main():\n"
        "    async for message in process.messages():\n        await process.deliver({'got': message})\n"
        "    print('over', process.connected)\nasyncio.run(main())",
        stdout="pipe",
    )
    inbox = Inbox(child)
    for number in range(3):
        child.send(number)
    assert [await inbox.next() for _ in range(3)] == [{"got": 0}, {"got": 1}, {"got": 2}]
    child.disconnect()
    assert child.stdout is not None
    assert await child.stdout.read() == b"over False\n"
    await child.wait_closed()


@asynchronous
async def test_what_comes_after_a_loop_that_was_left_waits_for_the_next_one(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "import asyncio, gc, sys\nfrom pyworker import process\ngc.disable()\n"
        "async def main():\n"
        "    async for message in process.messages():\n        break\n"
        "    process.send('left')\n    sys.stdin.readline()\n"
        "    async for message in process.messages():\n"
        "        process.send(message if isinstance(message, str) else 'a file')\n"
        "asyncio.run(main())",
        stdin="pipe",
    )
    inbox = Inbox(child)
    child.send("the first")
    assert await inbox.next() == "left"
    child.send("the second")
    with open(__file__, "rb") as file:
        await child.deliver("with a file", file)  # it has that, and so what was sent before
    assert child.stdin is not None
    child.stdin.write(b"\n")
    assert [await inbox.next(), await inbox.next()] == ["the second", "a file"]
    child.disconnect()
    await child.wait_closed()


@asynchronous
async def test_what_a_program_sends_last_arrives_although_it_ends(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "import tempfile\nfrom pyworker import process\n"
        "for number in range(40):\n    process.send([number, 'x' * 100_000])\n"  # much more than the channel holds
        "for number in range(10):\n    f = tempfile.TemporaryFile(); f.write(b'%d' % number); f.seek(0)\n    process.send(number, f)",
    )
    heard: list[Any] = []

    @child.on("message")  # type: ignore[misc]
    def take(message: Any, handle: Any) -> None:
        heard.append(message[0] if handle is None else (message, handle.read()))
        if handle is not None:
            handle.close()

    assert (await child.wait_closed()).code == 0
    await eventually(lambda: not child.connected)
    assert heard == [*range(40), *((number, b"%d" % number) for number in range(10))]


@asynchronous
async def test_a_program_whose_parent_does_not_read_ends_all_the_same(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "from pyworker import process\nprocess._PATIENCE = 0.1\nfor _ in range(40):\n    process.send('x' * 100_000)",
    )
    assert child._channel is not None
    asyncio.get_running_loop().remove_reader(child._channel.sock.fileno())
    assert (await child.wait()).code == 0
    child.disconnect()
    await child.wait_closed()


@asynchronous
async def test_messages_that_nobody_ever_takes_are_counted_out_aloud(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "import threading\nfrom pyworker import process\nended = threading.Event()\n"
        "process.on('disconnect', ended.set)\nended.wait()",
        stderr="pipe",
    )
    for number in range(1200):
        child.send(number)
        await child.drain()
    child.disconnect()
    assert child.stderr is not None
    text = (await child.stderr.read()).decode()
    assert text.count("1000 messages wait and nobody listens: more are dropped") == 1
    assert (await child.wait_closed()).code == 0


@asynchronous
async def test_a_callback_that_says_sys_exit_in_the_thread_is_shown_and_the_channel_goes_on(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "import sys, threading\nfrom pyworker import process\nended = threading.Event()\n"
        "def take(message, handle):\n    process.send(message, callback=lambda error: sys.exit(2))\n    sys.exit(3)\n"
        "process.on('message', take)\n"
        "process.on('disconnect', lambda: sys.exit(4))\nprocess.on('disconnect', ended.set)\n"
        "process.send('ready')\nended.wait()",
        stderr="pipe",
    )
    inbox = Inbox(child)
    assert await inbox.next() == "ready"
    for number in range(2):
        child.send(number)
        assert await inbox.next() == number
    child.disconnect()
    assert child.stderr is not None
    said = await child.stderr.read()
    assert said.count(b"SystemExit: ") == 5
    assert b"does not end the program here" in said
    await child.wait_closed()


@asynchronous
async def test_a_child_may_close_the_channel(tmp_path: Path) -> None:
    child = start(
        tmp_path,
        "from pyworker import process\nprocess.send('x' * 500_000)\nprocess.disconnect()\n"
        "try:\n    process.send(1)\nexcept ConnectionError as error:\n    print(error)\nprint(process.connected)",
        stdout="pipe",
    )
    inbox = Inbox(child)
    assert len(await inbox.next()) == 500_000
    assert child.stdout is not None
    assert await child.stdout.read() == b"the channel is closed\nFalse\n"
    await child.wait_closed()
    assert not child.connected


@asynchronous
async def test_what_two_threads_hand_to_a_loop_at_once_wakes_it() -> None:
    got: list[str] = []
    to_loop = _ToLoop(asyncio.get_running_loop(), got.append)
    other = threading.Thread(target=to_loop.put, args=("second",))

    class Overtaken(deque[str]):
        def append(self, item: str) -> None:
            super().append(item)
            if item == "first":
                other.start()
                other.join()

    to_loop._waiting = Overtaken()
    to_loop.put("first")
    await eventually(lambda: len(got) == 2)
    assert got == ["first", "second"]


@asynchronous
async def test_nothing_is_kept_for_a_loop_that_is_closed() -> None:
    over = asyncio.new_event_loop()
    to_loop = _ToLoop(over, lambda _: None)
    to_loop.put("before")
    over.close()
    for _ in range(10):
        to_loop.put("after")
    assert not to_loop._waiting


@asynchronous
async def test_a_worker_of_the_daemon_is_told_when_a_message_is_longer_than_the_daemon_takes() -> None:
    program = (
        "import socket\nfrom pyworker.cluster import given\nours, theirs = socket.socketpair()\ngiven.give(ours.detach())\n"
        "from pyworker import process\nprocess.send('x' * 65533)\n"
        "try:\n    process.send('x' * 65535)\nexcept ValueError as error:\n    print(error)"
    )
    result = await child_process.exec_file(sys.executable, ["-c", program])
    assert result.stdout == "a message of 65537 bytes; 65536 are the most that is taken\n"


@asynchronous
async def test_without_a_parent_a_loop_over_messages_ends_at_once_and_send_says_who_has_one() -> None:
    assert [message async for message in process.messages()] == []
    with pytest.raises(ConnectionError, match=r"not started by fork\(\), nor is it a worker .* send at startup"):
        process.send(1)


def begins_to_listen(step: int) -> bool:
    """Have a signal's handler come at this step of a first `on`; False when it has no so many."""
    heard: list[Any] = []
    sent: list[Any] = []
    ours, theirs = socket.socketpair()
    one = _Process()
    one.attach(ours.detach(), files=False)

    def handle() -> None:
        one.on("message", lambda message, _: heard.append(message))
        one.on("disconnect", lambda: heard.append("end"))
        one.need().send("from the handler", callback=sent.append)

    with theirs:
        came = acts_at(step, lambda: one.on("message", lambda *_: None), handle)
        theirs.sendall(b"1\n")
        wait_until(lambda: not came or (heard == [1] and sent == [None]), what=lambda: f"{heard} {sent}")
    wait_until(lambda: one._ended and heard[1:] == ["end"] * came, what=lambda: f"the end; {heard}")
    return came


def test_the_handler_of_a_signal_may_listen_and_send_in_the_middle_of_a_first_on() -> None:
    assert next(step for step in itertools.count(1) if not begins_to_listen(step)) > 10


def test_a_channel_whose_start_the_handler_of_a_signal_has_ended_is_read_by_who_tries_again() -> None:
    for step in itertools.count(1):
        ours, theirs = socket.socketpair()
        one = _Process()
        one.attach(ours.detach(), files=False)
        has_come = acts_at(step, one.start, within="cluster/process.py")
        one.start()
        theirs.close()
        wait_until(lambda one=one: one._ended)
        if not has_come:
            break


def test_a_channel_whose_thread_had_begun_when_the_handler_of_a_signal_raised_is_read_by_who_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    one = _Process()
    one.attach(ours.detach(), files=False)

    def rung(*_: object) -> None:
        raise Rung

    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", rung)  # for the thread, in Thread.start
        with contextlib.suppress(Rung):
            one.start()
    wait_until(lambda: any(each.name == "pyworker channel" and each.ident for each in threading.enumerate()))
    one.start()
    theirs.close()
    wait_until(lambda: one._ended)


def test_in_a_process_that_was_forked_no_lock_is_held_by_a_thread_that_is_not_there() -> None:
    one = _Process()
    os.register_at_fork(after_in_child=one.forked)

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        with one._messages, one._ending:
            yield

    def listen() -> None:
        one.on("message", print)
        one.on("disconnect", print)

    assert ends_well_while_held(held(), listen)


def test_a_process_that_was_forked_has_none_of_the_handles_and_messages_that_were_under_way() -> None:
    before = open_fds()
    ours, theirs = socket.socketpair()
    going, coming = socket.socketpair()
    heard: list[Any] = []
    one = _Process()
    one.attach(ours.detach(), files=True)
    with theirs, going:
        one.need().send("going", going)
    one.on_message("coming", coming)
    one.forked()
    one.on("message", lambda *message: heard.append(message))
    assert not heard
    assert open_fds() == before

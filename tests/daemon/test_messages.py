"""A worker's message channel in the daemon: when it is written to, and that waiting costs nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyworker.config.schema import AppConfig
from pyworker.daemon import messages as module
from pyworker.daemon.loop import READ, WRITE, Loop
from pyworker.daemon.messages import READ_SIZE, Channel, Messages, NotSent
from pyworker.policy.lifecycle import State
from pyworker.policy.talk import AT_ONCE, Allowance
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.node import Link
from tests.support.wait import wait_until

WORKER = SimpleNamespace(id=WorkerId("api", 1, 1, 3))
GENERATION: Any = SimpleNamespace(config=AppConfig("api", target="a:b"))


class Rig:
    """A channel that the loop watches; `peer` is the worker's end."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.messages = Messages(cast("Any", SimpleNamespace(loop=self.loop, note=lambda app, text: None)))
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.channel = Channel(ours, GENERATION, Allowance(0.0))
        self.loop.add(ours.fileno(), READ, lambda _: None)

    @property
    def mask(self) -> int:
        return self.loop._registrations[self.channel.sock.fileno()].mask

    def flush(self) -> None:
        self.messages._flush(self.channel)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.channel.sock.close()
    made.peer.close()
    made.loop._epoll.close()


def test_a_channel_that_there_is_no_descriptor_for_is_listened_to_once_there_is(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker must not be left unheard, which was killed after its time to get ready."""
    tries, copy = [], module.copy_socket

    def copy_socket(fd: int) -> socket.socket:
        tries.append(fd)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return copy(fd)

    monkeypatch.setattr(module, "copy_socket", copy_socket)
    monkeypatch.setattr(module, "AGAIN", 0.0)
    ours = rig.channel.sock.fileno()
    store = SimpleNamespace(get=lambda name: ours, remove=lambda name: None)
    monkeypatch.setattr(rig.messages._brain, "store", store, raising=False)
    generation = SimpleNamespace(config=AppConfig("api", target="a:b"))
    app, handle = cast("Any", SimpleNamespace(name="api", generations={1: generation})), cast("Any", WORKER)
    rig.messages.watch(app, handle)
    assert not rig.messages._channels
    wait_until(lambda: rig.loop.turn(0.01) or rig.messages._channels, what="its channel")
    assert tries == [ours, ours]
    rig.messages.forget(app, handle)


def test_a_descriptor_that_nobody_takes_does_not_keep_the_daemon_awake(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        rig.channel.link.send_handle({"ack": 1}, "net.Native", listener.fileno(), listener)
        rig.flush()
        assert not rig.channel.link.is_idle, "the worker has not acknowledged it"
        assert rig.mask == READ


@pytest.mark.parametrize(("before", "said", "is_ready"), [(b"", b'"so"\n"ready"\n', True), (b"", b'"ready"', False), (b"[", b'"ready"\n', False)])
def test_that_a_worker_is_ready_is_known_before_what_it_has_said_is_taken_out_of_its_channel(
    rig: Rig, before: bytes, said: bytes, is_ready: bool
) -> None:
    """It is said once: a daemon killed in between would leave one that was never ready."""
    told: list[bytes] = []
    readiness = SimpleNamespace(says_ready=lambda app, handle: told.append(rig.channel.sock.recv(100, socket.MSG_PEEK)))
    rig.messages._brain.readiness = cast("Any", readiness)
    rig.channel.generation = cast("Any", SimpleNamespace(config=AppConfig("api", target="a:b", ready="notify")))
    handle = cast("Any", SimpleNamespace(id=WORKER.id, state=State.STARTING))
    rig.channel.link.feed(before, [])
    rig.peer.send(said)
    rig.messages._look_for_ready(cast("Any", None), handle, rig.channel)
    assert told == [said] * is_ready


@pytest.mark.parametrize("said", [b'{"cmd":"NODE_HANDLE","type":"x"}\n', b'{"cmd":"NODE_X"}\n', b"\n", b"x"])
def test_what_is_no_message_is_read_no_faster_than_messages(rig: Rig, said: bytes) -> None:
    app, handle = cast("Any", SimpleNamespace(name="api", generations={})), cast("Any", WORKER)
    rig.messages._channels["api", 3] = rig.channel
    rig.channel.talk.at = rig.loop.clock()
    rig.peer.setblocking(False)
    turns = 0
    while not rig.channel.resting:
        with contextlib.suppress(BlockingIOError):
            rig.peer.send(said)
        rig.messages._read(app, handle, rig.channel)
        turns += 1
        assert turns < 10_000


def test_one_that_has_said_too_much_and_hung_up_does_not_keep_the_daemon_awake_until_all_is_read(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, handle = cast("Any", SimpleNamespace(name="api", generations={})), cast("Any", WORKER)
    heard: list[int] = []
    monkeypatch.setattr(rig.messages, "heard", lambda app, handle, text, size: heard.append(size))
    rig.messages._channels["api", 3] = rig.channel
    rig.loop.remove(rig.channel.sock.fileno())
    rig.messages._listen(app, handle, rig.channel)
    rig.channel.talk = Allowance(rig.loop.clock(), left=1.0)
    said = b"1\n" * (READ_SIZE // 2 + 10)
    rig.peer.sendall(said)
    rig.peer.close()
    while not rig.channel.ended:
        rig.channel.talk.left = 1.0
        rig.loop.turn(5.0)
        turns = 0
        while rig.channel.resting:
            rig.loop.turn(5.0)
            turns += 1
            assert turns < 5
    assert len(heard) == len(said) // 2


def test_of_what_is_no_message_the_first_of_a_worker_is_noted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    app, handle = cast("Any", SimpleNamespace(name="api", generations={})), cast("Any", WORKER)
    noted: list[str] = []
    monkeypatch.setattr(rig.messages._brain, "note", lambda app, text: noted.append(text))
    rig.messages._channels["api", 3] = rig.channel
    rig.channel.talk.at = rig.loop.clock()
    rig.peer.send(b"\x80\n\x81\n{\n")
    rig.messages._read(app, handle, rig.channel)
    assert len(noted) == 1, noted
    assert "byte 0x80" in noted[0]


@pytest.mark.parametrize("line", [b"123456\n", b'"%s"\n' % (b"x" * 60_000)])
def test_of_what_is_read_there_is_no_half_message_that_a_killed_daemon_would_take_along(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """To the next one the other half would be another message."""
    app, handle = cast("Any", SimpleNamespace(name="api", generations={})), cast("Any", WORKER)
    monkeypatch.setattr(rig.messages, "heard", lambda app, handle, text, size: None)
    monkeypatch.setattr(rig.loop, "clock", lambda: 0.0)
    rig.channel.talk.left = 1.0
    rig.peer.sendall(line * (READ_SIZE // len(line) + 2))
    rig.messages._read(app, handle, rig.channel)
    assert rig.channel.resting
    left = rig.channel.sock.recv(500_000)
    assert left
    assert left == line * (len(left) // len(line))


@pytest.mark.parametrize("length", [1, 60_000])
def test_so_many_messages_may_be_said_however_long_each_is(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    app, handle = cast("Any", SimpleNamespace(name="api", generations={})), cast("Any", WORKER)
    heard: list[int] = []
    monkeypatch.setattr(rig.messages, "heard", lambda app, handle, text, size: heard.append(size))
    monkeypatch.setattr(rig.loop, "clock", lambda: 0.0)
    for number in range(int(AT_ONCE) - 1):
        rig.peer.sendall(b'"%s"\n' % (b"x" * length))
        while len(heard) <= number:
            rig.messages._read(app, handle, rig.channel)
            assert not rig.channel.resting


def test_a_message_goes_as_a_whole_when_there_is_room(rig: Rig) -> None:
    text = "x" * 60_000
    sent = 0
    while rig.mask == READ:
        rig.channel.link.send([sent, text])
        rig.flush()
        sent += 1
        assert sent < 1000
    assert rig.mask == READ | WRITE
    link = Link()
    heard = 0
    rig.peer.setblocking(False)
    while heard < sent:
        try:
            heard += len(link.feed(rig.peer.recv(65536)))
        except BlockingIOError:
            rig.flush()
    assert rig.mask == READ
    assert heard == sent


@pytest.mark.parametrize(("size", "least"), [(10, 100), (60_000, 3)])
def test_a_message_that_is_not_said_to_have_gone_goes_never_and_one_that_is_does_not_wait_for_this_daemon(
    rig: Rig, size: int, least: int
) -> None:
    app: Any = SimpleNamespace(name="api", generations={})
    handle: Any = SimpleNamespace(id=WORKER.id, state=State.READY)
    rig.messages._channels["api", 3] = rig.channel
    rig.peer.setblocking(False)
    gone, link = 0, Link()

    def fill() -> None:
        nonlocal gone
        while True:
            rig.messages.send(app, handle, "x" * size)
            gone += 1

    for _ in range(2):
        assert gone == 0
        with pytest.raises(NotSent, match="its channel is full"):
            fill()
        assert gone >= least
        assert rig.channel.link.is_idle
        assert rig.mask == READ
        with contextlib.suppress(BlockingIOError):
            while True:
                gone -= len(link.feed(rig.peer.recv(65536)))
    assert gone == 0
    assert not link.is_within_line


@pytest.mark.parametrize("noticed", [False, True])
def test_a_message_to_one_that_has_closed_its_channel_is_not_said_to_have_gone(rig: Rig, noticed: bool) -> None:
    app: Any = SimpleNamespace(name="api", generations={})
    handle: Any = SimpleNamespace(id=WORKER.id, state=State.READY)
    rig.messages._channels["api", 3] = rig.channel
    rig.channel.talk.at = rig.loop.clock()
    rig.peer.close()
    if noticed:
        rig.messages._read(app, handle, rig.channel)
    with pytest.raises(NotSent, match="it has closed its message channel"):
        rig.messages.send(app, handle, 1)


def test_a_listener_that_cannot_be_handed_over_now_costs_one_timer_however_often_it_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop()
    of_all = Messages(cast("Any", SimpleNamespace(loop=loop)))
    frame = SimpleNamespace(data=b"x", fd=0)
    link: Any = SimpleNamespace(to_write=lambda: frame, written=lambda count: None)
    monkeypatch.setattr(module.unix_fds, "send_some", lambda *_: 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours, GENERATION, Allowance(0.0), link)
        for _ in range(50):
            of_all._flush(channel)
    assert len(loop._timers) == 1
    loop.close()

"""The daemon's side of the store when the kernel does not take what it sends."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from pyworker.daemon.fdstore import RETRY, STORE_AGAIN, FdStore, become_guardian
from pyworker.daemon.loop import Loop
from pyworker.protocol import store as protocol
from pyworker.protocol.inherited import STANDBY
from pyworker.protocol.wire import MAX_MESSAGE, decode, encode
from pyworker.unix import fds
from tests.daemon.test_loop import Clock
from tests.support.channels import ends as ends
from tests.support.wait import wait_until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(clock, pytest.fail)
    yield made
    made.close()


def refusing(number: int, times: int) -> tuple[Callable[..., bool], list[int]]:
    """Return a send_packet that fails so often, and the list of its calls."""
    calls: list[int] = []
    really = fds.send_packet

    def send(sock: socket.socket, data: bytes, sent: list[int]) -> bool:
        calls.append(len(sent))
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return really(sock, data, sent)

    return send, calls


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS])
def test_what_there_is_no_room_for_is_sent_in_order_when_there_is_and_nobody_spins(
    loop: Loop, clock: Clock, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = FdStore(ends[0])
    store.attach(loop)
    send, calls = refusing(number, 3)
    monkeypatch.setattr(fds, "send_packet", send)
    store.put("board.api", os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    store.send(protocol.Ping(1))
    for _ in range(50):
        loop.turn(0)
    tried = len(calls)
    assert tried <= 2  # one for each message that was said: then the clock has to go on
    for _ in range(3):
        clock.now += RETRY
        loop.turn(0)
    received = [fds.recv_packet(ends[1], MAX_MESSAGE, 4) for _ in range(3)]
    messages = [decode(protocol.FromDaemon, packet.data) for packet in received if packet is not None]
    assert messages == [protocol.Store(("board.api",)), protocol.Ping(1)]
    assert received[0] is not None
    assert len(received[0].fds) == 1
    fds.close_all(received[0].fds)
    store.remove("board.api")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET])
def test_a_guardian_that_is_gone_is_said_once_by_the_end_of_its_channel(
    loop: Loop, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = FdStore(ends[0])
    lost: list[bool] = []
    store.on_lost = lambda: lost.append(True)
    store.attach(loop)
    send, calls = refusing(number, 1000)
    monkeypatch.setattr(fds, "send_packet", send)
    store.put("board.api", os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    store.send(protocol.Ping(1))
    assert lost == []
    ends[1].close()
    for _ in range(10):
        loop.turn(0)
    assert lost == [True]
    assert len(calls) == 2
    assert store.get("board.api") is not None  # it is what the next guardian is made of
    store.remove("board.api")


def test_what_is_put_together_is_sent_at_the_end_in_few_messages_without_what_was_removed_again(
    loop: Loop, ends: tuple[socket.socket, socket.socket]
) -> None:
    store = FdStore(ends[0])
    store.attach(loop)
    names = [f"env.app.{number}" for number in range(protocol.BATCH + 3)]
    with store.together():
        for name in names:
            with store.together():
                store.put(name, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        store.remove(names[1])
        assert fds.recv_packet(ends[1], MAX_MESSAGE, protocol.BATCH) is not None, "the word that it is removed"
        assert fds.recv_packet(ends[1], MAX_MESSAGE, protocol.BATCH) is None
    store.put("board.app", os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    told: list[tuple[str, ...]] = []
    while (packet := fds.recv_packet(ends[1], MAX_MESSAGE, protocol.BATCH)) is not None:
        told.append(decode(protocol.FromDaemon, packet.data).names)
        assert len(packet.fds) == len(told[-1])
        fds.close_all(packet.fds)
    assert [len(each) for each in told] == [protocol.BATCH - 1, 3, 1]
    assert [*told[0], *told[1]] == [name for name in names if name != names[1]]
    store.remove(*names, "board.app")


def test_what_is_removed_together_is_said_in_messages_that_the_guardian_takes(
    loop: Loop, ends: tuple[socket.socket, socket.socket]
) -> None:
    """All that is left of an app with a thousand workers."""
    store = FdStore(ends[0])
    names = [f"ctl.{'a' * 64}.1.{number}.{number}" for number in range(1, 1001)]
    store.fds = dict.fromkeys(names, -1)
    store.attach(loop)
    store.remove(*names)
    told: list[str] = []
    while (packet := fds.recv_packet(ends[1], MAX_MESSAGE, 0)) is not None:
        assert not packet.truncated
        told += decode(protocol.FromDaemon, packet.data).names
        loop.turn(0)
    assert told == names


def test_a_pipe_that_has_the_name_of_one_that_was_read_to_its_end_is_kept(
    loop: Loop, ends: tuple[socket.socket, socket.socket]
) -> None:
    """A template that was killed and one in its place print to pipes of one name: the word on the first comes later."""
    store = FdStore(ends[0])
    store.attach(loop)
    read, write = os.pipe2(os.O_CLOEXEC)
    store.put("tout.api.1", read)
    for _ in range(2):
        fds.send_packet(ends[1], encode(protocol.Closed(("tout.api.1", "terr.api.1"))))
        fds.send_packet(ends[1], encode(protocol.Ping(7)))
        store.unanswered = 3
        wait_until(lambda: loop.turn(0) or store.unanswered == 0, what="the message behind it")
        if write >= 0:
            assert store.get("tout.api.1") == read
            os.close(write)
            write = -1
    assert store.get("tout.api.1") is None


def test_names_of_one_kind_are_those_of_that_kind_only(ends: tuple[socket.socket, socket.socket]) -> None:
    store = FdStore(ends[0])
    names = ["out.api.1.1.1", "out.api-2.1.1.2", "tout.api.1", "board.api"]
    for name in names:
        store.put(name, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    assert [n.app for n in store.names("out")] == ["api", "api-2"]
    assert [n.app for n in store.names("out", "api")] == ["api"]
    assert store.names("o") == []
    store.remove(*names)


def test_a_guardian_that_asks_while_much_is_restored_is_answered(ends: tuple[socket.socket, socket.socket]) -> None:
    store = FdStore(ends[0])
    with store.together():
        store.alive()
        store.alive()
        packet = fds.recv_packet(ends[1], MAX_MESSAGE, 0)
        assert packet is not None
        assert decode(protocol.FromDaemon, packet.data) == protocol.Pong(1)
        assert fds.recv_packet(ends[1], MAX_MESSAGE, 0) is None  # not for each of hundreds


def test_a_daemon_that_has_no_descriptor_for_all_that_it_is_handed_says_so(ends: tuple[socket.socket, socket.socket]) -> None:
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    names = tuple(f"env.app.{number}" for number in range(5))
    fds.send_packet(ends[1], encode(protocol.Restore(names)), [null] * 5)
    store = FdStore(ends[0])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(EOFError) as caught:
            store.restore()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(null)
    assert "no descriptor is left for what the guardian hands over" in str(caught.value)
    assert "raise the limit of open files" in str(caught.value)


def null() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def said(end: socket.socket) -> list[object]:
    """Return what the store has said, without the descriptors."""
    found: list[object] = []
    while (packet := fds.recv_packet(end, MAX_MESSAGE, protocol.BATCH)) is not None:
        fds.close_all(packet.fds)
        found.append(decode(protocol.FromDaemon, packet.data))
    return found


def test_what_is_handed_over_is_taken_and_what_is_said_meanwhile_is_heard_once_somebody_listens(
    loop: Loop, ends: tuple[socket.socket, socket.socket], capfd: pytest.CaptureFixture[str]
) -> None:
    fd = null()
    before = {*os.listdir("/proc/self/fd")}
    for message, count in (
        (encode(protocol.Restore(("board.api", "ledger.api"))), 2), (encode(protocol.Exited(4711, 1, None, False)), 0),
        (b'{"type":"of another version"}', 1), (encode(protocol.LoggerState(42, 0, "")), 0),
        (encode(protocol.Restore(("env.api.1",))), 1), (encode(protocol.RestoreDone(3, "exited with code 3", 4712, "0.1.0")), 0),
        (encode(protocol.Relay(encode(protocol.LogStats("api", 5, 0, "")).decode())), 0), (encode(protocol.Exited(4713, 0, None, False)), 0),
    ):  # fmt: skip
        assert fds.send_packet(ends[1], message, [fd] * count)
    store = FdStore(ends[0])
    exited: list[int] = []
    dropped: list[int] = []
    store.on_exited = lambda message: exited.append(message.pid)
    store.on_log_stats = lambda stats: dropped.append(stats.dropped)
    store.restore()
    assert "ignored: message: unknown type 'of another version'" in capfd.readouterr().err
    assert list(store.fds) == ["board.api", "ledger.api", "env.api.1"]
    taken = {str(fd) for fd in store.fds.values()}
    assert len({*os.listdir("/proc/self/fd")} - before - taken) <= 1  # the listing's own
    assert (store.guardian_pid, store.guardian_version, store.reason) == (4712, "0.1.0", "exited with code 3")
    assert (exited, store.logger_pid) == ([], 0)
    store.send(protocol.Ping(1))
    store.attach(loop)
    assert (exited, store.logger_pid) == ([4711], 42)
    wait_until(lambda: loop.turn(0) or len(exited) == 2, what="the next word")
    assert (exited, dropped) == ([4711, 4713], [5])
    assert said(ends[1]) == [protocol.Ping(1)]
    store.remove(*store.fds)
    os.close(fd)


@pytest.mark.parametrize(("count", "why"), [(1, "1 fds came for 2 names"), (None, "the guardian is gone")])
def test_a_daemon_that_is_not_handed_everything_does_not_begin(
    ends: tuple[socket.socket, socket.socket], count: int | None, why: str
) -> None:
    fd = null()
    if count is not None:
        fds.send_packet(ends[1], encode(protocol.Restore(("board.api", "ledger.api"))), [fd] * count)
    ends[1].close()
    with pytest.raises(EOFError, match=why):
        FdStore(ends[0]).restore()
    os.close(fd)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_guardian_that_stands_by_is_let_go_once_all_is_here_if_it_can_hear_that(
    loop: Loop, ends: tuple[socket.socket, socket.socket], stopped: bool
) -> None:
    """The end of its channel, before it has heard, says that it is needed."""
    ours, theirs = fds.socketpair()
    while stopped and fds.send_packet(ours, encode(protocol.Ping(0)), []):
        pass
    fds.send_packet(ends[1], encode(protocol.Restore((STANDBY,))), [ours.fileno()])
    fds.send_packet(ends[1], encode(protocol.RestoreDone(1, "upgrade", 4712, "0.1.0")), [])
    ours.close()
    store = FdStore(ends[0])
    store.restore()
    if stopped:
        assert (list(store.fds), said(ends[1])) == ([STANDBY], [])
        store.remove(STANDBY)
    else:
        packet = fds.recv_packet(theirs, MAX_MESSAGE, 0)
        assert packet is not None
        assert decode(protocol.ToDaemon, packet.data) == protocol.Leave()
        store.attach(loop)
        assert (store.fds, said(ends[1])) == ({}, [protocol.Remove((STANDBY,))])
    theirs.close()


def test_what_the_guardian_had_no_descriptor_for_is_sent_again_unless_it_was_removed(
    loop: Loop, clock: Clock, ends: tuple[socket.socket, socket.socket]
) -> None:
    store = FdStore(ends[0])
    store.attach(loop)
    store.put_all({"board.api": null(), "ledger.api": null()})
    store.remove("board.api")
    said(ends[1])
    fds.send_packet(ends[1], encode(protocol.Missing(("board.api", "ledger.api"))), [])
    wait_until(lambda: loop.turn(0) or loop._timers, what="the message")
    assert said(ends[1]) == []
    clock.now += STORE_AGAIN
    loop.turn(0)
    assert said(ends[1]) == [protocol.Store(("ledger.api",))]
    store.remove("ledger.api")


def test_a_descriptor_is_closed_when_another_takes_its_name_and_not_when_it_is_stored_again(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    store = FdStore(ends[0])
    first, second = null(), null()
    store.put("board.api", first)
    store.put("board.api", first)
    os.fstat(first)
    store.put("board.api", second)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)
    store.forget("board.api", "not there")
    assert store.fds == {}


def test_a_daemon_that_ends_waits_a_moment_for_a_guardian_that_does_not_read(ends: tuple[socket.socket, socket.socket]) -> None:
    store = FdStore(ends[0])
    while fds.send_packet(ends[0], encode(protocol.Ping(0)), []):
        pass
    store.send(protocol.Stopping())
    store.flush_blocking(0.2)
    assert protocol.Stopping() not in said(ends[1])
    store.flush_blocking(30.0)  # there is room now
    assert said(ends[1]) == [protocol.Stopping()]


def test_what_does_not_fit_into_the_channel_is_sent_when_it_is_read(loop: Loop, ends: tuple[socket.socket, socket.socket]) -> None:
    store = FdStore(ends[0])
    store.attach(loop)
    while fds.send_packet(ends[0], encode(protocol.Ping(0)), []):
        pass
    store.collected(4711)
    loop.turn(0)
    said(ends[1])
    wait_until(lambda: loop.turn(0) or protocol.Collected((4711,)) in said(ends[1]), what="the message")
    fds.send_packet(ends[1], encode(protocol.Ping(7)), [])
    wait_until(lambda: loop.turn(0) or protocol.Pong(7) in said(ends[1]), what="an answer")  # it goes on listening


def test_a_daemon_that_cannot_become_the_guardian_yet_keeps_its_descriptors_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it starts before the next try would hold every port open."""
    fd = null()
    before = {*os.listdir("/proc/self/fd")}
    passed: list[tuple[bool, dict[str, int]]] = []

    def refuse(path: str, argv: list[str]) -> None:
        memo = int(argv[argv.index("--adopt") + 1])
        passed.append((os.get_inheritable(fd) and os.get_inheritable(memo), json.loads(fds.read_whole(memo))["names"]))
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "execv", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        become_guardian("/home", {"listen.api.0": fd})
    assert passed == [(True, {"listen.api.0": fd})]
    assert not os.get_inheritable(fd)
    assert {*os.listdir("/proc/self/fd")} <= before
    os.close(fd)

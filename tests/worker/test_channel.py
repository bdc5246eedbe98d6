"""The worker's end of ctl: never blocks, loses nothing that fits, believes nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from pyworker.protocol import wire
from pyworker.protocol.worker import MAX_WORKER_MESSAGE, Check, Failed, FromWorker, Go, Notice
from pyworker.unix.fds import recv_packet, send_packet, socketpair
from pyworker.worker.channel import Channel, Closed, Received, clip
from tests.support.steps import acts_at, keeps_locks


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socketpair()
    channel = Channel(theirs)
    yield channel, ours
    channel.close()
    ours.close()


def test_messages_and_fds_arrive_and_then_the_end(pair: tuple[Channel, socket.socket]) -> None:
    channel, daemon = pair
    assert channel.receive() is None
    reader, writer = os.pipe()
    send_packet(daemon, wire.encode(Go()))
    send_packet(daemon, wire.encode(Check()), [writer, reader])
    os.close(reader)
    os.close(writer)
    assert channel.receive() == Received(Go(), -1)
    found = channel.receive()
    assert isinstance(found, Received)
    assert found.message == Check()
    assert not os.get_inheritable(found.fd)
    with pytest.raises(BrokenPipeError):  # there is a use for one only: the other is not kept
        os.write(found.fd, b"x")
    os.close(found.fd)
    daemon.shutdown(socket.SHUT_RDWR)
    assert isinstance(channel.wait(), Closed)


def test_full_channel_keeps_messages_in_order_and_never_blocks(pair: tuple[Channel, socket.socket]) -> None:
    channel, daemon = pair
    sent = 0
    while send_packet(channel.sock, wire.encode(Notice("x" * 1000))):
        sent += 1
    channel.send(Notice("first"))
    channel.send(Notice("second"))
    for _ in range(sent):
        assert recv_packet(daemon, MAX_WORKER_MESSAGE, 0)
    assert recv_packet(daemon, MAX_WORKER_MESSAGE, 0) is None
    channel.flush()
    for text in ("first", "second"):
        packet = recv_packet(daemon, MAX_WORKER_MESSAGE, 0)
        assert packet is not None
        assert wire.decode(FromWorker, packet.data) == Notice(text)


def test_what_is_no_message_is_said_and_skipped_and_its_descriptor_is_not_kept(
    pair: tuple[Channel, socket.socket], capfd: pytest.CaptureFixture[str]
) -> None:
    channel, daemon = pair
    reader, writer = os.pipe()
    send_packet(daemon, b'{"type": "of a daemon to come"}', [writer])
    os.close(writer)
    send_packet(daemon, wire.encode(Go()) + b" " * MAX_WORKER_MESSAGE)
    send_packet(daemon, wire.encode(Go()))
    assert channel.receive() == Received(Go(), -1)
    assert os.read(reader, 1) == b""
    os.close(reader)
    of_another_version, cut = capfd.readouterr().err.splitlines()
    assert "ignored a message of the daemon" in of_another_version
    assert "it came cut" in cut


def test_what_there_was_no_memory_for_is_said_later(pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    channel, daemon = pair

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with monkeypatch.context() as patched:
        patched.setattr(channel, "sock", SimpleNamespace(fileno=channel.sock.fileno, send=refuse))
        channel.send(Notice("x"))
    channel.flush()
    packet = recv_packet(daemon, MAX_WORKER_MESSAGE, 0)
    assert packet is not None
    assert wire.decode(FromWorker, packet.data) == Notice("x")


def test_what_the_handler_of_a_signal_raises_in_a_send_is_the_caller_s_and_nothing_is_lost_or_said_twice() -> None:
    if keeps_locks():
        pytest.skip("this Python leaves a lock locked where a handler raises: docs/reliability.md")
    for step in itertools.count(1):
        ours, theirs = socketpair()
        with ours, contextlib.closing(Channel(theirs)) as channel:
            has_come = acts_at(step, partial(channel.send, Notice("1")))
            channel.send(Notice("2"))
            packets = [packet.data for packet in iter(partial(recv_packet, ours, MAX_WORKER_MESSAGE, 0), None)]
            texts = [wire.decode(FromWorker, data).text for data in packets]
            assert texts == ["1", "2"] or (has_come and texts == ["2"])
        if not has_come:
            break


def test_the_handler_of_a_signal_may_say_something_in_the_middle_of_a_send() -> None:
    for step in itertools.count(1):
        ours, theirs = socketpair()
        with ours, contextlib.closing(Channel(theirs)) as channel:
            has_come = acts_at(step, partial(channel.send, Notice("1")), partial(channel.send, Notice("rung")))
            packets = [packet.data for packet in iter(partial(recv_packet, ours, MAX_WORKER_MESSAGE, 0), None)]
            texts = [wire.decode(FromWorker, data).text for data in packets]
            assert sorted(texts) == ["1", "rung"][: 1 + has_come]
        if not has_come:
            break


def test_what_the_handler_of_a_signal_raises_in_a_read_is_not_the_end() -> None:
    for step in itertools.count(1):
        ours, theirs = socketpair()
        with ours, contextlib.closing(Channel(theirs)) as channel:
            send_packet(ours, wire.encode(Go()))
            has_come = acts_at(step, channel.receive)
        if not has_come:
            break


def test_sending_to_nobody_is_no_error(pair: tuple[Channel, socket.socket]) -> None:
    channel, daemon = pair
    daemon.close()
    channel.send(Notice("x"))
    assert isinstance(channel.receive(), Closed)


def test_nothing_is_said_to_what_has_the_number_of_a_channel_that_the_program_has_closed(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    its_own, its_peer = socketpair()
    with its_own, its_peer:
        os.dup2(its_own.fileno(), channel.fileno())
        channel.send(Notice("x"))
        assert recv_packet(its_peer, 100, 0) is None
        send_packet(its_peer, wire.encode(Go()))
        assert isinstance(channel.receive(), Closed)
        assert recv_packet(its_own, 100, 0) is not None


def test_the_time_out_that_an_app_gives_its_sockets_is_not_the_channel_s() -> None:
    ours, theirs = socketpair()
    socket.setdefaulttimeout(600)
    try:
        with ours, socket.socket(fileno=theirs.detach()) as sock:
            assert Channel(sock).receive() is None
    finally:
        socket.setdefaulttimeout(None)


def test_clipped_text_always_fits_a_message() -> None:
    for text in ("é\udcff\0" * 40000, "é" * 40000, "😀" * 40000, "x" * 100000, '"\\' * 50000):
        assert len(wire.encode(Failed("other", "m", clip(text)))) <= MAX_WORKER_MESSAGE
    assert clip("short") == "short"

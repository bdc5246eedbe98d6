"""fds that travel: owned, close-on-exec, never silently lost."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket
import struct
import time
from collections.abc import Callable

import pytest

from pyworker.unix import fds
from pyworker.unix.fds import (
    at_end,
    close_all,
    drop_packet,
    hang_up,
    let_go,
    memfd,
    memfd_fixed,
    pass_credentials,
    peek_packet,
    read_whole,
    recv_packet,
    refuse_fds,
    send_packet,
    send_some,
    send_whole,
    socketpair,
    unread,
    whole_lines,
)
from tests.support.descriptors import open_fds


def test_received_fds_are_close_on_exec_and_the_same_file() -> None:
    ours, theirs = socketpair()
    with ours, theirs, open("/dev/null", "rb") as null:
        assert send_packet(ours, b"take", [null.fileno(), null.fileno()])
        packet = recv_packet(theirs, 100, 2)
        assert packet is not None
        assert packet.data == b"take"
        assert not packet.truncated
        assert [os.fstat(fd).st_rdev for fd in packet.fds] == [os.fstat(null.fileno()).st_rdev] * 2
        assert not any(os.get_inheritable(fd) for fd in packet.fds)
        close_all(packet.fds)


@pytest.mark.parametrize("count", [1, 3])
def test_unasked_fds_are_closed_and_said_so(count: int) -> None:
    ours, theirs = socketpair()
    with ours, theirs, open("/dev/null", "rb") as null:
        before = len(open_fds())
        send_packet(ours, b"x", [null.fileno()] * count)
        packet = recv_packet(theirs, 100, 0)
        assert packet is not None
        assert packet.truncated
        assert packet.fds == []
        assert len(open_fds()) == before


@pytest.mark.parametrize("count", [0, 1])
def test_a_packet_that_was_cut_is_said_to_be(count: int) -> None:
    ours, theirs = socketpair()
    with ours, theirs, open("/dev/null", "rb") as null:
        send_packet(ours, b"too long", [null.fileno()] * count)
        packet = recv_packet(theirs, 3, 1)
        assert packet is not None
        assert (packet.data, len(packet.fds), packet.truncated) == (b"too", count, True)
        close_all(packet.fds)


LINGER = 20  # seconds


def not_asked_for(ours: socket.socket) -> None:
    recv_packet(ours, 100, 0)


def asked_for(ours: socket.socket) -> None:
    packet = recv_packet(ours, 100, 2)
    assert packet is not None
    let_go(packet.fds)


@pytest.mark.parametrize("close", [not_asked_for, asked_for, hang_up])
def test_nobody_waits_for_the_data_of_a_socket_that_a_stranger_has_sent(close: Callable[[socket.socket], None]) -> None:
    ours, theirs = socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as server:
        sent = socket.create_connection(server.getsockname())
        with server.accept()[0]:  # reads nothing
            sent.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while sent.send(bytes(65536)):
                    pass
            sent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
            send_packet(theirs, b"x", [sent.fileno()])
            sent.close()  # what is under way is the last one
            began = time.monotonic()
            close(ours)
            assert time.monotonic() - began < LINGER / 2


def test_without_a_free_fd_the_loss_is_seen() -> None:
    ours, theirs = socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs, open("/dev/null", "rb") as null:
        send_packet(ours, b"x", [null.fileno()])
        gc.collect()  # or it frees one in a moment
        free = os.dup(null.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            packet = recv_packet(theirs, 100, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert packet is not None
        assert packet.truncated
        assert packet.fds == []


def test_full_buffer_is_false_and_not_a_wait() -> None:
    ours, theirs = socketpair()
    with ours, theirs:
        sent = 0
        while send_packet(ours, b"x" * 1000):
            sent += 1
        assert 0 < sent < 100_000


def test_empty_packet_means_the_peer_is_gone_also_when_it_left_unread_bytes() -> None:
    ours, theirs = socketpair()
    with ours:
        assert recv_packet(ours, 100, 0) is None
        send_packet(ours, b"never read")
        theirs.close()
        packet = recv_packet(ours, 100, 0)
        assert packet is not None
        assert packet.data == b""
        with pytest.raises(OSError):
            send_packet(ours, b"x")


def test_what_a_peer_said_before_it_died_is_heard_also_when_it_left_unread_bytes() -> None:
    ours, theirs = socketpair()
    with ours:
        send_packet(ours, b"never read")
        send_packet(theirs, b"why")
        theirs.close()
        heard = [recv_packet(ours, 100, 0) for _ in range(2)]
        assert [packet.data for packet in heard if packet is not None] == [b"why", b""]


def test_what_it_said_is_seen_also_by_who_only_peeks() -> None:
    ours, theirs = socketpair()
    pass_credentials(ours)
    with ours:
        send_packet(ours, b"never read")
        send_packet(theirs, b"why")
        theirs.close()
        packet = peek_packet(ours, 100)
        assert packet is not None
        assert packet.data == b"why"


def test_one_that_is_hung_up_on_keeps_nothing_open_whoever_holds_a_copy() -> None:
    ours, theirs = socketpair()
    pass_credentials(ours)
    reader, writer = os.pipe()
    with ours.dup(), theirs:
        for data, its_fds in ((b"", []), (b"", [writer]), (b"x", [writer])):
            send_packet(theirs, data, its_fds)
        os.close(writer)
        hang_up(ours)
        assert at_end(reader)
    os.close(reader)


def test_nothing_more_can_be_said_to_one_that_has_hung_up_whoever_holds_a_copy() -> None:
    ours, theirs = socketpair()
    with ours.dup(), theirs:
        hang_up(ours)
        with pytest.raises(BrokenPipeError):
            send_packet(theirs, b"x")


def test_fds_are_refused_where_the_kernel_can() -> None:
    ours, theirs = socketpair()
    refuse_fds(ours)
    with ours, theirs, open("/dev/null", "rb") as null:
        with contextlib.suppress(PermissionError):
            send_packet(theirs, b"x", [null.fileno()])
        assert send_packet(theirs, b"x")


def test_the_kernel_names_the_sender() -> None:
    ours, theirs = socketpair()
    pass_credentials(ours)
    with ours, theirs:
        send_packet(theirs, b"hello")
        packet = recv_packet(ours, 100, 0)
        assert packet is not None
        assert packet.pid == os.getpid()


def test_who_peeks_knows_the_sender_and_takes_nothing_until_the_packet_is_dropped() -> None:
    ours, theirs = socketpair()
    with ours, theirs, open("/dev/null", "rb") as null:
        pass_credentials(theirs)
        before = len(open_fds())
        assert peek_packet(theirs, 100) is None
        assert send_packet(ours, b"one", [null.fileno()])
        assert send_packet(ours, b"two")
        for _ in range(2):
            assert peek_packet(theirs, 100) == (b"one", [], os.getpid(), True, os.getuid())  # an fd more came with it
        drop_packet(theirs)
        assert peek_packet(theirs, 100) == (b"two", [], os.getpid(), False, os.getuid())
        assert len(open_fds()) == before
        send_packet(theirs, b"never read")
        ours.close()
        drop_packet(theirs)
        found = peek_packet(theirs, 100)
        assert found is not None
        assert (found.data, found.pid) == (b"", 0)  # as no packet is: that has a sender
    drop_packet(theirs)  # closed meanwhile
    drop_packet(None)


def test_a_pipe_is_at_its_end_when_nobody_can_write_and_nothing_is_left_in_it() -> None:
    reader, writer = os.pipe()
    assert not at_end(reader)
    os.write(writer, b"x")
    os.close(writer)
    assert not at_end(reader)
    os.read(reader, 1)
    assert at_end(reader)
    os.close(reader)


def test_sealed_memfd_cannot_be_changed() -> None:
    fd = memfd("x", b"content")
    try:
        assert read_whole(fd) == b"content"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"other", 0)
    finally:
        os.close(fd)


def test_memfd_for_which_there_is_no_memory_is_closed_and_blames_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def refuse(fd: int, data: memoryview) -> int:
        made.append(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            memfd("x", b"content")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])


def test_fixed_memfd_keeps_its_size() -> None:
    fd = memfd_fixed("x", 4096)
    try:
        os.pwrite(fd, b"y", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_a_fixed_memfd_that_cannot_be_made_leaves_no_descriptor() -> None:
    before = open_fds()
    with pytest.raises(OSError, match="Invalid argument"):
        memfd_fixed("x", -1)
    assert open_fds() == before


def test_what_the_peer_has_not_received_is_known() -> None:
    ours, theirs = socketpair()
    with ours, theirs:
        assert unread(ours) == 0
        assert send_packet(ours, b"drain")
        assert unread(ours) > 0
        assert recv_packet(theirs, 64, 0) is not None
        assert unread(ours) == 0


@pytest.mark.parametrize(("number", "is_for_now"), [(errno.ETOOMANYREFS, True), (errno.ENOBUFS, True), (errno.ENOMEM, True), (errno.EPIPE, False)])
def test_what_a_stream_does_not_take_now_is_none_sent_and_what_it_never_will_is_an_error(number: int, is_for_now: bool) -> None:
    class Lacking(socket.socket):
        def send(self, *_: object) -> int:
            raise OSError(number, os.strerror(number))

        sendmsg = send

    with Lacking() as sock:
        for fd in (-1, 0):
            if is_for_now:
                assert send_some(sock, b"x", fd) == 0
            else:
                with pytest.raises(OSError, match="Broken pipe"):
                    send_some(sock, b"x", fd)


def test_an_fd_comes_with_the_first_bytes_that_a_stream_takes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/dev/null", "rb") as null:
        assert send_some(ours, b"take", null.fileno()) == 4
        packet = recv_packet(theirs, 100, 1)
        assert packet is not None
        assert (packet.data, os.fstat(packet.fds[0]).st_rdev) == (b"take", os.fstat(null.fileno()).st_rdev)
        close_all(packet.fds)


def test_a_full_stream_takes_nothing_and_no_descriptor() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/dev/null", "rb") as null:
        while send_some(ours, bytes(65536)):
            pass
        assert send_some(ours, b"x", null.fileno()) == 0


def test_a_packet_that_there_was_no_memory_for_is_sent_again_and_one_to_nobody_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [errno.ENOBUFS, errno.ENOMEM]
    send = fds.send_packet

    def send_packet(sock: socket.socket, data: bytes) -> bool:
        if refusals:
            raise OSError(number := refusals.pop(0), os.strerror(number))
        return send(sock, data)

    monkeypatch.setattr(fds, "send_packet", send_packet)
    ours, theirs = socketpair()
    with ours, theirs:
        assert fds.send_surely(ours, b"x")
        packet = recv_packet(theirs, 100, 0)
        assert packet is not None
        assert packet.data == b"x"
        theirs.close()
        assert not fds.send_surely(ours, b"y")


def test_bytes_that_must_stay_together_are_not_begun_without_room_for_all() -> None:
    for fill in range(0, 220_000, 5_000):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send_some(ours, bytes(fill))
            assert send_whole(ours, bytes(64 * 1024)) in (0, 64 * 1024)
            while not send_whole(ours, bytes(64 * 1024)):
                assert theirs.recv(10_000)


@pytest.mark.parametrize(
    ("there", "size"),
    [(b"", 8), (b"a\nb\nc", 4), (b"a\nbcdefgh\n", 2), (b"abcdefghi\nj\n", 10), (b"abc", 8), (b"x" * 100 + b"\n", 8)],
)
def test_of_a_stream_of_lines_a_whole_number_is_received(there: bytes, size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(there)
        assert whole_lines(ours, 8, 16) == size
        theirs.close()
        assert ours.recv(200) == there, "nothing was taken"
        assert whole_lines(ours, 8, 16) == 8

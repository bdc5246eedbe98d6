"""What the guardian has to say, when the kernel or the peer does not take it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from pyworker.guardian.outbox import MAX_WAITING, Outbox
from pyworker.guardian.store import FdStore
from pyworker.protocol import store as protocol
from pyworker.protocol import wire
from pyworker.unix import fds
from tests.support.channels import ends as ends


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    store = FdStore({"board.api": os.open(os.devnull, os.O_RDONLY)})
    made = Outbox(store)
    made.restore(["board.api"])
    made.say(protocol.RestoreDone(0, "boot", 1, "1"))
    yield made
    store.remove("board.api")


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def send(*_: object) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fds, "send_packet", send)


@pytest.mark.parametrize("number", [errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS])
def test_what_there_is_no_room_for_waits_in_its_order(
    outbox: Outbox, ends: tuple[socket.socket, socket.socket], number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, number)
        assert [outbox.flush(ends[0]) for _ in range(3)] == ["later"] * 3
        assert len(outbox) == 2
    assert outbox.flush(ends[0]) == "done"
    first, second = (fds.recv_packet(ends[1], wire.MAX_MESSAGE, 4) for _ in range(2))
    assert first is not None
    assert second is not None
    assert wire.decode(protocol.ToDaemon, first.data) == protocol.Restore(("board.api",))
    assert wire.decode(protocol.ToDaemon, second.data) == protocol.RestoreDone(0, "boot", 1, "1")
    assert len(first.fds) == 1
    fds.close_all(first.fds)


def test_what_was_removed_meanwhile_is_not_sent(outbox: Outbox, ends: tuple[socket.socket, socket.socket]) -> None:
    outbox._store.remove("board.api")
    assert outbox.flush(ends[0]) == "done"
    packet = fds.recv_packet(ends[1], wire.MAX_MESSAGE, 4)
    assert packet is not None
    assert wire.decode(protocol.ToDaemon, packet.data) == protocol.RestoreDone(0, "boot", 1, "1")


def test_nothing_is_kept_for_a_peer_that_is_gone(outbox: Outbox, ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    assert outbox.flush(ends[0]) == "gone"  # EPIPE
    assert len(outbox) == 0


def test_a_peer_that_does_not_read_is_waited_for(outbox: Outbox, ends: tuple[socket.socket, socket.socket]) -> None:
    for number in range(20_000):
        outbox.say(protocol.Ping(number))
    assert outbox.flush(ends[0]) == "full"
    assert 0 < len(outbox) < 20_002


def test_a_new_peer_is_told_nothing_that_was_meant_for_the_one_before(
    outbox: Outbox, ends: tuple[socket.socket, socket.socket]
) -> None:
    outbox.clear()
    outbox.say(protocol.Stopping())
    assert outbox.flush(ends[0]) == "done"
    packet = fds.recv_packet(ends[1], wire.MAX_MESSAGE, protocol.BATCH)
    assert packet is not None
    assert isinstance(wire.decode(protocol.ToLogger, packet.data), protocol.Stopping)


def test_however_much_waits_only_what_is_said_again_is_dropped(outbox: Outbox) -> None:
    for number in range(MAX_WAITING):
        outbox.say(protocol.Ping(number), droppable=True)
    assert len(outbox) == MAX_WAITING
    outbox.say(protocol.Exited(4711, 1, None, False))  # said once: nobody would be told of that death
    assert len(outbox) == MAX_WAITING + 1

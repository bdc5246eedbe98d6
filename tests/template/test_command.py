"""What the launcher asks of a channel before it becomes a command or a script."""

from collections.abc import Iterator

import pytest

from pyworker.protocol import wire
from pyworker.protocol.worker import Drain, Go, Hello, Kick
from pyworker.template.command import is_given_up
from pyworker.unix.fds import socketpair
from pyworker.worker.channel import Channel, Received

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = map(Channel, socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_worker_that_nobody_waits_for_is_given_up(ends: Ends) -> None:
    daemon, worker = ends
    daemon.sock.send(wire.encode(Drain(0.0, to_empty=False)))
    worker.send(Hello("1"))
    assert is_given_up(worker)
    worker.close()
    assert daemon.sock.recv(100) == wire.encode(Hello("1"))  # which is lost when something is left unread


def test_worker_whose_daemon_has_closed_its_channel_is_given_up(ends: Ends) -> None:
    daemon, worker = ends
    daemon.close()
    assert is_given_up(worker)


def test_worker_that_was_told_nothing_or_nonsense_is_not_given_up(ends: Ends) -> None:
    daemon, worker = ends
    assert not is_given_up(worker)
    daemon.sock.send(b"\xc1 nonsense")
    assert not is_given_up(worker)


@pytest.mark.parametrize("message", [Go(), Kick()])
def test_what_a_worker_was_told_meanwhile_is_left_for_it(ends: Ends, message: Go | Kick) -> None:
    daemon, worker = ends
    daemon.sock.send(wire.encode(message))
    assert not is_given_up(worker)
    assert worker.receive() == Received(message, -1)

"""What the launcher asks of a channel before it becomes a command or a script."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyworker.protocol import wire
from pyworker.protocol.worker import Drain, Go, Hello, Kick
from pyworker.template.command import find, is_given_up
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


@pytest.mark.parametrize(
    ("name", "path", "found"),
    [
        ("run", "first:second", "second/run"),  # the first one is no program
        ("run", "gone:first/run:second", "second/run"),  # nor are these folders
        ("tool", ":second", "./tool"),
        ("folder", "first", errno.EACCES),
        ("run", "first", errno.EACCES),
        ("nothing", "first:second", errno.ENOENT),
        ("first/run", "second", errno.EACCES),
        ("second/run", "", "second/run"),
        ("second/nothing", "second", errno.ENOENT),
    ],
)
def test_a_command_is_looked_for_as_a_shell_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str, found: str | int
) -> None:
    for file, mode in (("first/run", 0o644), ("second/run", 0o755), ("tool", 0o755)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch(mode)
    (tmp_path / "first" / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    if isinstance(found, str):
        assert find(name, {"PATH": path}) == found
        return
    with pytest.raises(OSError, match=os.strerror(found)):
        find(name, {"PATH": path})

"""The guardian becomes another version of itself: same process, same children, same fds, same promises."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyworker.guardian.main import MESSAGES_A_TURN
from pyworker.protocol import store as protocol
from pyworker.protocol.wire import encode
from pyworker.unix import fds
from tests.guardian.rig import Peer, Rig
from tests.support.pyworker import alive
from tests.support.wait import wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.close()


def replaced(rig: Rig, role: str, peer: Peer) -> Peer:
    """See one program asked to leave, let it go, and return its successor, restored."""
    peer.hear_until(protocol.Leave)
    peer.leave()
    successor = rig.peer(role)
    assert successor.hear_until(protocol.RestoreDone).reason == "upgrade"
    successor.say(protocol.Hello("9"))
    return successor


def test_everything_is_handed_to_the_successors_and_no_process_changes_its_parent(rig: Rig) -> None:
    daemon, logger = rig.both()
    memfd = fds.memfd("kept", b"as it was")
    daemon.say(protocol.Store(("env.api.1",)), (memfd,))
    orphan = daemon.orphan()
    daemon.say(protocol.Upgrade(sys.executable))
    successor = replaced(rig, "daemon", daemon)
    assert fds.read_whole(successor.fds["env.api.1"]) == b"as it was"
    assert {"lock", "control", "lifeline"} <= set(successor.fds)
    replaced(rig, "logger", logger)
    assert rig.process.poll() is None
    os.kill(orphan, signal.SIGTERM)
    exited = successor.hear_until(protocol.Exited, pid=orphan)
    assert exited.code == 15
    os.close(memfd)


def test_a_daemon_that_makes_room_is_told_to_leave_once_also_when_it_has_asked_twice(rig: Rig) -> None:
    """A second word would be for the one that stands by: it would leave before the next daemon has everything."""
    daemon, _ = rig.both()
    daemon.say(protocol.Upgrade(sys.executable))
    daemon.hear_until(protocol.Leave)
    daemon.say(protocol.Upgrade(sys.executable))
    heard = []
    for number in (1, 2):  # what an upgrade would bring about is said before it answers again
        daemon.say(protocol.Ping(number))
        while (message := daemon.hear()) != protocol.Pong(number):
            heard.append(message)
    assert protocol.Leave() not in heard


def test_what_is_stored_with_the_last_breath_is_not_lost(rig: Rig) -> None:
    daemon, _ = rig.both()
    daemon.say(protocol.Upgrade(sys.executable))
    daemon.hear_until(protocol.Leave)
    memfd = fds.memfd("late", b"late")
    daemon.say(protocol.Store(("env.api.2",)), (memfd,))
    daemon.leave()
    successor = rig.peer("daemon")
    successor.hear_until(protocol.RestoreDone)
    assert "env.api.2" in successor.fds
    os.close(memfd)


def stands_by(rig: Rig, daemon: Peer) -> Peer:
    """Have the daemon stand by instead of ending, and return the next one, restored."""
    daemon.hear_until(protocol.Leave)
    daemon.say(protocol.StandsBy())
    successor = rig.peer("daemon")
    assert successor.hear_until(protocol.RestoreDone).reason == "upgrade"
    return successor


def test_daemon_that_stands_by_is_told_by_the_next_one_that_it_is_not_needed(rig: Rig) -> None:
    daemon, _ = rig.both()
    daemon.say(protocol.Upgrade(sys.executable))
    successor = stands_by(rig, daemon)
    assert alive(daemon.pid)
    os.write(successor.fds["standby"], encode(protocol.Leave()))
    assert daemon.hear() == protocol.Leave()
    daemon.leave()
    assert successor.hear_until(protocol.Exited, pid=daemon.pid).code == 0


def test_daemon_that_stands_by_sees_the_end_when_guardian_and_next_daemon_are_gone_and_not_before(rig: Rig) -> None:
    daemon, _ = rig.both()
    daemon.say(protocol.Upgrade(sys.executable))
    successor = stands_by(rig, daemon)
    rig.process.kill()
    rig.process.wait()
    assert fds.recv_packet(daemon.channel, 100, 0) is None
    os.close(successor.fds.pop("standby"))
    assert daemon.hear() is None


def test_deliberate_end_between_two_daemons_is_the_end_of_the_one_that_stands_by(rig: Rig) -> None:
    daemon, logger = rig.both()
    daemon.say(protocol.Upgrade(sys.executable))
    successor = stands_by(rig, daemon)
    successor.say(protocol.Stopping())
    successor.leave()
    logger.hear_until(protocol.Stopping)
    logger.leave()
    assert rig.process.wait(30) == 0
    assert daemon.hear() == protocol.Leave()


def test_end_of_a_child_over_the_exec_is_told_to_the_next_daemon(rig: Rig) -> None:
    daemon, _ = rig.both()
    orphan = daemon.orphan()
    daemon.say(protocol.Upgrade(sys.executable))
    os.kill(orphan, signal.SIGTERM)
    successor = replaced(rig, "daemon", daemon)
    assert successor.hear_until(protocol.Exited, pid=orphan).code == 15


def test_interpreter_that_cannot_be_executed_changes_nothing(rig: Rig) -> None:
    daemon, _ = rig.both()
    daemon.say(protocol.Upgrade("/nowhere/python"))
    failed = daemon.hear_until(protocol.UpgradeFailed)
    assert "/nowhere/python" in failed.why
    daemon.say(protocol.Ping(7))
    assert daemon.hear_until(protocol.Pong).number == 7
    # no fd of the store is left inheritable: a daemon that is started now gets its three and no more
    os.kill(daemon.pid, signal.SIGKILL)
    successor = rig.peer("daemon")
    successor.hear_until(protocol.RestoreDone)
    listed = {os.readlink(f"/proc/{successor.pid}/fd/{n}") for n in os.listdir(f"/proc/{successor.pid}/fd")}
    assert not any("pyworker" in link or "lock" in link for link in listed if "log" not in link)


def test_sigterm_in_the_middle_of_an_upgrade_stops_everything(rig: Rig) -> None:
    daemon, logger = rig.both()
    daemon.say(protocol.Hello("1"))
    daemon.say(protocol.Upgrade(sys.executable))
    rig.process.send_signal(signal.SIGTERM)
    # before the exec or after it: the daemon is asked to stop and to nothing else, no program is started
    wait_until(lambda: not alive(daemon.pid), what="SIGTERM to reach the daemon")
    daemon.close()
    assert select.select([logger.lifeline], [], [], 30)[0], "the logger sees that nobody has said the end"
    logger.leave()
    assert rig.process.wait(20) == 0
    assert not (rig.home / "control.sock").exists()


def test_a_service_managers_reload_in_the_middle_of_an_upgrade_is_the_next_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    rig = Rig(tmp_path)
    try:
        daemon, _ = rig.both()
        daemon.say(protocol.Hello("1"))
        daemon.say(protocol.Upgrade(sys.executable))
        daemon.hear_until(protocol.Leave)
        rig.process.send_signal(signal.SIGHUP)
        daemon.say(protocol.Ping(1))
        daemon.hear_until(protocol.Pong)
        assert alive(daemon.pid), "it would have ended by it"
        daemon.leave()
        successor = rig.peer("daemon")
        successor.hear_until(protocol.RestoreDone)
        successor.say(protocol.Hello("9"))
        wait_until(lambda: not alive(successor.pid), what="SIGHUP to reach the next daemon")
    finally:
        rig.close()


def test_program_that_does_not_make_room_is_killed_and_replaced(rig: Rig) -> None:
    daemon, _ = rig.both()
    daemon.say(protocol.Upgrade(sys.executable))
    daemon.hear_until(protocol.Leave)
    successor = rig.peer("daemon")  # after Times.leave
    assert successor.hear_until(protocol.RestoreDone).reason == "upgrade"


def test_daemon_that_ends_right_after_it_stood_by_is_followed_without_a_failed_turn(rig: Rig) -> None:
    daemon, _ = rig.both()
    daemon.say(protocol.Upgrade(sys.executable))
    daemon.hear_until(protocol.Leave)
    rig.process.send_signal(signal.SIGSTOP)
    for _ in range(MESSAGES_A_TURN):
        daemon.say(protocol.Hello("9"))
    daemon.say(protocol.StandsBy())  # read when its end is: one turn takes no more of its words than those before
    daemon.leave()
    wait_until(lambda: not alive(daemon.pid), what="its end")
    rig.process.send_signal(signal.SIGCONT)
    successor = rig.peer("daemon")
    assert successor.hear_until(protocol.RestoreDone).reason == "upgrade"
    assert "a turn failed" not in rig.log()

"""The guardian's promises, on the real program, with the test as its daemon and logger."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.protocol import store as protocol
from pyworker.protocol.names import DOES_NOT_END, ENV_FAILPOINTS
from pyworker.unix.process import is_stopped
from tests.guardian.rig import Rig
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES

OPEN_RIGS = Callable[..., Rig]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[OPEN_RIGS]:
    rigs: list[Rig] = []

    def make(*arguments: str, wait: bool = True, fds: list[int] | None = None) -> Rig:
        rigs.append(Rig(tmp_path, *arguments, wait=wait, fds=fds or []))
        return rigs[-1]

    yield make
    for rig in rigs[::-1]:
        rig.close()


@pytest.fixture
def failpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the guardians of this test look for what is to go wrong."""
    folder = tmp_path / "failpoints"
    folder.mkdir()
    monkeypatch.setenv(ENV_FAILPOINTS, str(folder))
    return folder


def pipe_with(text: bytes) -> tuple[int, int]:
    reads, writes = os.pipe()
    os.write(writes, text)
    return reads, writes


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_home_is_private_and_the_control_socket_takes_connections_before_ok_is_said(start: OPEN_RIGS) -> None:
    rig = start()
    assert stat.S_IMODE(os.stat(rig.home).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(rig.home / "control.sock").st_mode) == 0o600
    rig.connect().close()


def test_daemon_gets_lock_control_socket_and_lifeline_at_boot(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = dict(rig.next_peer() for _ in range(2))["daemon"], rig.peers[-1]
    done = daemon.hear_until(protocol.RestoreDone)
    assert (done.reason, done.guardian_pid) == ("boot", rig.process.pid)
    assert set(daemon.fds) == {"lock", "control", "lifeline"}
    waiting = rig.connect()
    with socket.socket(fileno=os.dup(daemon.fds["control"])) as listener:
        listener.accept()[0].close()
    waiting.close()
    assert logger in rig.peers


def test_second_guardian_in_the_same_home_says_already_running_and_exits_75(start: OPEN_RIGS) -> None:
    first = start()
    second = start(wait=False)
    assert json.loads(second.answer()) == {"error": "already running", "hint": "pyworker ps", "exit": 75}
    assert second.process.wait(30) == 75
    first.connect().close()


def test_unsafe_home_is_refused_with_the_command_that_mends_it(start: OPEN_RIGS, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.chmod(tmp_path / "home", 0o755)
    rig = start(wait=False)
    answer = json.loads(rig.answer())
    assert answer["exit"] == 77
    assert "open to other users (mode 0755)" in answer["error"]
    assert f"chmod 700 {tmp_path / 'home'}" in answer["hint"]


def test_stored_fds_come_back_to_a_daemon_that_was_killed(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    reads, writes = pipe_with(b"still here")
    daemon.say(protocol.Store(("board.api", "listen.api.0")), (reads, writes))
    os.close(reads)
    os.kill(daemon.pid, signal.SIGKILL)
    successor = rig.peer("daemon")
    done = successor.hear_until(protocol.RestoreDone)
    assert done.reason == "killed by KILL"
    assert len(successor.fds) == 5
    assert os.read(successor.fds["board.api"], 100) == b"still here"
    os.close(writes)


def test_many_fds_come_back_in_batches(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    for first in range(0, 500, 100):
        pipes = [pipe_with(b"%d" % n) for n in range(first, first + 100)]
        daemon.say(
            protocol.Store(tuple(f"ctl.api.1.1.{n}" for n in range(first, first + 100))), tuple(r for r, _ in pipes)
        )
        for pair in pipes:
            os.close(pair[0])
            os.close(pair[1])
        daemon.say(protocol.Ping(first))
        daemon.hear_until(protocol.Pong, number=first)
    daemon.leave(3)
    successor = rig.peer("daemon")
    done = successor.hear_until(protocol.RestoreDone)
    assert (done.reason, len(successor.fds)) == ("exited with code 3", 503)
    assert all(os.read(successor.fds[f"ctl.api.1.1.{n}"], 10) == b"%d" % n for n in range(500))


def test_replaced_and_removed_fds_are_closed(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    ends = []
    for _ in range(2):
        reads, writes = os.pipe()
        daemon.say(protocol.Store(("board.api",)), (reads,))
        os.close(reads)
        ends.append(writes)
    wait_until(lambda: _broken(ends[0]), what="the replaced fd to be closed")
    assert not _broken(ends[1])
    daemon.say(protocol.Remove(("board.api", "board.never")))
    wait_until(lambda: _broken(ends[1]), what="the removed fd to be closed")
    for end in ends:
        os.close(end)


def _broken(writes: int) -> bool:
    try:
        os.write(writes, b"x")
    except BrokenPipeError:
        return True
    return False


def test_logger_is_handed_pipes_only_and_is_told_when_they_are_forgotten(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = rig.both()
    reads, writes = pipe_with(b"line\n")
    daemon.say(protocol.Store(("ctl.api.1.1.1", "out.api.1.1.1", "logs.api")), (reads, reads, reads))
    os.close(reads)
    logger.hear_until(protocol.Restore, names=("out.api.1.1.1", "logs.api"))
    daemon.say(protocol.Remove(("out.api.1.1.1", "ctl.api.1.1.1")))
    assert logger.hear_until(protocol.Forget).names == ("out.api.1.1.1",)
    os.kill(logger.pid, signal.SIGKILL)
    successor = rig.peer("logger")
    assert successor.hear_until(protocol.RestoreDone).reason == "killed by KILL"
    assert set(successor.fds) == {"logs.api"}
    assert daemon.hear_until(protocol.LoggerState) == protocol.LoggerState(successor.pid, 0, "")
    os.close(writes)


def test_pipe_is_dropped_at_closed_only_when_it_really_is_at_its_end(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = rig.both()
    reads, writes = os.pipe()
    daemon.say(protocol.Store(("out.api.1.1.1",)), (reads,))
    logger.hear_until(protocol.Restore)
    logger.say(protocol.Closed(("out.api.1.1.1",)))  # about an older pipe of that name: this one has a writer
    daemon.leave()
    daemon = rig.peer("daemon")
    daemon.hear_until(protocol.RestoreDone)
    assert "out.api.1.1.1" in daemon.fds
    os.close(writes)
    logger.say(protocol.Closed(("out.api.1.1.1", "control")))
    logger.say(protocol.LogStats("api", 1, 0, ""))
    assert "log_stats" in daemon.hear_until(protocol.Relay).text
    daemon.leave()
    daemon = rig.peer("daemon")
    daemon.hear_until(protocol.RestoreDone)
    assert set(daemon.fds) == {"lock", "control", "lifeline"}
    os.close(reads)


def test_ended_child_is_reported_once_and_stays_a_zombie_until_collected(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    first, second = daemon.orphan(), daemon.orphan()
    os.kill(first, signal.SIGTERM)
    assert daemon.hear_until(protocol.Exited) == protocol.Exited(first, 15, None, False)
    os.kill(second, signal.SIGKILL)
    assert daemon.hear_until(protocol.Exited) == protocol.Exited(second, None, 9, False)
    assert not gone(first)
    assert not gone(second)
    daemon.say(protocol.Collected((first, 999_999_999)))
    wait_until(lambda: gone(first), what="the collected child to be reaped")
    assert not gone(second)
    daemon.say(protocol.Collected((second,)))
    wait_until(lambda: gone(second), what="the second one, too")


def test_uncollected_deaths_are_said_again_to_the_next_daemon(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    before, between = daemon.orphan(), daemon.orphan()
    os.kill(before, signal.SIGTERM)
    daemon.hear_until(protocol.Exited, pid=before)
    os.kill(daemon.pid, signal.SIGSTOP)
    os.kill(between, signal.SIGTERM)
    os.kill(daemon.pid, signal.SIGKILL)
    successor = rig.peer("daemon")
    successor.hear_until(protocol.RestoreDone)
    said = {successor.hear_until(protocol.Exited).pid for _ in range(2)}
    assert said == {before, between}
    successor.say(protocol.Collected((before, between)))
    wait_until(lambda: gone(before) and gone(between), what="both to be reaped")


def test_program_that_does_not_answer_pings_is_killed_and_replaced_as_hung(start: OPEN_RIGS) -> None:
    rig = start("--tick", "0.05")
    pair = [rig.next_peer()[1] for _ in range(2)]  # both, or the first one's successor might come before the second
    for peer in pair:
        peer.say(protocol.Hello("1"))  # nobody listens to these
    role, successor = rig.next_peer()
    assert successor.hear_until(protocol.RestoreDone).reason == "hung"
    assert f"the {role} (pid" in rig.log()
    assert "does not answer" in rig.log()


def test_one_that_was_killed_and_that_the_kernel_keeps_is_done_without(start: OPEN_RIGS) -> None:
    rig = start("--tick", "0.7")
    # the daemon has not said Hello: it is not asked for twenty seconds
    _, logger = rig.both()
    with kept(logger.pid):
        logger.say(protocol.Hello("1"))  # ... and no answer to any question
        role, successor = rig.next_peer()
        assert (role, successor.hear_until(protocol.RestoreDone).reason) == ("logger", "hung")
        assert f"the logger (pid {logger.pid}) {DOES_NOT_END}" in rig.log()
        assert not gone(logger.pid)
    wait_until(lambda: gone(logger.pid), what="its end, once it can")


@contextlib.contextmanager
def kept(pid: int) -> Iterator[None]:
    """Have a process stay after SIGKILL, as one does that waits for a disk: whoever traces it is to be told of its end first."""
    libc = ctypes.CDLL(None, use_errno=True)
    seize = 0x4206
    assert libc.ptrace(seize, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    yield
    os.waitpid(pid, 0)  # the tracer's part of it


def test_peer_that_answers_pings_stays(start: OPEN_RIGS) -> None:
    rig = start("--tick", "0.7")
    daemon, logger = rig.both()
    for peer in (daemon, logger):
        peer.say(protocol.Hello("1"))
    for number in range(1, 5):  # the second without an answer is a hang
        for peer in (daemon, logger):
            ping = peer.hear(answer_pings=False)
            while isinstance(ping, (protocol.LoggerVersion, protocol.DaemonState, protocol.NoneStopped)):
                ping = peer.hear(answer_pings=False)
            assert isinstance(ping, protocol.Ping)
            assert ping.number >= number
            peer.say(protocol.Pong(ping.number))
    assert not gone(daemon.pid)
    assert not gone(logger.pid)


def test_with_each_question_the_daemon_is_told_whether_a_child_is_stopped(start: OPEN_RIGS) -> None:
    rig = start("--tick", "0.7")
    daemon, _ = rig.both()
    daemon.say(protocol.Hello("1"))
    orphan = daemon.orphan()
    heard: list[Any] = [None]

    def is_told(none_stopped: bool) -> bool:
        heard.append(daemon.hear(answer_pings=False))
        if not isinstance(heard[-1], protocol.Ping):
            return False
        daemon.say(protocol.Pong(heard[-1].number))
        return isinstance(heard[-2], protocol.NoneStopped) is none_stopped

    wait_until(lambda: is_told(True), what="none is stopped")
    os.kill(orphan, signal.SIGSTOP)
    wait_until(lambda: is_told(False), what="one is stopped")
    os.kill(orphan, signal.SIGCONT)
    wait_until(lambda: is_told(True), what="it was continued")
    os.kill(orphan, signal.SIGTERM)
    daemon.hear_until(protocol.Exited, pid=orphan)


@pytest.mark.parametrize("rubbish", [b"\xff\xfe", b'{"type":"store","names":["x"]}', b"x" * 70_000])
def test_rubbish_is_ignored_with_a_line_in_the_log(start: OPEN_RIGS, rubbish: bytes) -> None:
    rig = start()
    daemon, logger = rig.both()
    for peer in (daemon, logger):
        peer.channel.send(rubbish)
    daemon.say(protocol.Ping(1))
    assert daemon.hear_until(protocol.Pong).number == 1
    wait_until(lambda: rig.log().count("sent nonsense") == 2, what="two lines in the log")


def test_a_guardian_without_descriptors_says_so_with_the_next_step(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    pid = rig.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    reads, writes = os.pipe()
    daemon.say(protocol.Store(("out.api.1.1.1",)), (reads,))
    assert daemon.hear_until(protocol.Missing).names == ("out.api.1.1.1",)
    wait_until(lambda: "no file descriptor is left" in rig.log(), what="the word of it")
    assert f"prlimit --pid {pid} --nofile" in rig.log()
    assert "nonsense" not in rig.log()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    os.close(reads)
    os.close(writes)


def test_fds_of_a_refused_message_are_closed(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    reads, writes = os.pipe()
    daemon.say(protocol.Store(("lock",)), (reads,))  # the lock cannot be replaced
    daemon.say(protocol.Store(("board.api", "board.b")), (reads,))
    daemon.say(protocol.Ping(5), (reads,))
    os.close(reads)
    wait_until(lambda: _broken(writes), what="the fds to be closed")
    os.close(writes)


def test_closed_channel_of_a_living_daemon_ends_it(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, _ = rig.both()
    daemon.channel.shutdown(socket.SHUT_RDWR)
    successor = rig.peer("daemon")
    assert "channel" in successor.hear_until(protocol.RestoreDone).reason


def test_deliberate_stop_ends_daemon_then_logger_then_the_guardian(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = rig.both()
    daemon.say(protocol.Stopping())
    daemon.leave()
    logger.hear_until(protocol.Stopping)
    assert rig.process.poll() is None
    logger.leave()
    assert rig.process.wait(30) == 0
    assert not (rig.home / "control.sock").exists()


def test_term_is_passed_to_the_daemon_and_ends_everything(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = rig.both()
    rig.process.send_signal(signal.SIGHUP)
    rig.process.send_signal(signal.SIGINT)
    rig.process.send_signal(signal.SIGTERM)
    daemon.say(protocol.Stopping())  # it is told when it takes signals
    daemon.say(protocol.Hello("1"))
    wait_until(lambda: gone(daemon.pid), what="the daemon to end")
    logger.hear_until(protocol.Stopping)
    logger.leave()
    assert rig.process.wait(30) == 0


@pytest.mark.parametrize("has_begun", [False, True], ids=["before it takes signals", "over it"])
def test_what_a_daemon_that_dies_was_to_stop_is_left_to_the_logger(start: OPEN_RIGS, has_begun: bool) -> None:
    rig = start()
    daemon, logger = rig.both()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        daemon.say(protocol.Store(("ctl.api.1.1.1",)), (theirs.fileno(),))
        if has_begun:
            daemon.say(protocol.Hello("1"))
        daemon.say(protocol.Ping(1))
        daemon.hear_until(protocol.Pong)
        theirs.close()
        rig.process.send_signal(signal.SIGTERM)
        if not has_begun:
            wait_until(lambda: "SIGTERM" in rig.log(), what="the signal")
            os.kill(daemon.pid, signal.SIGKILL)
        daemon.close()
        ours.settimeout(30)
        assert ours.recv(1) == b"", "a worker sees the end of its channel"
        assert select.select([logger.lifeline], [], [], 30)[0]
        assert os.read(logger.lifeline, 1) == b""
    assert rig.process.poll() is None
    logger.leave()
    assert rig.process.wait(30) == 0


def test_what_a_daemon_has_left_is_ended_at_once_though_its_last_word_is_for_the_logger(start: OPEN_RIGS) -> None:
    rig = start("--tick", "1e6")
    daemon, logger = rig.both()
    os.kill(rig.process.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(rig.process.pid), what="the guardian to stop")
    reads, writes = pipe_with(b"line\n")
    daemon.say(protocol.Store(("out.api.1.1.1",)), (reads,))
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.close()
    rig.process.send_signal(signal.SIGTERM)
    os.kill(rig.process.pid, signal.SIGCONT)
    assert logger.hear_until(protocol.Restore).names == ("out.api.1.1.1",)
    assert select.select([logger.lifeline], [], [], 30)[0], "it is not left for the next tick"
    logger.leave()
    assert rig.process.wait(30) == 0
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize("killed", [True, False])
def test_a_logger_that_fails_over_what_a_dead_daemon_has_left_has_a_successor(start: OPEN_RIGS, killed: bool) -> None:
    rig = start()
    daemon, logger = rig.both()
    reads, writes = pipe_with(b"line\n")
    daemon.say(protocol.Store(("out.api.1.1.1",)), (reads,))
    logger.hear_until(protocol.Restore)
    rig.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM" in rig.log(), what="the signal")
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.close()
    assert select.select([logger.lifeline], [], [], 30)[0], "it is told to end all"
    if killed:
        os.kill(logger.pid, signal.SIGKILL)
    else:
        logger.leave(1)
    successor = rig.peer("logger")
    successor.hear_until(protocol.RestoreDone)
    assert set(successor.fds) == {"out.api.1.1.1"}
    assert select.select([successor.lifeline], [], [], 30)[0], "so is the next one"
    successor.leave()
    assert rig.process.wait(30) == 0
    os.close(reads)
    os.close(writes)


def test_a_logger_that_always_fails_over_what_a_dead_daemon_has_left_keeps_no_guardian(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = rig.both()
    rig.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM" in rig.log(), what="the signal")
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.close()
    for turn in range(3):
        if turn > 0:
            logger = rig.peer("logger")
        assert select.select([logger.lifeline], [], [], 30)[0]
        logger.leave(1)
    assert rig.process.wait(30) == 0


def test_socket_of_another_guardian_is_left_alone_at_the_end(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = rig.both()
    os.unlink(rig.home / "lock")
    (rig.home / "lock").touch()
    daemon.say(protocol.Stopping())
    daemon.leave()
    logger.hear_until(protocol.Stopping)
    logger.leave()
    assert rig.process.wait(30) == 0
    assert (rig.home / "control.sock").exists()


def test_lifeline_ends_when_guardian_and_daemon_are_both_gone(start: OPEN_RIGS) -> None:
    rig = start()
    daemon, logger = rig.both()
    os.set_blocking(logger.lifeline, False)
    rig.process.kill()
    rig.process.wait()
    with pytest.raises(BlockingIOError):
        os.read(logger.lifeline, 1)
    daemon.leave()
    daemon.close()
    wait_until(lambda: _ended(logger.lifeline), what="the end of the lifeline")


def _ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def test_daemon_has_the_lifeline_also_when_it_was_started_before_the_logger_could_be(start: OPEN_RIGS, failpoints: Path) -> None:
    """Else the guardian's death would look to the logger like that of both: it would end all workers."""
    (failpoints / "guardian.start_logger").write_text("raise:EMFILE")
    daemon, _ = start().both()
    assert "lifeline" in daemon.fds


def test_daemon_without_guardian_becomes_one_by_exec_and_keeps_all_fds(start: OPEN_RIGS, tmp_path: Path) -> None:
    rig = start()
    daemon, logger = rig.both()
    reads, writes = pipe_with(b"kept")
    daemon.say(protocol.Store(("board.api",)), (reads,))
    daemon.fds["board.api"] = reads
    os.kill(rig.process.pid, signal.SIGKILL)
    rig.process.wait()
    assert daemon.hear() is None  # how it learns of it
    logger.leave()
    names = dict(daemon.fds)
    state = os.memfd_create("adopt", 0)
    os.write(state, json.dumps({"names": names, "daemon": False}).encode())
    heir = start("--adopt", str(state), wait=False, fds=[*names.values(), state])
    daemon.leave()
    daemon.close()
    os.close(state)
    successor, _ = heir.both("guardian died")
    assert select.select([logger.lifeline], [], [], 30)[0], "the logger before is let go"
    assert os.read(logger.lifeline, 1) == b"\n"
    assert os.read(successor.fds["board.api"], 10) == b"kept"
    third = start(wait=False)
    assert json.loads(third.answer())["error"] == "already running"
    heir.connect().close()
    os.close(writes)


def test_want_of_descriptors_is_said_once_and_once_more_when_it_is_over(
    start: OPEN_RIGS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALM", "4")  # seconds: longer than its pauses in the two that it is tried for here
    rig = start("--tick", "0.2")
    daemon, logger = rig.both()
    before = resource.prlimit(rig.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(rig.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    daemon.leave(1)
    logger.leave(1)
    wait_until(lambda: f"the daemon cannot be started: {TOO_MANY_OPEN_FILES}" in rig.log(), what="a word on it")
    wait_until(lambda: f"the logger cannot be started: {TOO_MANY_OPEN_FILES}" in rig.log(), what="a word on it")
    tries_until = time.monotonic() + 2.0  # some ten of each
    wait_until(lambda: time.monotonic() > tries_until, what="more tries")
    assert rig.log().count(TOO_MANY_OPEN_FILES) == 2, rig.log()
    assert "Traceback" not in rig.log()
    resource.prlimit(rig.process.pid, resource.RLIMIT_NOFILE, before)
    pair = dict(rig.next_peer() for _ in range(2))
    for peer in pair.values():
        assert peer.hear_until(protocol.RestoreDone).reason == "exited with code 1"

    def over() -> bool:
        for peer in pair.values():  # it would be hung for one that does not answer
            while select.select([peer.channel], [], [], 0)[0]:
                with contextlib.suppress(AssertionError):
                    peer.hear(deadline=0)
        return all(f"times: the {role} cannot be started" in rig.log() for role in ("daemon", "logger"))

    wait_until(over, 30, what="the end of it in the log")
    assert rig.log().count("over, after") == 2


def test_a_mistake_that_is_met_again_and_again_is_said_once_and_keeps_nothing_else_from_being_done(
    start: OPEN_RIGS, failpoints: Path
) -> None:
    rig = start()
    daemon, logger = rig.both()
    path = failpoints / "guardian.start_logger"
    path.write_text("raise always")
    logger.leave(0)
    wait_until(lambda: "Unexpected: guardian.start_logger" in rig.log(), what="the mistake")
    for number in range(1, 21):  # a turn each, and each fails
        daemon.say(protocol.Ping(number))
        daemon.hear_until(protocol.Pong, number=number)
    assert rig.log().count("Traceback") == 1, rig.log()
    path.unlink()
    assert rig.peer("logger").hear_until(protocol.RestoreDone)


def test_a_program_that_always_dies_young_is_not_said_to_at_each_of_its_ends(start: OPEN_RIGS) -> None:
    rig = start()
    _, logger = rig.both()
    for _ in range(5):
        logger.leave(7)
        logger = rig.peer("logger")
        logger.hear_until(protocol.RestoreDone)
    assert 1 <= rig.log().count("exited with code 7") <= 3, rig.log()


def test_a_child_is_reaped_also_when_something_went_wrong_before(start: OPEN_RIGS, failpoints: Path) -> None:
    rig = start()
    daemon, _ = rig.both()
    orphan = daemon.orphan()
    os.kill(orphan, signal.SIGTERM)
    daemon.hear_until(protocol.Exited, pid=orphan)
    (failpoints / "guardian.collect").write_text("raise")
    daemon.say(protocol.Collected((orphan,)))
    wait_until(lambda: gone(orphan), what="it to be reaped")


def test_what_could_not_be_stored_is_asked_for_again(
    start: OPEN_RIGS, failpoints: Path
) -> None:
    rig = start()
    daemon, _ = rig.both()
    (failpoints / "guardian.store").write_text("raise")
    reads, writes = pipe_with(b"kept")
    daemon.say(protocol.Store(("board.api",)), (reads,))
    assert daemon.hear_until(protocol.Missing).names == ("board.api",)
    daemon.say(protocol.Store(("board.api",)), (reads,))
    os.close(reads)
    daemon.leave(1)
    successor = rig.peer("daemon")
    successor.hear_until(protocol.RestoreDone)
    assert os.read(successor.fds["board.api"], 10) == b"kept"
    os.close(writes)


def test_an_end_that_could_not_be_said_is_said_later(
    start: OPEN_RIGS, failpoints: Path
) -> None:
    rig = start()
    daemon, _ = rig.both()
    first, second = daemon.orphan(), daemon.orphan()
    (failpoints / "guardian.exited").write_text("raise")
    for pid in (first, second):
        os.kill(pid, signal.SIGTERM)
    for pid in (first, second):
        assert daemon.hear_until(protocol.Exited, pid=pid).code == 15
    daemon.say(protocol.Collected((first, second)))
    wait_until(lambda: gone(first) and gone(second), what="both to be reaped")

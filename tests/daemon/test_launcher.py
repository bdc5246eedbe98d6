"""The daemon's side of the launcher, with the real launcher: many, killed, hung, idle."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyworker.config.schema import AppConfig
from pyworker.daemon import launcher as module
from pyworker.daemon.launcher import Launcher
from pyworker.daemon.loop import Loop
from pyworker.protocol import wire
from pyworker.protocol.names import ENV_FAILPOINTS
from pyworker.protocol.template import Engine, Launched, LaunchSpec
from pyworker.template.launches import MOST
from pyworker.unix import fds as unix_fds
from pyworker.unix import process
from pyworker.unix.fds import close_all, memfd, socketpair
from pyworker.unix.process import is_gone, pidfd_pid, stat_fields
from tests.support.children import children, none_left
from tests.support.descriptors import open_fds

LONG = 60.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = open_fds()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: as the guardian is
    loop = Loop()
    with none_left():
        yield loop
    loop.close()
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # other tests look at their children, too
    assert open_fds() == before


def turn_until(loop: Loop, predicate: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LONG
    while not predicate():
        assert time.monotonic() < end, f"waited {LONG:g} s for {what}"
        loop.turn(0.05)


class Asked:
    """One process that was asked for: what it printed, and what was said of it."""

    def __init__(self, launcher: Launcher, command: tuple[str, ...], *, direct: bool = False) -> None:
        self.failed: list[int] = []
        self.started: list[int] = []
        self.channel, theirs = socketpair()
        self.out, writer = os.pipe()
        os.set_blocking(self.out, False)
        spec = LaunchSpec(
            role="command", app=AppConfig(name="job", command=command, cwd="/"), generation=1, slot=1, serial=0, held=False,
            python=sys.executable, env={"PATH": os.environ["PATH"]}, uid=None, gid=None, groups=(), engine=Engine("", ""),
            channel_fd=4, runtime_fd=-1, board_fd=-1, row=0, listener_fds=(),
        )  # fmt: skip
        null = os.open(os.devnull, os.O_RDWR)
        spec_fd = memfd("spec", wire.encode(spec))
        try:
            launcher.launch(
                {0: null, 1: writer, 2: writer, 3: spec_fd, 4: theirs.fileno()}, 3, self.failed.append,
                self.started.append, direct=direct,
            )  # fmt: skip
        finally:
            theirs.close()
            close_all([writer, null, spec_fd])
        self.printed = b""

    def read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            self.printed += os.read(self.out, 65536)
        return self.printed

    def close(self) -> None:
        self.channel.close()
        os.close(self.out)


def is_launcher(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().startswith("pyworker launch")
    except OSError:
        return False


def launchers() -> list[int]:
    """Return our launchers; processes of other tests may have come to us as well."""
    return [pid for pid in children(os.getpid()) if is_launcher(pid)]


def launcher_pid(launcher: Launcher) -> int:
    assert launcher.channel is not None
    return pidfd_pid(launcher.pidfd)


def parent(pid: int) -> int:
    return int(stat_fields(pid)[1])


def take_little(launcher: Launcher) -> None:
    """Let its channel hold a few messages only."""
    assert launcher.channel is not None
    launcher.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def reap_orphans(loop: Loop, pids: set[int]) -> None:
    """Collect the processes that came to us as the subreaper."""

    def collected() -> bool:
        for pid in list(pids):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    pids.discard(pid)
        return not pids

    turn_until(loop, collected, "the end of what was started")


def test_many_are_started_by_one_launcher_and_belong_to_the_guardian(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    asked = [Asked(launcher, ("sh", "-c", "echo $$; ls /proc/self/fd | tr '\\n' ' '; exec sleep 600")) for _ in range(12)]
    first = launcher_pid(launcher)
    turn_until(loop, lambda: launcher.is_idle, "all to be started")
    assert launcher_pid(launcher) == first
    turn_until(loop, lambda: all(b"0 1 2" in each.read() for each in asked), "all that they print")
    pids = {int(each.printed.split()[0]) for each in asked}
    for each in asked:
        assert each.printed.split(b"\n")[1].split() == [b"0", b"1", b"2", b"3"], each.printed  # 3: of ls itself
        assert each.failed == []
    turn_until(loop, lambda: all(parent(pid) == os.getpid() for pid in pids), "who was between to leave")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 12
    reap_orphans(loop, pids)
    turn_until(loop, lambda: launcher.channel is None and first not in launchers(), "the launcher to leave")
    for each in asked:
        each.close()


def test_more_than_a_batch_is_started_directly_among_others_and_each_pid_is_told(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    asked = [Asked(launcher, ("sh", "-c", "echo $$; exec sleep 600"), direct=n % 7 != 3) for n in range(MOST + 20)]
    turn_until(loop, lambda: all(each.read().endswith(b"\n") for each in asked), "all that they print")
    pids = {int(each.printed) for each in asked}
    turn_until(loop, lambda: all(parent(pid) == os.getpid() for pid in pids), "who was between to leave")
    turn_until(loop, lambda: all(each.started for each in asked), "their pids")
    for n, each in enumerate(asked):
        assert each.started == [int(each.printed)]
        assert each.failed == []
        each.channel.settimeout(60)  # its last copy is let go of after its pid was told
        assert bool(each.channel.recv(4096)) == (n % 7 == 3)  # Hello, of who has come from a fork
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == len(asked)
    reap_orphans(loop, pids)
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    for each in asked:
        each.close()


def test_a_launcher_keeps_no_descriptor_of_what_it_has_started(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 60.0)
    launcher = Launcher(loop)
    asked = [Asked(launcher, ("sh", "-c", "echo $$"), direct=direct) for direct in (False, True, False)]
    ends = select.poll()
    for each in asked:
        ends.register(each.out, 0)
    turn_until(loop, lambda: ends.poll(0) == [(each.out, select.POLLHUP) for each in asked], "the end of their output")
    assert launchers() == [launcher_pid(launcher)]
    monkeypatch.setattr(module, "IDLE", 0.2)
    asked.append(Asked(launcher, ("sh", "-c", "echo $$")))
    turn_until(loop, lambda: all(each.read().endswith(b"\n") for each in asked), "what they print")
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    reap_orphans(loop, {int(each.printed) for each in asked})
    for each in asked:
        each.close()


def test_who_starts_directly_leaves_with_its_launcher_also_when_stopped(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "IDLE", 0.2)
    monkeypatch.setenv(ENV_FAILPOINTS, str(tmp_path))
    (tmp_path / "launch.started").write_text("spin")
    launcher = Launcher(loop)
    asked = Asked(launcher, ("sh", "-c", "echo $$"), direct=True)
    turn_until(loop, lambda: asked.read().endswith(b"\n"), "what it prints")
    pid = launcher_pid(launcher)
    middle = next(child for child in children(pid) if is_launcher(child))
    os.kill(middle, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    turn_until(loop, lambda: asked.failed, "it to be given up")
    assert asked.started == []
    reap_orphans(loop, {int(asked.printed), middle})
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    asked.close()


def test_more_than_fit_into_the_channel_wait_and_are_started(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    first = Asked(launcher, ("sh", "-c", "echo $$"))
    os.kill(launcher_pid(launcher), signal.SIGSTOP)
    take_little(launcher)
    asked = [first, *(Asked(launcher, ("sh", "-c", "echo $$")) for _ in range(30))]
    assert len(launcher._due) > 0
    os.kill(launcher_pid(launcher), signal.SIGCONT)
    turn_until(loop, lambda: all(each.read().endswith(b"\n") for each in asked), "all that they print")
    reap_orphans(loop, {int(each.printed) for each in asked})
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    for each in asked:
        each.close()


def test_what_a_killed_launcher_had_is_given_up_and_the_rest_goes_to_another(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    lost = Asked(launcher, ("sh", "-c", "echo $$"))
    pid = launcher_pid(launcher)
    os.kill(pid, signal.SIGSTOP)
    take_little(launcher)
    asked = [Asked(launcher, ("sh", "-c", "echo $$")) for _ in range(30)]
    waiting = len(launcher._due)
    os.kill(pid, signal.SIGKILL)
    turn_until(loop, lambda: all(each.failed or each.read().endswith(b"\n") for each in [lost, *asked]), "a word on each")
    assert sum(each.failed == [0] for each in [lost, *asked]) >= 31 - waiting - 2  # one may have been under way
    assert all(each.printed.endswith(b"\n") for each in asked[-waiting:])
    reap_orphans(loop, {int(each.read()) for each in [lost, *asked] if each.read()})
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    for each in [lost, *asked]:
        each.close()


def test_who_fails_at_being_told_that_it_is_given_up_keeps_no_other_from_being_told_or_started(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    lost = Asked(launcher, ("sh", "-c", "echo $$"))
    ((number, sent),) = launcher._sent.items()
    launcher._sent[number] = sent._replace(failed=fail)
    pid = launcher_pid(launcher)
    os.kill(pid, signal.SIGSTOP)
    take_little(launcher)
    asked = [Asked(launcher, ("sh", "-c", "echo $$")) for _ in range(30)]
    assert launcher._due
    os.kill(pid, signal.SIGKILL)
    turn_until(loop, lambda: all(each.failed or each.read().endswith(b"\n") for each in asked), "a word on each")
    reap_orphans(loop, {int(each.read()) for each in [lost, *asked] if each.read()})
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    for each in [lost, *asked]:
        each.close()


def test_a_launcher_that_hangs_is_killed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANGS", 0.3)
    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    first = Asked(launcher, ("true",))
    os.kill(launcher_pid(launcher), signal.SIGSTOP)
    turn_until(loop, lambda: first.failed, "it to be given up")
    monkeypatch.setattr(module, "HANGS", 20.0)
    second = Asked(launcher, ("sh", "-c", "echo $$"))
    turn_until(loop, lambda: second.read().endswith(b"\n"), "the next one")
    reap_orphans(loop, {int(second.printed)})
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    first.close()
    second.close()


def test_a_launcher_without_a_free_descriptor_says_so_and_goes_on(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", LONG)
    launcher = Launcher(loop)
    first = Asked(launcher, ("sh", "-c", "echo $$"))
    turn_until(loop, lambda: first.read().endswith(b"\n"), "the first one")
    pid = launcher_pid(launcher)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (6, before[1]))  # for two of the five
    second = Asked(launcher, ("sh", "-c", "echo $$"))
    turn_until(loop, lambda: second.failed, "a word on it")
    assert second.failed == [errno.EMFILE]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    third = Asked(launcher, ("sh", "-c", "echo $$"))
    turn_until(loop, lambda: third.read().endswith(b"\n"), "the next one")
    assert launcher_pid(launcher) == pid
    monkeypatch.setattr(module, "IDLE", 0.2)
    last = Asked(launcher, ("sh", "-c", "echo $$"))
    turn_until(loop, lambda: last.read().endswith(b"\n"), "the last one")
    reap_orphans(loop, {int(first.printed), int(third.printed), int(last.printed)})
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    for each in (first, second, third, last):
        each.close()


def test_a_machine_that_was_frozen_is_not_taken_for_a_launcher_that_hangs() -> None:
    clock = [1000.0]
    loop = Loop(lambda: clock[0])
    launcher = Launcher(loop)
    asked = Asked(launcher, ("true",))
    pid = launcher_pid(launcher)
    os.kill(pid, signal.SIGSTOP)
    for _ in range(3):
        clock[0] += 1000.0
        loop.turn(0)
    assert not is_gone(launcher.pidfd)
    assert asked.failed == []
    clock[0] += module.HANGS
    turn_until(loop, lambda: asked.failed, "it to be given up")
    turn_until(loop, lambda: not os.path.exists(f"/proc/{pid}"), "its end")
    loop.close()
    asked.close()


def test_a_launcher_that_was_stopped_when_it_was_not_needed_any_more_is_killed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    asked = Asked(launcher, ("sh", "-c", "echo $$"))
    pid = launcher_pid(launcher)
    turn_until(loop, lambda: launcher.is_idle and not children(pid), "it to be started, and who has told of it to be reaped")
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "HANGS", 0.3)
    turn_until(loop, lambda: asked.read().endswith(b"\n"), "what it prints")
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "its end")
    reap_orphans(loop, {int(asked.printed)})
    asked.close()


def test_a_launcher_that_cannot_be_watched_leaves_no_process(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> int:
        raise OSError(24, "Too many open files")

    launcher = Launcher(loop)
    monkeypatch.setattr(os, "pidfd_open", none_left)
    with open(os.devnull) as null, pytest.raises(OSError, match="Too many"):
        launcher.launch({0: null.fileno()}, 0, lambda errno: None, lambda pid: None, direct=False)
    assert launcher.channel is None
    assert launchers() == []


def test_a_launcher_that_cannot_be_started_is_an_error_of_the_caller(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PYTHON", ("/nowhere/python",))
    launcher = Launcher(loop)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(FileNotFoundError):
        launcher.launch({0: theirs.fileno()}, 0, lambda errno: None, lambda pid: None, direct=False)


def test_a_shortage_of_descriptors_is_said_and_closes_what_was_copied(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.2)
    launcher = Launcher(loop)
    first = Asked(launcher, ("sh", "-c", "echo $$"))
    turn_until(loop, lambda: first.read().endswith(b"\n"), "the first one")
    made: list[int] = []
    real = os.dup

    def dup(fd: int) -> int:
        if len(made) == 3:
            raise OSError(24, "Too many open files")
        made.append(real(fd))
        return made[-1]

    monkeypatch.setattr(os, "dup", dup)
    monkeypatch.setattr(module, "HANGS", 0.3)
    with pytest.raises(OSError, match="Too many"):
        launcher.launch(dict.fromkeys(range(5), 0), 0, lambda errno: None, lambda pid: None, direct=False)
    monkeypatch.undo()
    reap_orphans(loop, {int(first.printed)})
    monkeypatch.setattr(module, "IDLE", 0.2)
    turn_until(loop, lambda: launcher.channel is None and not launchers(), "the launcher to leave")
    first.close()


class StandIn:
    """A launcher that does nothing; the test speaks for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
        self.loop = loop
        self.refused: list[int] = []  # of the packets that come next: why each is not taken, 0: it is
        self.failed: list[int] = []
        self.pids: list[int] = []
        self.may_start = True
        real, send = process.spawn_watched, unix_fds.send_packet

        def spawn(argv: list[str], env: dict[str, str], table: dict[int, int]) -> tuple[int, int]:
            if not self.may_start:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self.peer = socket.socket(fileno=os.dup(table[3]))
            pid, pidfd = real(["/bin/sleep", "600"], {}, {0: table[0]})
            self.pids.append(pid)
            return pid, pidfd

        def send_packet(*args: object) -> bool:
            if number := self.refused.pop(0) if self.refused else 0:
                raise OSError(number, os.strerror(number))
            return send(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(process, "spawn_watched", spawn)
        monkeypatch.setattr(unix_fds, "send_packet", send_packet)
        self.launcher = Launcher(loop)

    def launch(self, *refused: int) -> None:
        self.refused += refused
        with open(os.devnull) as null:
            self.launcher.launch({0: null.fileno()}, 0, self.failed.append, lambda pid: None, direct=False)
        self.loop.turn(0)

    def end(self) -> None:
        """Leave, and let nobody come in its place."""
        self.may_start = False
        self.peer.close()
        turn_until(self.loop, lambda: self.launcher.channel is None, "its end to be read")
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        turn_until(self.loop, lambda: not [pid for pid in self.pids if pid in children(os.getpid())], "it to be reaped")


@pytest.mark.parametrize(
    ("number", "is_given_up"),
    [(errno.ENOBUFS, True), (errno.ETOOMANYREFS, True), (errno.EPIPE, False), (errno.ECONNRESET, False)],
)
def test_what_a_launcher_could_not_be_told_has_failed_unless_it_was_dead_and_then_the_next_one_is_to_be_told(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, number: int, is_given_up: bool
) -> None:
    launcher = StandIn(monkeypatch, loop)
    launcher.launch(number)
    assert (launcher.failed, len(launcher.launcher._due)) == (([number], 0) if is_given_up else ([], 1))
    launcher.end()
    loop.turn(0)
    assert launcher.failed == [number if is_given_up else errno.EAGAIN]  # there was no next one
    assert launcher.launcher.is_idle


def test_descriptors_on_their_way_are_waited_for(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = StandIn(monkeypatch, loop)
    launcher.launch(0)
    launcher.launch(errno.ETOOMANYREFS)
    assert (launcher.failed, len(launcher.launcher._due)) == ([], 1)
    launcher.peer.send(wire.encode(Launched(1)))
    turn_until(loop, lambda: len(launcher.launcher._due) == 0, "the second one to be sent")
    launcher.end()
    loop.turn(0)
    assert launcher.failed == [0]  # nobody knows how far it had come with that


def test_a_launcher_that_says_what_is_no_answer_is_killed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = StandIn(monkeypatch, loop)
    launcher.launch()
    launcher.peer.send(b"hello")
    turn_until(loop, lambda: is_gone(launcher.launcher.pidfd), "its end")
    launcher.end()

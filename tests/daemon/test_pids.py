"""Which process is which worker, and how each ended. Real loop and processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon import pids
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.pids import MOST_WAITS, STATUS_PATIENCE, STRANGER_PATIENCE, YOUNG, Pids, open_pidfd
from pyworker.daemon.shortage import Shortage, step_for
from pyworker.policy.lifecycle import State
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.store import Exited
from pyworker.unix import process
from pyworker.unix.process import ExitStatus
from tests.support.descriptors import open_fds
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES


def test_one_that_nobody_could_watch_is_killed_also_in_its_first_moment_when_it_leads_no_group_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_descriptor(pid: int, owner: int | None) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(pids, "open_pidfd", no_descriptor)
    daemon = Told()
    child = subprocess.Popen(["sleep", "600"])
    try:
        assert daemon.pids.claim(daemon.app, daemon.worker(0), child.pid)
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("error", "owner"),
    [
        (errno.ESRCH, None),  # it has gone: its number may be anybody's by now
        (errno.EMFILE, 1000),  # named by one that may have named another user's process
    ],
)
@pytest.mark.parametrize("told", [None, ExitStatus(3, None)])
def test_one_that_cannot_be_watched_has_ended_as_the_guardian_says_and_nobody_is_killed_by_its_number(
    monkeypatch: pytest.MonkeyPatch, error: int, owner: int | None, told: ExitStatus | None
) -> None:
    def refuse(pid: int, owner: int | None) -> int:
        raise OSError(error, os.strerror(error))

    killed: list[int] = []
    monkeypatch.setattr(pids, "open_pidfd", refuse)
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    monkeypatch.setattr(process, "kill_group", lambda pid, number: killed.append(pid))
    daemon = Told()
    handle = daemon.worker(0)
    if told is not None:
        daemon.pids.on_exited(Exited(42, told.code, None, False))
    assert daemon.pids.claim(daemon.app, handle, 42, owner=owner)
    assert (handle.pid, daemon.ended, killed) == (42, [(1, told or process.UNKNOWN)], [])
    failure = handle.failure and (handle.failure.message, handle.failure.hint)
    assert failure == (("it could not be watched: Too many open files", step_for(error)) if error == errno.EMFILE else None)


def test_a_pidfd_of_which_nobody_can_say_whose_it_is_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pidfd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(process, "pidfd_pid", refuse)
    before = open_fds()
    with pytest.raises(OSError, match=TOO_MANY_OPEN_FILES):
        open_pidfd(os.getpid(), os.geteuid())
    assert open_fds() == before


def test_the_pidfd_of_another_users_process_or_of_one_that_has_gone_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    assert open_pidfd(os.getpid(), os.geteuid() + 1) is None
    monkeypatch.setattr(process, "pidfd_pid", lambda pidfd: 0)  # what the number stands for by now is the owner's as well
    with pytest.raises(ProcessLookupError):
        open_pidfd(os.getpid(), os.geteuid())
    assert open_fds() == before


class Told:
    """A daemon's Pids beside a guardian, on a clock of ours: what it lets the guardian reap, and which ends it knows."""

    def __init__(self, guardian: int = 0, **app: Any) -> None:
        self.now = 100.0
        self.collected: list[int] = []
        self.ended: list[tuple[int, ExitStatus]] = []
        self.loop = Loop(lambda: self.now)
        store: Any = SimpleNamespace(collected=self.collected.append, guardian_pid=guardian)
        self.app: Any = SimpleNamespace(**{"workers": {}, "templates": {}, "dispatcher": None} | app)
        shortages = SimpleNamespace(of_death=lambda pid, status: Shortage())
        deaths = SimpleNamespace(ended=self._ended, shortages=shortages)
        self.brain: Any = SimpleNamespace(loop=self.loop, store=store, apps={"api": self.app}, deaths=deaths)
        self.pids = Pids(self.brain)

    def _ended(self, app: Any, handle: Any, status: ExitStatus) -> None:
        handle.status = status
        self.ended.append((handle.id.serial, status))

    def worker(self, pid: int, state: State = State.READY, born_at: float = 0.0) -> WorkerHandle:
        serial = len(self.app.workers) + 1
        handle = WorkerHandle(WorkerId("api", 1, 1, serial), held=False, born_at=born_at, pid=pid, state=state)
        self.app.workers[serial] = handle
        return handle

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.loop.turn(0.0)


def test_an_exit_is_of_the_living_worker_with_that_pid() -> None:
    told = Told()
    told.worker(42, State.STOPPED)  # its pid is another one's by now
    told.worker(41)
    told.worker(42)
    told.pids.on_exited(Exited(42, 1, None, False))
    assert (told.ended, told.collected) == ([(3, ExitStatus(1, None))], [])  # collected when its group has been killed


def test_a_pid_that_the_guardian_names_is_let_go_also_when_it_was_the_launchers_as_its_end_was_seen() -> None:
    """It was taken for one that somebody else reaps, and stayed a zombie for as long as the guardian lived."""
    told = Told()
    worker = told.worker(42)
    worker.reaped = True
    told.pids.on_exited(Exited(42, 1, None, False))
    assert not worker.reaped


@pytest.mark.parametrize(
    ("app", "may_be_ours"),
    [
        ({}, False),  # a spare, or what an app has left behind
        ({"workers": {1: SimpleNamespace(is_alive=True, pid=7)}}, False),
        ({"workers": {1: SimpleNamespace(is_alive=False, pid=0)}}, False),
        ({"workers": {1: SimpleNamespace(is_alive=True, pid=0)}}, True),  # nobody has named it yet
        ({"templates": {1: SimpleNamespace(pid=7)}}, False),
        ({"templates": {1: SimpleNamespace(pid=7), 2: SimpleNamespace(pid=42)}}, True),
        ({"templates": {1: SimpleNamespace(pid=0)}}, True),
        ({"dispatcher": SimpleNamespace(pid=7)}, False),
        ({"dispatcher": SimpleNamespace(pid=42)}, True),
        ({"dispatcher": SimpleNamespace(pid=0)}, True),
    ],
)
def test_a_pid_that_nobody_claims_is_let_go_at_once_or_when_nobody_has_claimed_it_for_a_while(
    app: dict[str, Any], may_be_ours: bool
) -> None:
    told = Told(**app)
    told.pids.on_exited(Exited(42, 3, None, False))
    assert told.collected == ([] if may_be_ours else [42])
    told.pass_time(STRANGER_PATIENCE - 1)
    assert told.collected == ([] if may_be_ours else [42])
    told.pass_time(2)
    assert told.collected == [42]
    assert told.pids.unclaimed == {}  # the pid may be another process's: this end is not told of that one
    assert told.ended == []


def test_a_worker_that_had_ended_before_anybody_named_it_has_ended_as_the_guardian_said() -> None:
    child = subprocess.Popen(["true"])
    told = Told()
    put: dict[str, int] = {}
    told.brain.store.put, told.brain.emit = put.__setitem__, lambda *args, **data: None
    handle = told.worker(0)
    told.pids.on_exited(Exited(child.pid, 3, None, False))
    try:
        assert told.pids.claim(told.app, handle, child.pid)
        assert (handle.pid, told.ended) == (child.pid, [(1, ExitStatus(3, None))])
        told.pass_time(STRANGER_PATIENCE + 1)
        assert told.collected == []  # it is its worker's end that lets it go
    finally:
        child.wait()
        for pidfd in put.values():
            os.close(pidfd)


@pytest.mark.parametrize("released", [False, True])
def test_of_an_end_that_was_seen_here_first_the_guardians_word_only_lets_the_pid_go(
    released: bool
) -> None:
    told = Told()
    told.worker(42)
    told.pids._known[42] = False
    if released:  # all is done that its pid is needed for
        told.pids.let_go(42)
    assert told.collected == []  # the guardian, which has not said it, would not hear
    told.pids.on_exited(Exited(42, 1, None, False))
    assert (told.ended, told.collected, told.pids._known) == ([], [42] if released else [], {})


@pytest.mark.parametrize(
    ("of_guardian", "direct", "age", "at_once", "reaped"),
    [
        (True, False, 60.0, True, False),  # its pid is reserved until we let it go
        (True, True, 0.0, True, False),
        (False, False, 0.0, True, True),  # an orphan of a guardian that is gone: anybody may reap it now
        (False, True, 60.0, True, True),
        (False, True, 0.0, False, True),  # the launcher's yet, and maybe the guardian's in a moment
    ],
)
def test_how_a_worker_ended_is_read_before_the_guardian_says_it(
    of_guardian: bool, direct: bool, age: float, at_once: bool, reaped: bool
) -> None:
    child = subprocess.Popen(["sh", "-c", "exit 3"])
    pidfd = os.pidfd_open(child.pid)
    told = Told(guardian=os.getpid() if of_guardian else 0)
    try:
        assert age == 0.0 or age > YOUNG
        handle = told.worker(child.pid, born_at=told.now - age)
        handle.direct = direct
        told.pids.watch(told.app, handle, pidfd)
        wait_until(lambda: told.loop.turn(0.01) or handle.ended_at, what="its end")
        assert told.ended == ([(1, ExitStatus(3, None))] if at_once else [])
        assert not told.loop.watches(pidfd)  # it is readable for good
        told.pass_time(STATUS_PATIENCE + 0.1)
        assert told.ended == [(1, ExitStatus(3, None))]
        assert handle.reaped is reaped
        assert told.pids._known == ({child.pid: False} if of_guardian else {})
    finally:
        child.wait()
        os.close(pidfd)


def test_one_of_whose_end_the_kernel_could_not_be_asked_has_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("of no kind that anybody expects")

    monkeypatch.setattr(process, "last_status", fail)
    monkeypatch.setattr(process, "collect", fail)
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    told = Told()
    helper: list[ExitStatus] = []
    try:
        told.loop._report = lambda what: None
        told.pids.watch(told.app, handle := told.worker(child.pid), pidfd)
        wait_until(lambda: told.loop.turn(0.01) or handle.ended_at, what="its end")
        with pytest.raises(ValueError, match="expects"):
            told.pids.of_helper(child.pid, pidfd, lambda status, shortage: helper.append(status))
        told.pass_time(STATUS_PATIENCE + 0.1)
        assert (told.ended, helper) == ([(1, process.UNKNOWN)], [process.UNKNOWN])
    finally:
        child.wait()
        os.close(pidfd)


def test_one_of_whose_end_nobody_says_a_word_has_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    child.wait()
    told = Told()
    monkeypatch.setattr(process, "last_status", lambda pidfd: None)  # an older kernel
    handle = told.worker(child.pid)
    told.pids.watch(told.app, handle, pidfd)
    wait_until(lambda: told.loop.turn(0.01) or handle.ended_at, what="its end")
    assert told.ended == []  # the guardian's word may be on its way
    told.pass_time(STATUS_PATIENCE + 0.1)
    assert told.ended == [(1, process.UNKNOWN)]
    os.close(pidfd)


@pytest.mark.parametrize("of_guardian", [True, False])
def test_how_a_child_of_a_guardian_that_is_late_ended_is_not_unknown(of_guardian: bool) -> None:
    child = subprocess.Popen(["true"])  # /proc does not tell 0
    pidfd = os.pidfd_open(child.pid)
    told = Told(guardian=os.getpid() if of_guardian else 0)
    try:
        told.pids.watch(told.app, handle := told.worker(child.pid), pidfd)
        wait_until(lambda: told.loop.turn(0.01) or handle.ended_at, what="its end")
        for _ in range(5):
            told.pass_time(STATUS_PATIENCE + 0.1)
        if of_guardian:
            assert told.ended == []
            told.pids.on_exited(Exited(child.pid, 0, None, False))
        assert told.ended == [(1, ExitStatus(0, None) if of_guardian else process.UNKNOWN)]
        told.pass_time(STATUS_PATIENCE + 0.1)
        assert len(told.ended) == 1
    finally:
        child.wait()
        os.close(pidfd)


def test_one_of_whom_a_guardian_that_lives_says_nothing_has_ended_at_last() -> None:
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    told = Told(guardian=os.getpid())
    try:
        told.pids.watch(told.app, handle := told.worker(child.pid), pidfd)
        wait_until(lambda: told.loop.turn(0.01) or handle.ended_at, what="its end")
        for _ in range(MOST_WAITS + 1):
            assert told.ended == []
            told.pass_time(STATUS_PATIENCE + 0.1)
        assert told.ended == [(1, process.UNKNOWN)]
    finally:
        child.wait()
        os.close(pidfd)


def test_who_is_claimed_is_kept_watched_and_told_of() -> None:
    told = Told()
    said: list[Any] = []
    told.brain.store.put = lambda name, fd: said.append((name, fd))
    told.brain.emit = lambda app, kind, worker: said.append((kind, worker.id.slot, worker.pid))
    told.pids._known[os.getpid()] = True  # of another process that had this number
    handle = told.worker(0)
    assert told.pids.claim(told.app, handle, os.getpid(), owner=os.geteuid())
    assert not told.pids.claim(told.app, handle, os.getpid(), owner=os.geteuid() + 1)
    (name, pidfd), event = said
    assert (name, event) == ("pid.api.1.1.1", ("worker_starting", 1, os.getpid()))
    assert told.loop.watches(pidfd)
    assert (told.ended, told.pids._known) == ([], {})
    os.close(pidfd)


def test_a_helper_of_our_own_is_reaped_when_what_its_number_is_needed_for_is_done() -> None:
    child = subprocess.Popen(["sh", "-c", "exit 3"])
    pidfd = os.pidfd_open(child.pid)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    told = Told()
    ends: list[tuple[ExitStatus, str]] = []
    told.brain.deaths.shortages.of_death = lambda pid, status: Shortage(str(process.zombie_status(pid, pidfd) is not None))
    told.pids.of_helper(child.pid, pidfd, lambda status, shortage: ends.append((status, shortage.reason)))
    assert ends == [(ExitStatus(3, None), "True")]
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    os.close(pidfd)
    child.wait()


def test_a_helper_ended_as_the_guardian_has_said_or_says_in_a_moment() -> None:
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    child.wait()  # somebody else's: the daemon before this one has started it
    told = Told(templates={1: SimpleNamespace(pid=child.pid)})
    ends: list[ExitStatus] = []
    for told_before in (True, False, None):
        if told_before:
            told.pids.on_exited(Exited(child.pid, 3, None, False))
        told.pids.of_helper(child.pid, pidfd, lambda status, shortage: ends.append(status))
        if told_before is False:
            assert len(ends) == 1
            told.pids.on_exited(Exited(child.pid, 4, None, False))
        told.pass_time(STATUS_PATIENCE + 0.1)
    assert ends == [ExitStatus(3, None), ExitStatus(4, None), process.UNKNOWN]
    assert told.collected == [child.pid, child.pid]  # each is let go, once
    os.close(pidfd)

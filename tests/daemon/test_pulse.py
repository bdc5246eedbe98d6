"""Ages without the time in which the daemon, and perhaps the whole machine, stood still."""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import Loop
from pyworker.daemon.pulse import MISSED_BY_GUARDIAN, SELDOM, OwnTime, Pulse
from pyworker.policy.lifecycle import State
from pyworker.protocol.store import MISSED, TICK
from pyworker.unix.fds import socketpair
from pyworker.unix.process import is_stopped
from tests.support.wait import wait_until


def test_time_in_which_we_stood_still_does_not_count() -> None:
    own = OwnTime()
    for now in (10.0, 10.5, 11.0, 15.0, 15.5):  # frozen from 11 to 15
        own.look(now, 0.5)
    assert own.age(10.5, 15.5) == 1.5
    assert own.age(15.1, 15.5) < 0.5


def test_a_busy_machine_is_not_taken_for_one_that_stood_still() -> None:
    own = OwnTime()
    for now in (10.0, 10.5, 11.9):
        own.look(now, 0.5)
    assert round(own.age(10.0, 12.0), 3) == 2.0


def test_what_was_before_we_looked_often_does_not_count() -> None:
    own = OwnTime()
    own.look(0.0, 11.0)  # no app had a limit
    own.look(11.0, 0.5)  # a standstill from 3 to 10 would not have been noticed
    own.look(11.5, 0.5)
    assert own.age(2.9, 11.5) == 0.5
    assert own.age(11.1, 11.5) < 0.5


def test_a_tick_that_comes_much_too_late_counts_nothing_against_anybody() -> None:
    clock = [0.0]
    loop = Loop(clock=lambda: clock[0])
    brain: Any = SimpleNamespace(apps={})
    guardian: Any = SimpleNamespace(unanswered=0, may_be_stopped=True, guardian_pid=-1, send=lambda message: None)
    Pulse(loop, brain, guardian)
    missed = []
    for ticks in (1.0, 2.1, 4.9, 5.0, 6.0):  # frozen from 3 to 4.9: the next tick is a moment later
        clock[0] = ticks * TICK
        loop.turn(0.0)
        missed.append(guardian.unanswered)
    loop.close()
    assert missed == [1, 2, 2, 3, 4]


def test_a_guardian_that_hangs_from_the_start_is_found_within_three_ticks() -> None:
    clock = [0.5 * TICK]
    loop = Loop(clock=lambda: clock[0])
    ours, theirs = socketpair()
    store = FdStore(ours)
    Pulse(loop, cast("Any", SimpleNamespace(apps={})), store)
    for ticks in (1.0, 2.0):
        clock[0] = ticks * TICK
        loop.turn(0.0)
    assert store.unanswered >= MISSED_BY_GUARDIAN  # the next tick ends it
    store.channel.close()
    theirs.close()
    loop.close()


def test_a_guardian_whose_kill_takes_time_is_told_of_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def cannot(pid: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", cannot)
    monkeypatch.setattr(os, "getppid", lambda: 4242)
    clock = [0.0]
    loop = Loop(clock=lambda: clock[0])
    guardian: Any = SimpleNamespace(unanswered=0, may_be_stopped=True, guardian_pid=4242, send=lambda message: None)
    Pulse(loop, cast("Any", SimpleNamespace(apps={})), guardian)
    for tick in range(1, MISSED_BY_GUARDIAN + 5):
        clock[0] = tick * TICK
        loop.turn(0.0)
    loop.close()
    assert capsys.readouterr().err.count("does not answer: killed") == 1


def test_a_foreground_guardian_that_ctrl_z_has_stopped_is_left_alone_until_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    loop = Loop(clock=lambda: clock[0])
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(os, "getppid", lambda: process.pid)
    guardian: Any = SimpleNamespace(unanswered=0, may_be_stopped=True, guardian_pid=process.pid, send=lambda message: None)
    Pulse(loop, cast("Any", SimpleNamespace(apps={})), guardian, foreground=True)

    def pass_ticks(count: int) -> None:
        for _ in range(count):
            clock[0] += TICK
            loop.turn(0.0)

    try:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(process.pid), 10, "the stop")
        pass_ticks(MISSED_BY_GUARDIAN + 5)
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: not is_stopped(process.pid), 10, "the end of the stop")
        pass_ticks(MISSED_BY_GUARDIAN)
        assert process.poll() is None
        pass_ticks(1)  # it hangs
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
        loop.close()


@pytest.mark.parametrize(("is_child", "word", "is_found"), [(True, False, False), (True, True, True), (False, False, True)])
def test_workers_are_not_looked_at_when_the_guardian_has_seen_that_none_is_stopped_and_is_their_parent(
    is_child: bool, word: bool, is_found: bool
) -> None:
    clock = [0.0]
    loop = Loop(clock=lambda: clock[0])
    process = subprocess.Popen(["sleep", "60"])
    guardian: Any = SimpleNamespace(unanswered=0, guardian_pid=os.getpid() if is_child else 1, send=lambda message: None)
    worker = SimpleNamespace(state=State.READY, ready_at=0.0, pid=process.pid, recycle="", id=SimpleNamespace(serial=1))
    board = SimpleNamespace(progress_at=lambda serial: 0.0)
    app = SimpleNamespace(name="api", templates={}, dispatcher=None, target=None, workers={1: worker}, board=board)
    replaced: list[str] = []
    workers = SimpleNamespace(recycle=lambda app, worker, reason: replaced.append(reason))
    Pulse(loop, cast("Any", SimpleNamespace(apps={"api": app}, workers=workers)), guardian)
    try:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(process.pid), 10, "the stop")
        for tick in range(1, MISSED + 1):
            clock[0] = tick * TICK
            guardian.may_be_stopped = word
            loop.turn(0.0)
        assert bool(replaced) == is_found
        for tick in range(MISSED + 1, 2 * MISSED + 1):  # the guardian hangs: its last word is none of these moments
            clock[0] = tick * TICK
            loop.turn(0.0)
        assert replaced
    finally:
        process.kill()
        process.wait()
        loop.close()


def questions(template: Any, ticks: int) -> tuple[list[int], list[str]]:
    """Return the numbers of the questions that a template is asked, none of which it answers, and why it is stopped."""
    clock = [0.0]
    loop = Loop(clock=lambda: clock[0])
    asked: list[int] = []
    stopped: list[str] = []

    def stop(app: Any, handle: Any, reason: str, now: float) -> None:
        stopped.append(reason)
        handle.state = "retiring"

    templates = SimpleNamespace(
        ping=lambda handle, number: asked.append(number), stop=stop, unread=lambda handle: False
    )
    app = SimpleNamespace(name="api", templates={1: template}, workers={}, dispatcher=None, target=None)
    brain: Any = SimpleNamespace(apps={"api": app}, templates=templates)
    guardian: Any = SimpleNamespace(unanswered=0, may_be_stopped=True, guardian_pid=-1, send=lambda message: None)
    Pulse(loop, brain, guardian)
    for tick in range(1, ticks + 1):
        clock[0] = tick * TICK
        loop.turn(0.0)
    loop.close()
    return asked, stopped


def a_template(state: str = "ready") -> SimpleNamespace:
    return SimpleNamespace(state=state, unanswered=0, generation=1, pid=os.getpid())


def test_a_template_that_does_not_answer_is_stopped_once() -> None:
    asked, stopped = questions(a_template(), SELDOM + MISSED + 3)
    assert len(asked) == MISSED
    assert stopped == ["it did not answer"]


@pytest.mark.parametrize("state", ["loading", "retiring"])
def test_a_template_that_imports_or_leaves_is_not_asked(state: str) -> None:
    assert questions(a_template(state), 3 * SELDOM) == ([], [])

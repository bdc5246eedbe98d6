"""The guardian's clock, and its patience."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.guardian import __main__ as program
from pyworker.guardian.main import AHEAD, Guardian, Times
from pyworker.guardian.program import HUNG
from pyworker.guardian.store import FdStore
from pyworker.policy.faults import Faults
from pyworker.protocol.inherited import CONTROL, LIFELINE, LOCK
from pyworker.protocol.store import Stopping
from pyworker.unix import fds


@pytest.mark.parametrize("now", [0.0, 0.2, 4.98, 4.991, 5.0, 1e6 + 0.3])
def test_the_next_tick_is_just_before_a_moment_of_the_daemon_and_never_past(now: float) -> None:
    guardian: Any = SimpleNamespace(_times=Times(tick=5.0))
    Guardian._schedule_tick(guardian, now)
    assert now < guardian._next_tick <= now + 5.0
    assert (guardian._next_tick + AHEAD) % 5.0 == pytest.approx(0.0, abs=1e-6)


def test_each_try_to_take_over_gives_back_what_it_had_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[int] = []

    def prepare(home: int, store: FdStore) -> None:
        opened.append(home)
        if len(opened) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    tmp_path.chmod(0o700)
    monkeypatch.setattr(program, "TAKE_OVER_AGAIN", 0.0)
    monkeypatch.setattr(program, "_prepare", prepare)
    monkeypatch.setattr(program.boot, "open_own_log", lambda home: None)
    home = program._patiently(lambda: program._take_over(str(tmp_path), FdStore({})))
    os.close(home)
    assert opened == [home] * 4  # the same number each time


def test_one_that_takes_over_waits_for_the_descriptors_that_its_loop_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It alone has every port."""
    made: list[Any] = []

    def make(*_: Any, **__: Any) -> Any:
        made.append(SimpleNamespace(run=lambda started: 7))
        if len(made) < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return made[-1]

    tmp_path.chmod(0o700)
    monkeypatch.setattr(program, "TAKE_OVER_AGAIN", 0.0)
    monkeypatch.setattr(program, "Guardian", make)
    for module, name in ((program, "_prepare"), (program, "set_title"), (program.process, "set_name"), (program.boot, "open_own_log")):
        monkeypatch.setattr(module, name, lambda *_: None)
    memo = fds.memfd("adopt", b'{"names": {}}')
    assert program.main(["--home", str(tmp_path), "--adopt", str(memo)]) == 7
    assert len(made) == 3


class Child:
    """A program of the guardian's that runs, and has or has not answered."""

    def __init__(self, name: str = "daemon", *, answers: bool = True, starts: bool = False, pid: int = 4711) -> None:
        self.name, self.pid, self.kill_at, self.leaving = name, pid, None, False
        self.channel: Any = object()
        self.asked = 0
        self.killed: list[str] = []
        self._answers, self._starts = answers, starts

    def may_be_asked(self, now: float) -> bool:
        return not self._starts

    def say(self, message: Any, *, droppable: bool = False) -> None:
        pass

    def ping(self) -> bool:
        self.asked += 1
        return self._answers

    def kill(self, why: str) -> None:
        self.killed.append(why)


@pytest.mark.parametrize(
    ("late", "child", "asked", "killed"),
    [
        (0.0, Child(), 1, []),
        (0.0, Child(answers=False), 1, [HUNG]),
        (60.0, Child(answers=False), 0, []),  # the machine stood still, and so did the child
        (0.0, Child(answers=False, starts=True), 0, []),
    ],
)
def test_who_gives_no_sign_of_life_is_killed_but_not_for_a_moment_in_which_nobody_could(
    late: float, child: Child, asked: int, killed: list[str]
) -> None:
    guardian: Any = SimpleNamespace(
        _next_tick=100.0, _times=Times(tick=5.0), _faults=Faults(), _programs=[child], _stopping=False, _look_at_children=False
    )
    guardian._schedule_tick = partial(Guardian._schedule_tick, guardian)
    Guardian._tick(guardian, 99.9)
    assert (child.asked, guardian._look_at_children) == (0, False)
    Guardian._tick(guardian, 100.0 + late)
    assert (child.asked, child.killed) == (asked, killed)
    assert guardian._look_at_children  # a signal may have been missed
    assert guardian._next_tick > 100.0 + late
    child.channel = None
    Guardian._tick(guardian, guardian._next_tick)
    assert child.asked == asked  # there is no way to ask it


@pytest.mark.parametrize(("lasts", "left"), [(3.0, 27.0), (30.5, -0.5), (103.0, 27.0)])
def test_a_time_in_which_nobody_ran_is_none_that_a_logger_had_to_write_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, lasts: float, left: float
) -> None:
    now = 100.0

    def wait(timeout: float) -> list[object]:
        nonlocal now
        now += lasts
        return []

    logger: Any = Child("logger")
    logger.kill_at = now + 30.0
    guardian: Any = SimpleNamespace(
        _watch=SimpleNamespace(wait=wait), _programs=[Child(), logger], _upgrade=SimpleNamespace(by=now + 30.0)
    )
    monkeypatch.setattr("pyworker.guardian.main.time", SimpleNamespace(monotonic=lambda: now))
    Guardian._wait(guardian, min(lasts, 3.0 if lasts > 31 else 30.0))
    assert (logger.kill_at - now, guardian._upgrade.by - now) == (left, left)


def test_a_channel_that_cannot_be_read_now_is_not_closed_or_its_daemon_would_become_a_second_guardian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def want(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(fds, "recv_packet", want)
    child: Any = Child()
    guardian: Any = SimpleNamespace()
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        Guardian._receive(guardian, child)
    assert (child.channel is not None, child.kill_at) == (True, None)


@pytest.mark.parametrize(
    ("stopping", "leaving", "why"),
    [(False, False, "closed its channel and stayed"), (False, True, "upgrade"), (True, False, "did not end in time")],
)
def test_who_has_not_ended_in_its_time_is_killed_once_and_its_successor_is_told_why(stopping: bool, leaving: bool, why: str) -> None:
    child: Any = Child()
    child.kill_at, child.leaving = 100.0, leaving
    guardian: Any = SimpleNamespace(_programs=[child, Child("logger")], _stopping=stopping, _undying_at=lambda program: None)
    for now, killed in ((99.9, []), (100.0, [why]), (200.0, [why])):
        Guardian._kill_late(guardian, now)
        assert child.killed == killed


@pytest.mark.parametrize(
    ("undying", "has_lived", "stopping", "done_without"),
    [
        (set(), False, False, True),
        ({4710}, False, False, False),  # as the one before it: so would the next
        ({4710}, True, False, True),  # a logger that somebody kills, say, while a thread of it waits for the same disk
        ({4710}, False, True, True),
    ],
)
def test_a_second_one_that_sigkill_does_not_end_has_a_successor_unless_it_has_hung_from_its_start_on(
    undying: set[int], has_lived: bool, stopping: bool, done_without: bool
) -> None:
    child: Any = SimpleNamespace(undying=undying, has_lived=has_lived, killed_at=100.0)
    guardian: Any = SimpleNamespace(_stopping=stopping, _times=Times(undying=5.0))
    assert Guardian._undying_at(guardian, child) == (105.0 if done_without else None)


@pytest.mark.parametrize(
    ("stopping", "all_ended", "logger_told", "daemon_starts", "logger_starts"),
    [
        (False, False, False, True, True),
        (True, False, False, False, True),  # it ends the workers that the daemon has not
        (True, True, False, False, False),
        (True, False, True, False, False),
    ],
)
def test_the_logger_is_started_for_as_long_as_anybody_may_print(
    stopping: bool, all_ended: bool, logger_told: bool, daemon_starts: bool, logger_starts: bool
) -> None:
    daemon, logger = Child(pid=0), Child("logger", pid=0)
    guardian: Any = SimpleNamespace(
        _daemon=daemon, _logger=logger, _programs=(daemon, logger), _left=False,
        _stopping=stopping, _all_ended=all_ended, _logger_told=logger_told,
    )  # fmt: skip
    guardian._starts_no_more = partial(Guardian._starts_no_more, guardian)
    starts = [not guardian._starts_no_more(program) for program in (daemon, logger)]
    assert starts == [daemon_starts, logger_starts]
    assert Guardian._finished(guardian) is not any(starts)
    logger.pid = 4712
    assert not Guardian._finished(guardian)  # it writes its last lines
    guardian._left = True
    assert Guardian._finished(guardian)


def test_a_daemon_that_cannot_be_listened_to_is_killed_before_it_takes_the_end_of_its_channel_for_the_guardians() -> None:
    daemon: Any = Child()
    daemon.start = daemon.close_channel = lambda *_: None

    def no_memory(child: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    guardian: Any = SimpleNamespace(_daemon=daemon, _watch_channel=no_memory, _lifeline=lambda: -1, _before_start=lambda: None)
    with pytest.raises(OSError, match="memory"):
        Guardian._start(guardian, daemon, 100.0, {})
    assert daemon.killed == ["could not be given its descriptors"]


@pytest.mark.parametrize(("stopping", "daemon", "leaves"), [(True, 0, True), (True, 4711, False), (False, 0, False)])
def test_where_no_logger_can_be_started_to_end_what_is_left_the_guardian_leaves(stopping: bool, daemon: int, leaves: bool) -> None:
    logger: Any = Child("logger", pid=0)
    logger.try_later = lambda now: None
    guardian: Any = SimpleNamespace(_stopping=stopping, _daemon=Child(pid=daemon), _left=False, _foreground=False)
    guardian._trouble = lambda fault, text: True
    Guardian._not_started(guardian, logger, 100.0, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert guardian._left is leaves


@pytest.mark.parametrize(("all_ended", "waits"), [(True, False), (False, False), (False, True)])
def test_a_logger_that_has_to_end_what_the_daemon_has_left_keeps_what_it_needs_for_that(all_ended: bool, waits: bool) -> None:
    names = [LOCK, CONTROL, "ctl.api.1.1.7", "listen.api.0", "pid.api.1.1.7", "out.api.1.1.7", LIFELINE]
    store = FdStore({name: os.open(os.devnull, os.O_RDONLY) for name in names})
    told: list[object] = []
    logger: Any = Child("logger")
    logger.say, logger.outbox = told.append, ["what it has not been given yet"] if waits else []
    guardian: Any = SimpleNamespace(
        _stopping=True, _daemon=Child(pid=0), _logger=logger, _logger_told=False, _all_ended=all_ended, _times=Times(), _store=store,
        _flush=lambda now: None, _dismiss=lambda: told.append("nobody is to go on"),
    )  # fmt: skip
    Guardian._stop_logger(guardian, 100.0)
    if all_ended:
        assert (told, logger.kill_at, len(store)) == ([Stopping()], 130.0, len(names))
    elif waits:
        assert (told, logger.kill_at, len(store), guardian._logger_told) == ([], None, len(names), False)
    else:
        # workers leave when nobody has their channels any more
        assert list(store) == [LOCK, CONTROL, "pid.api.1.1.7", "out.api.1.1.7"]
        assert (told, logger.kill_at) == (["nobody is to go on"], None)
    if not waits:
        Guardian._stop_logger(guardian, 101.0)
        assert len(told) == 1
    for name in store:
        store.remove(name)

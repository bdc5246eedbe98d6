"""Ages without the time in which the daemon, and perhaps the whole machine, stood still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import Loop
from pyworker.daemon.pulse import MISSED_BY_GUARDIAN, OwnTime, Pulse
from pyworker.protocol.store import TICK
from pyworker.unix.fds import socketpair


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
    guardian: Any = SimpleNamespace(unanswered=0, guardian_pid=-1, ping=lambda number: None)
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

"""The daemon's loop: readiness, deadlines, and what a broken callback may not do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pyworker.daemon import loop as module
from pyworker.daemon.loop import LAZY, READ, WRITE, Callback, Loop
from pyworker.policy.faults import CALM, Faults


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def loop(clock: Clock, reports: list[str]) -> Iterator[Loop]:
    loop = Loop(clock, reports.append)
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


def test_readable_fd_is_called_until_it_is_read(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    loop.add(pipe[0], READ, seen.append)
    loop.turn(0)
    assert seen == []
    os.write(pipe[1], b"x")
    loop.turn(0)
    loop.turn(0)
    assert len(seen) == 2
    os.read(pipe[0], 1)
    loop.turn(0)
    assert len(seen) == 2


def test_modify_changes_what_is_waited_for(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    loop.add(pipe[1], 0, seen.append)
    loop.turn(0)
    assert seen == []
    loop.modify(pipe[1], WRITE)
    loop.turn(0)
    assert seen == [WRITE]


def test_removed_fd_is_not_called_any_more_even_in_the_same_batch(loop: Loop) -> None:
    first, second = os.pipe(), os.pipe()
    seen: list[str] = []

    def on(name: str, other: int) -> None:
        seen.append(name)
        loop.remove(other)

    loop.add(first[0], READ, lambda _: on("first", second[0]))
    loop.add(second[0], READ, lambda _: on("second", first[0]))
    os.write(first[1], b"x")
    os.write(second[1], b"x")
    loop.turn(0)
    assert len(seen) == 1
    for fd in (*first, *second):
        os.close(fd)


def test_fd_number_used_again_gets_no_event_of_its_predecessor(loop: Loop) -> None:
    first, second = os.pipe(), os.pipe()
    stale: list[int] = []
    fresh: list[int] = []

    def swap(mine: int, other: int) -> None:
        loop.remove(mine)
        loop.remove(other)
        os.close(other)
        assert os.dup(empty[0]) == other
        loop.add(other, READ, fresh.append)

    empty = os.pipe()
    loop.add(first[0], READ, lambda _: swap(first[0], second[0]))
    loop.add(second[0], READ, stale.append)
    os.write(first[1], b"x")
    os.write(second[1], b"x")
    loop.turn(0)
    assert fresh == []
    for fd in (*first, *second, *empty):
        os.close(fd)


def test_what_is_not_registered_may_be_removed(loop: Loop, pipe: tuple[int, int], reports: list[str]) -> None:
    loop.remove(pipe[0])
    loop.add(pipe[0], READ, reports.append)  # type: ignore[arg-type]
    loop.remove(pipe[0])
    loop.remove(pipe[0])
    os.write(pipe[1], b"x")
    loop.turn(0)
    assert reports == []


def test_timers_fire_in_order_and_cancelled_ones_do_not(loop: Loop, clock: Clock) -> None:
    seen: list[str] = []
    loop.call_later(2, lambda: seen.append("late"))
    loop.call_later(1, lambda: seen.append("early"))
    loop.call_later(1.5, lambda: seen.append("never")).cancel()
    loop.turn(0)
    assert seen == []
    clock.now += 3
    loop.turn(None)
    assert seen == ["early", "late"]


def test_soon_calls_run_in_order_and_do_not_starve_the_loop(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[str] = []

    def again() -> None:
        seen.append("soon")
        loop.call_soon(again)

    loop.call_soon(again)
    loop.add(pipe[0], READ, lambda _: seen.append("fd"))
    os.write(pipe[1], b"x")
    loop.turn(None)
    loop.turn(None)
    assert seen == ["fd", "soon", "fd", "soon"]


def test_what_came_while_a_callback_took_long_is_heard_before_what_is_due_meanwhile(
    loop: Loop, clock: Clock, pipe: tuple[int, int]
) -> None:
    order: list[str] = []
    reader, writer = os.pipe()

    def slow(_: int) -> None:
        os.read(pipe[0], 1)
        clock.now += 60
        os.write(writer, b"x")
        loop.call_soon(lambda: order.append("soon"))

    loop.add(pipe[0], READ, slow)
    loop.add(reader, READ, lambda _: order.append(os.read(reader, 1).decode()))
    loop.call_later(30, lambda: order.append("late"))
    os.write(pipe[1], b"x")
    loop.turn(0)
    loop.turn(0)
    assert order == ["x", "late", "soon"]
    os.close(reader)
    os.close(writer)


def test_all_that_has_come_is_heard_before_what_is_due_however_many_fds_that_are(loop: Loop, clock: Clock) -> None:
    """A soak is over, say, and hundreds of workers have ended while no daemon was there."""
    order: list[str] = []
    fds = [os.eventfd(1) for _ in range(300)]

    def hears(fd: int) -> Callback:
        return lambda _: order.append("fd" * os.eventfd_read(fd))

    loop.call_later(1, lambda: order.append("due"))
    loop.call_soon(lambda: order.append("soon"))
    for fd in fds:
        loop.add(fd, READ, hears(fd))
    clock.now += 1
    loop.turn(0)
    for fd in fds:
        loop.remove(fd)
        os.close(fd)
    assert order == ["fd"] * 300 + ["due", "soon"]


def test_soon_calls_run_also_where_each_turn_takes_long(loop: Loop, clock: Clock, pipe: tuple[int, int]) -> None:
    def slow(_: int) -> None:
        clock.now += 60

    order: list[str] = []
    loop.add(pipe[0], READ, slow)
    os.write(pipe[1], b"x")
    loop.call_soon(lambda: order.append("soon"))
    loop.turn(0)
    loop.turn(0)
    assert order == ["soon"]


def test_stop_ends_run(loop: Loop) -> None:
    loop.call_soon(loop.stop)
    loop.run()


def test_failing_callback_is_reported_rests_and_is_tried_again(
    loop: Loop, clock: Clock, reports: list[str], pipe: tuple[int, int]
) -> None:
    calls: list[int] = []

    def fail(events: int) -> None:
        calls.append(events)
        raise RuntimeError("a bug")

    loop.add(pipe[0], READ, fail)
    os.write(pipe[1], b"x")
    for _ in range(50):
        loop.turn(0)
    assert len(calls) == len(reports) == 1
    clock.now += 0.2
    for _ in range(50):
        loop.turn(0)
    assert len(calls) == 2


class Full:
    """An epoll that has no room for one more, for as long as `error` says why."""

    def __init__(self, epoll: Any, error: OSError) -> None:
        self.epoll = epoll
        self.error: OSError | None = error

    def register(self, fd: int, mask: int) -> None:
        if self.error is not None:
            raise self.error
        self.epoll.register(fd, mask)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.epoll, name)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_an_fd_that_there_is_no_room_for_is_waited_for_once_there_is(
    loop: Loop, clock: Clock, reports: list[str], pipe: tuple[int, int], number: int
) -> None:
    seen: list[int] = []
    loop._epoll = full = Full(loop._epoll, OSError(number, os.strerror(number)))  # type: ignore[assignment]
    loop.add(pipe[0], READ, seen.append)
    os.write(pipe[1], b"x")
    for _ in range(2):
        clock.now += 10
        loop.turn(0)
    assert (seen, len(reports)) == ([], 3)
    full.error = None  # type: ignore[attr-defined]
    clock.now += 10
    loop.turn(0)
    loop.turn(0)
    assert len(seen) == 1


def test_timers_that_are_asked_for_and_cancelled_again_and_again_do_not_pile_up(loop: Loop, clock: Clock) -> None:
    """Each round of an app asks to look again at the end of a drain, which may be hours away."""
    seen: list[str] = []
    loop.call_later(5.0, lambda: seen.append("next"))
    for number in range(20_000):
        loop.call_later(3600.0, lambda: seen.append("cancelled")).cancel()
        if number % 1000 == 0:
            loop.call_later(7200.0 - number / 1000, lambda number=number: seen.append(str(number)))  # type: ignore[misc]
    assert len(loop._timers) < 5000
    clock.now += 7200.0
    loop.turn(0)
    assert seen == ["next", *(str(number) for number in range(19_000, -1, -1000))]


def test_failing_timer_does_not_take_the_next_one_with_it(loop: Loop, clock: Clock, reports: list[str]) -> None:
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("a bug")

    loop.call_later(1, fail)
    loop.call_later(1, lambda: seen.append("next"))
    loop.call_soon(fail)
    clock.now += 2
    loop.turn(0)
    assert seen == ["next"]
    assert len(reports) == 2


def test_fd_closed_before_it_was_removed_does_not_make_the_loop_spin(loop: Loop, pipe: tuple[int, int]) -> None:
    copy = os.dup(pipe[0])  # what the guardian's store is to the daemon
    victim = os.dup(copy)
    others: list[int] = []
    calls: list[int] = []
    loop.add(pipe[0], READ, others.append)
    loop.add(victim, READ, calls.append)
    os.close(victim)
    loop.remove(victim)
    os.write(pipe[1], b"x")
    loop.turn(0)
    assert calls == []
    assert len(others) == 1
    os.read(pipe[0], 1)
    loop.turn(0)
    assert len(others) == 1
    os.close(copy)


def test_callback_of_an_fd_closed_under_the_loop_ends_in_silence(
    loop: Loop, clock: Clock, reports: list[str], pipe: tuple[int, int]
) -> None:
    victim = os.dup(pipe[0])

    def read(_: int) -> None:
        os.read(victim, 1)

    loop.add(victim, READ, read)
    os.write(pipe[1], b"xx")
    os.close(victim)
    for _ in range(20):
        loop.turn(0)
        clock.now += 1
    assert len(reports) == 1
    assert not loop.watches(victim)


def test_a_long_row_of_soon_calls_lets_ready_fds_through() -> None:
    now = [0.0]
    loop = Loop(clock=lambda: now[0])
    reader, writer = os.pipe()
    order: list[str] = []

    def work() -> None:
        now[0] += 1.0  # each takes longer than a turn may
        order.append("work")

    try:
        loop.add(reader, READ, lambda _: (order.append("fd"), os.read(reader, 1)))
        for _ in range(3):
            loop.call_soon(work)
        loop.turn(0)
        os.write(writer, b"x")
        loop.turn(0)
        loop.turn(0)
        assert order == ["work", "fd", "work", "work"]
    finally:
        loop.close()
        os.close(reader)
        os.close(writer)


def test_lazy_calls_share_their_moments_and_are_never_late() -> None:
    clock = [100.0]
    loop = Loop(clock=lambda: clock[0])
    first = loop.call_lazily(LAZY, lambda: None)
    clock[0] += 3.0
    second = loop.call_lazily(LAZY, lambda: None)
    soon = loop.call_lazily(0.5, lambda: None)
    loop.close()
    assert first.deadline == second.deadline == 10 * LAZY
    assert soon.deadline == 103.5  # no common moment comes before that


def test_a_fault_is_written_to_the_log_once_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "_faults", Faults())

    def fail(number: int) -> None:
        try:
            raise RuntimeError(f"bug {number}")
        except RuntimeError:
            module.report_to_stderr("a timer failed")

    for number in range(20):
        fail(number)
    now[0] += CALM
    module.report_what_is_over()
    said = capsys.readouterr().err
    assert said.count("RuntimeError: bug") == 1
    assert re.search(r"^\d{4}-.*Z daemon\[\d+\]: over, after 20 times: a timer failed: RuntimeError", said, re.MULTILINE)
    fail(99)
    assert "RuntimeError: bug 99" in capsys.readouterr().err


def test_what_is_asked_for_again_and_again_is_called_once_and_may_ask_for_itself() -> None:
    loop = Loop(lambda: now[0])
    now, called = [0.0], list[str]()

    def again() -> None:
        called.append("again")
        loop.call_once("x", 1.0, again)

    for _ in range(3):
        loop.call_once("x", 1.0, again)
    loop.call_once("y", 1.0, lambda: called.append("another"))
    for second in (1.0, 2.0):
        now[0] = second
        loop.turn(0.0)
    assert called == ["again", "another", "again"]
    loop.close()


def waits_last(*seconds: float, loop: Loop, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each wait of the loop last so long, whatever it is asked for: the machine may have stood still."""
    waits = iter(seconds)

    class Frozen:
        def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
            clock.now += next(waits)
            return []

        def close(self) -> None:
            pass

    monkeypatch.setattr(loop, "_epoll", Frozen())


def test_a_wait_in_which_the_machine_stood_still_leaves_who_is_waited_for_the_time_it_had(
    loop: Loop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits_last(2.0, 40.0, 3.0, 2.1, loop=loop, clock=clock, monkeypatch=monkeypatch)  # frozen in the second
    called: list[object] = []
    loop.on_stood_still = called.append
    loop.call_later(2, lambda: None)
    loop.call_later(7, lambda: called.append("time is over"))
    loop.call_at(clock.now + 5, lambda: called.append("the moment has come"), lazy=True)
    loop.turn(None)
    loop.turn(None)
    assert called == [40.0, "the moment has come"]  # 3 s of those 40 were waited for: nobody knows whether any have passed
    loop.turn(None)
    assert called[2:] == []
    loop.turn(None)
    assert called[2:] == ["time is over"]


def test_it_is_half_a_minute_from_one_standstill_to_the_next_also_where_the_wait_for_that_has_begun_before(
    loop: Loop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits_last(15.0, 29.0, 17.0, loop=loop, clock=clock, monkeypatch=monkeypatch)  # of 0, 29 and 2 seconds
    still: list[float] = []
    loop.on_stood_still = still.append
    for timeout in (0.0, 29.0, 2.0):
        loop.turn(timeout)
    assert still == [15.0, 15.0 + 2.0]


def test_where_each_wait_ends_late_time_is_over_all_the_same(
    loop: Loop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starved:
        def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
            clock.now += timeout + 1.5
            return []

        def close(self) -> None:
            pass

    called: list[str] = []
    monkeypatch.setattr(loop, "_epoll", Starved())
    loop.call_later(1, lambda: called.append("time is over"))
    loop.turn(None)
    assert called == []
    loop.turn(None)
    assert called == ["time is over"]

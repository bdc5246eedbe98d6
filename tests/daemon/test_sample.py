"""Figures of real processes: the whole session counts, the dead and the reborn do not confuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pyworker.daemon.sample import FRESH, PSS_FRESH, Sampler
from pyworker.protocol.figures import Totals
from tests.support.wait import wait_until

from .test_loop import Clock

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "x = bytearray(60_000_000); print('up', flush=True); input()"])
try:
    input()
finally:
    child.kill(); child.wait()
"""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sampler(clock: Clock) -> Sampler:
    return Sampler(clock)


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A session that does nothing but count."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_first_reading_is_the_mean_of_its_life(sampler: Sampler, clock: Clock) -> None:
    figures = sampler.figures(os.getpid(), 0, clock.now)
    assert figures is not None
    assert figures.rss > 1_000_000
    assert figures.cpu_percent is not None
    assert figures.cpu_percent > 0


def test_rates_are_since_the_last_reading(sampler: Sampler, clock: Clock, busy: subprocess.Popen[bytes]) -> None:
    sampler.figures(busy.pid, 100, clock.now)
    clock.now += 2.0
    figures = sampler.figures(busy.pid, 150, clock.now)
    assert figures is not None
    assert figures.requests_per_s == 25.0

    def measured() -> bool:
        clock.now += 1.0
        figures = sampler.figures(busy.pid, 150, clock.now)
        return figures is not None and (figures.cpu_percent or 0.0) > 0.0

    wait_until(measured, what="CPU time of a busy process")


def test_same_answer_within_a_moment_and_no_negative_rate(sampler: Sampler, clock: Clock) -> None:
    first = sampler.figures(os.getpid(), 10, clock.now)
    clock.now += FRESH / 2
    assert sampler.figures(os.getpid(), 999, clock.now) is first
    clock.now += FRESH
    later = sampler.figures(os.getpid(), 5, clock.now)
    assert later is not None
    assert later.requests_per_s == 0.0


def test_what_a_worker_starts_counts_for_it(sampler: Sampler, clock: Clock) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        figures = sampler.figures(parent.pid, 0, clock.now)
        assert figures is not None
        assert figures.rss > 60_000_000
        assert (sampler.pss(parent.pid) or 0) > 60_000_000
        parent.communicate(b"\n")


def test_fair_shares_are_looked_at_in_turn_the_oldest_first(
    sampler: Sampler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    spent = iter(range(10**6))
    monkeypatch.setattr("pyworker.daemon.sample.time.perf_counter", lambda: next(spent) * 0.012)  # two a request
    monkeypatch.setattr(sampler, "pss", lambda pid: looked.append(pid) or pid * 10)
    assert sampler.pss_lately([1, 2, 3, 4, 5], clock.now) == {1: 10, 2: 20}
    assert sampler.pss_lately([1, 2, 3, 4, 5], clock.now) == {1: 10, 2: 20, 3: 30, 4: 40}
    assert sampler.pss_lately([1, 2, 3, 4, 5], clock.now) == {1: 10, 2: 20, 3: 30, 4: 40, 5: 50}
    assert sampler.pss_lately([1, 2, 3, 4, 5], clock.now) == {1: 10, 2: 20, 3: 30, 4: 40, 5: 50}
    assert looked == [1, 2, 3, 4, 5]
    clock.now += PSS_FRESH
    sampler.pss_lately([3, 2, 1], clock.now)
    clock.now += 1
    sampler.pss_lately([3, 2, 1], clock.now)
    assert looked[5:] == [3, 2, 1]
    clock.now += PSS_FRESH
    sampler.pss_lately([1, 2, 3], clock.now)
    assert sorted(looked[8:]) == [2, 3]  # those that were looked at longest ago
    sampler.want(())  # these processes are gone
    assert sampler.pss_lately([5], clock.now) == {5: 50}
    assert looked[-1] == 5


def test_of_one_that_has_started_thousands_or_many_big_ones_the_first_count(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr("pyworker.daemon.sample.time.thread_time", lambda: len(looked) * 0.1)
    monkeypatch.setattr("pyworker.daemon.sample._pss", lambda pid: looked.append(pid) or 10)
    monkeypatch.setattr(sampler, "_members", lambda pid: list(range(2, 5000 if pid == 1 else 5)))
    assert sampler.pss(1) == 10 * len(looked)
    assert len(looked) < 20
    assert sampler.pss(2) == 40


def test_session_of_somebody_else_does_not_count(sampler: Sampler) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        # It is in this test's session and leads none: nobody but itself is counted.
        assert sampler._members(child.pid) == []
        child.communicate(b"\n")


def test_process_that_is_gone_or_a_zombie_has_no_figures(
    sampler: Sampler, clock: Clock, busy: subprocess.Popen[bytes]
) -> None:
    assert sampler.figures(busy.pid, 0, clock.now) is not None
    busy.kill()
    os.waitid(os.P_PID, busy.pid, os.WEXITED | os.WNOWAIT)
    clock.now += 1
    assert sampler.figures(busy.pid, 0, clock.now) is None
    busy.wait()
    assert sampler.pss(busy.pid) is None
    sampler.want(())


def test_who_is_gone_is_forgotten_when_somebody_asks(sampler: Sampler, clock: Clock, busy: subprocess.Popen[bytes]) -> None:
    assert sampler.figures(busy.pid, 0, clock.now) is not None
    assert sampler.figures(os.getpid(), 0, clock.now) is not None
    sampler.want({busy.pid})
    assert set(sampler._readings) == {busy.pid}


def test_what_an_app_served_lately_is_the_difference_of_two_readings() -> None:
    sampler = Sampler()
    slow, fast = 20, 10  # buckets
    first = Totals(10, (0, 5, 0, 0, 5), 0, tuple(10 if i == slow else 0 for i in range(32)))
    second = Totals(30, (0, 25, 0, 0, 5), 0, tuple(10 if i == slow else 20 if i == fast else 0 for i in range(32)))
    assert sampler.served("api", first, 100.0).error_share == 0.5  # all its life
    assert sampler.served("api", second, 100.1).error_share == 0.5  # too soon for another reading
    lately = sampler.served("api", second, 101.0)
    assert lately.error_share == 0.0
    assert lately.p99_s is not None
    assert lately.p99_s <= 2**fast / 1e6
    assert sampler.served("api", second, 102.0).p50_s is None  # nothing came since


def test_apps_that_nobody_has_asked_about_lately_are_forgotten(sampler: Sampler, clock: Clock) -> None:
    totals = Totals(1, (0, 1, 0, 0, 0), 0, (1,) + 31 * (0,))
    for number in range(100):
        sampler.served(f"preview-{number}", totals, clock())
        clock.now += 60
        sampler.want(())
    assert len(sampler._apps) < 10

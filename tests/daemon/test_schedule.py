"""daemon/schedule.py: what is due is started once, and a run that is still at work is not doubled."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, ReloadConfig
from pyworker.daemon import schedule
from pyworker.protocol.inherited import MINUTES


class Rig:
    """A Schedule of one app, whose clock is the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: AppConfig) -> None:
        self.done: list[str] = []
        self.app: Any = SimpleNamespace(
            config=config, running=True, workers={}, finished_slots={1}, target=None, starting=False
        )
        self.written: list[set[int]] = []  # the finished slots, as of each memo
        self.app.write_memo = lambda: self.written.append(set(self.app.finished_slots))
        self.stored: dict[str, int] = {}
        brain = SimpleNamespace(
            apps={"job": self.app},
            loop=SimpleNamespace(
                clock=lambda: 0.0, call_at=lambda at, call, lazy: self.delays.append(at), call_soon=lambda call: call()
            ),
            store=SimpleNamespace(get=self.stored.get, put=lambda name, fd: os.close(fd)),
            poke=lambda app: self.done.append("poke"),
            remark=lambda app, text: self.done.append(text),
        )
        self.delays: list[float] = []
        monkeypatch.setattr(schedule, "reload_by_itself", lambda desk, app, why: self.done.append(f"reload: {why}"))
        self.schedule = schedule.Schedule(SimpleNamespace(brain=brain))  # type: ignore[arg-type]
        self.schedule._last = self.schedule._looked_at = 100

    def look(self, now: int) -> list[str]:
        self.done.clear()
        self.schedule.look(now, now)
        return list(self.done)


def test_a_job_is_started_at_its_minute_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, AppConfig("job", command=("true",), cron="*/5 * * * *"))
    assert rig.look(104) == []
    assert rig.look(105) == ["poke"]
    assert rig.app.finished_slots == set()
    assert rig.look(105) == []


def test_a_daemon_after_this_one_knows_that_a_job_is_due_before_anything_of_its_run_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, AppConfig("job", command=("true",), cron="*/5 * * * *"))
    written_by_then: list[list[set[int]]] = []
    rig.schedule._desk.brain.poke = lambda app: written_by_then.append(list(rig.written))  # type: ignore[method-assign]
    rig.look(105)
    assert written_by_then == [[set()]]


def test_a_job_that_still_runs_is_left_alone_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, AppConfig("job", command=("true",), cron="*/5 * * * *"))
    rig.app.workers[1] = SimpleNamespace(is_alive=True)
    assert rig.look(105) == ["its last run is still at work: this one is left out"]
    assert rig.app.finished_slots == {1}


def test_a_timed_reload_is_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, AppConfig("job", target="a:b", reload=ReloadConfig(cron="@hourly")))
    assert rig.look(119) == []
    assert rig.look(120) == ["reload: its timetable: @hourly"]


def test_a_timed_reload_does_not_take_the_place_of_a_reload_or_start_that_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, AppConfig("job", target="a:b", reload=ReloadConfig(cron="@hourly")))
    rig.app.target = 2
    assert rig.look(120) == ["its last reload is still at work: the reload of its timetable (@hourly) is left out"]
    rig.app.target, rig.app.starting = None, True
    assert rig.look(180) == ["its last start is still at work: the reload of its timetable (@hourly) is left out"]


def test_what_does_not_run_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, AppConfig("job", command=("true",), cron="* * * * *"))
    rig.app.running = False
    assert rig.look(101) == []


def test_it_wakes_at_the_next_full_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, AppConfig("job", command=("true",)))
    assert 0 < rig.delays[0] <= 60.05


def test_what_is_due_is_begun_from_the_minute_after_the_daemons_start_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 1_000_000_030.0
    clock = SimpleNamespace(time=lambda: seconds)
    monkeypatch.setattr(schedule, "time", clock)
    rig = Rig(monkeypatch, AppConfig("job", command=("true",), cron="* * * * *"))
    rig.schedule = schedule.Schedule(rig.schedule._desk)
    rig.schedule._tick()
    assert rig.done == []  # what was due before it is not made up for
    seconds += 60
    rig.schedule._tick()
    assert rig.done == ["poke"]


def test_what_was_due_between_two_daemons_is_begun_by_the_second_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 1_000_000_030.0
    monkeypatch.setattr(schedule, "time", SimpleNamespace(time=lambda: seconds))
    rig = Rig(monkeypatch, AppConfig("job", command=("true",), cron="* * * * *"))
    rig.schedule._desk.brain.store.put = rig.stored.__setitem__  # type: ignore[method-assign]
    rig.schedule = schedule.Schedule(rig.schedule._desk)
    assert rig.done == []
    seconds += 60
    rig.schedule = schedule.Schedule(rig.schedule._desk)
    assert rig.done == ["poke"]
    rig.schedule = schedule.Schedule(rig.schedule._desk)
    assert rig.done == ["poke"]
    os.close(rig.stored[MINUTES])


def test_a_look_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, AppConfig("job", command=("true",), cron="* * * * *"))

    def fail(now: int, at: int) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(rig.schedule, "look", fail)
    rig.delays.clear()
    with pytest.raises(RuntimeError):
        rig.schedule._tick()
    assert len(rig.delays) == 1


def test_a_zone_that_the_machine_was_given_meanwhile_is_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "AAA0")
        before = schedule.local_minute(0)
        zone.setenv("TZ", "AAA-5")
        assert schedule.local_minute(0) - before == 5 * 60
    time.tzset()

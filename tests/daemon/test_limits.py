"""daemon/limits.py: what is looked at again and again is, also after a look that failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from pyworker.config.schema import AppConfig, LimitsConfig, RestartConfig
from pyworker.daemon import limits
from pyworker.daemon.events import EventLog
from pyworker.daemon.loop import Loop
from pyworker.daemon.reloads import TOO_LOW
from pyworker.policy.lifecycle import State
from pyworker.protocol.stacks import Frame, TaskStack, write_tasks
from pyworker.unix import oom


def test_limits_are_watched_on_after_a_look_that_failed_for_want_of_descriptors() -> None:
    clock = [100.0]
    reports: list[str] = []
    loop = Loop(lambda: clock[0], reports.append)
    worker = SimpleNamespace(recycle="", state=State.READY, ready_at=1.0, born_at=1.0, pid=4242)
    config = AppConfig("api", target="a:b", limits=LimitsConfig(memory=1000))
    app = SimpleNamespace(config=config, running=True, target=None, workers={1: worker}, slots=lambda: [1], notes=[], restart_config=config.restart)
    recycled: list[str] = []
    brain: Any = SimpleNamespace(
        apps={"api": app},
        workers=SimpleNamespace(recycle=lambda app, worker, reason: recycled.append(reason)),
        events=EventLog(-1),
    )
    answers: list[Any] = [OSError(24, "Too many open files"), 3 << 20]

    def pss(pid: int) -> int:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return int(answer)

    sampler: Any = SimpleNamespace(pss=pss)
    limits.watch(loop, brain, sampler)
    while answers:
        clock[0] += limits.NOTHING_TO_SAMPLE
        loop.turn(0)
    loop.close()
    assert len(reports) == 1
    assert recycled == ["memory 3 MB > 0 MB"]


def test_requests_of_an_app_that_has_just_come_are_looked_at_at_once_and_not_when_it_is_convenient() -> None:
    clock = [limits.NOTHING_TO_SAMPLE * 3 + 0.1]  # a lazy look is as far away as it can be
    loop = Loop(lambda: clock[0], pytest.fail)
    stats = SimpleNamespace(in_flight=1, progress_at=0.0, oldest_at=clock[0])
    worker = SimpleNamespace(recycle="", state=State.READY, ready_at=1.0, pid=4242, id=SimpleNamespace(serial=1, slot=1))
    config = AppConfig("api", target="a:b", limits=LimitsConfig(request_timeout=2.0))
    app = SimpleNamespace(
        config=config, running=True, target=None, workers={1: worker}, slots=lambda: [1],
        board=SimpleNamespace(stats=lambda serial: stats),
    )  # fmt: skip
    recycled: list[float] = []
    workers = SimpleNamespace(
        signal=lambda app, worker, number: None, recycle=lambda app, worker, reason: recycled.append(clock[0])
    )
    tasks = write_tasks(4242, [TaskStack("Task-7", 1, (Frame("/srv/shop.py", 12, "view"), Frame("/srv/db.py", 3, "query")))])
    stacks = SimpleNamespace(take=lambda app, worker, then, to_log: then(tasks, "", ""))
    said: list[str] = []
    brain: Any = SimpleNamespace(
        apps={}, workers=workers, stacks=stacks, events=EventLog(-1), remark=lambda app, text: said.append(text)
    )
    sampler: Any = None
    limits.watch(loop, brain, sampler)
    began = clock[0]
    brain.apps["api"] = app
    brain.events.emit("app_started", "api", None, generation=1, workers=1, scheduled=False, listen=[])
    while not recycled and clock[0] < began + 20:
        clock[0] += 0.1
        loop.turn(0)
    loop.close()
    assert 2.0 < recycled[0] - began < 2.0 + 2 * limits.REQUESTS_EVERY
    assert said[0] == "worker 1, a request of which runs too long, is in /srv/db.py:3 in query"


@pytest.mark.parametrize(("max_age", "said"), [(50.0, ["age 60 s > 50 s"]), (60.0, []), (0.0, [])])
def test_a_worker_is_replaced_when_it_is_too_old_and_never_without_a_limit(max_age: float, said: list[str]) -> None:
    worker = SimpleNamespace(recycle="", state=State.READY, ready_at=40.0, born_at=1.0, pid=4242)
    recycled: list[str] = []
    workers = SimpleNamespace(recycle=lambda app, worker, reason, can_wait: recycled.append(reason))
    brain: Any = SimpleNamespace(workers=workers)
    app: Any = SimpleNamespace(workers={1: worker}, notes=[])
    limits._check_app(brain, SimpleNamespace(), app, None, max_age, 100.0)  # type: ignore[arg-type]
    assert recycled == said


@pytest.mark.parametrize(
    ("memory", "step"),
    [(1000, "raise it"), ("auto", "it is each one's share of the limit of the cgroup: raise that, or have fewer workers")],
)
def test_a_limit_below_what_a_worker_takes_at_once_is_a_note_until_workers_live_with_it(
    memory: int | Literal["auto"], step: str
) -> None:
    worker = SimpleNamespace(recycle="", state=State.READY, ready_at=96.0, born_at=95.0, pid=4242, id=SimpleNamespace(slot=1))
    config = SimpleNamespace(limits=LimitsConfig(memory=memory))
    app: Any = SimpleNamespace(workers={1: worker}, notes=[], config=config, restart_config=RestartConfig(), runs_once=False)
    note = TOO_LOW + step
    brain: Any = SimpleNamespace(
        note=lambda app, text: app.notes.append(text),
        note_is_over=lambda app, text: app.notes.remove(text) if text in app.notes else None,
        workers=SimpleNamespace(recycle=lambda app, worker, reason: None),
    )
    for used, now, notes in ((3000, 100.0, [note]), (500, 101.0, [note]), (500, 107.0, [])):
        sampler: Any = SimpleNamespace(pss=lambda pid, answer=used: answer)
        limits._check_app(brain, sampler, app, 1000, 0.0, now)
        assert app.notes == notes


def a_worker(**changes: Any) -> Any:
    base = {"recycle": "", "state": State.READY, "ready_at": 50.0, "born_at": 40.0, "pid": 4242, "id": SimpleNamespace(serial=1, slot=1)}
    return SimpleNamespace(**base | changes)


def recycled(workers: list[Any], check: Any, **app: Any) -> list[int]:
    """Return the pids of those that a check has replaced."""
    found: list[int] = []
    brain: Any = SimpleNamespace(
        workers=SimpleNamespace(recycle=lambda app, worker, reason, **more: found.append(worker.pid)),
        stacks=SimpleNamespace(take=lambda *args, **more: None), note=lambda app, text: None,
    )  # fmt: skip
    config = AppConfig("api", target="a:b", limits=LimitsConfig(memory=1000))
    base = {"workers": dict(enumerate(workers)), "notes": [], "target": None, "config": config, "runs_once": False}
    check(brain, SimpleNamespace(**base | {"restart_config": config.restart} | app))
    return found


def by_memory(brain: Any, app: Any) -> None:
    sampler: Any = SimpleNamespace(pss=lambda pid: None if pid == 1 else pid)
    limits._check_app(brain, sampler, app, 1000, 0.0, 100.0)


def by_age(brain: Any, app: Any) -> None:
    limits._check_app(brain, SimpleNamespace(), app, None, 10.0, 100.0)  # type: ignore[arg-type]


def by_request(brain: Any, app: Any) -> None:
    own_time: Any = SimpleNamespace(age=lambda since, now: now - since)
    app.board = SimpleNamespace(stats=lambda serial: SimpleNamespace(in_flight=1, progress_at=99.0, oldest_at=80.0))
    limits._check_requests(brain, app, 10.0, 100.0, own_time)


@pytest.mark.parametrize("check", [by_memory, by_age, by_request])
@pytest.mark.parametrize(
    ("workers", "pids"),
    [
        ([{}, {"pid": 4243}], [4242]),  # one at a time ...
        ([{}, {"pid": 4243, "recycle": "memory"}], []),  # ... and the next when the successor of that one has come
        ([{"state": State.UNHEALTHY}], [4242]),
        ([{"state": State.DRAINING}], []),
        ([{"ready_at": None}], []),
        ([{"pid": 0}], []),
    ],
)
def test_of_those_that_serve_one_at_a_time_is_replaced(check: Any, workers: list[dict[str, Any]], pids: list[int]) -> None:
    assert recycled([a_worker(**each) for each in workers], check) == pids


def test_the_oldest_is_the_first_to_be_replaced_and_of_one_that_has_gone_no_memory_is_known() -> None:
    workers = [a_worker(pid=4242, born_at=45.0), a_worker(pid=4243, born_at=44.0), a_worker(pid=1, born_at=1.0), a_worker(pid=1000, born_at=2.0)]
    assert recycled(workers, by_memory) == [4243]


def test_no_request_is_too_old_during_a_reload_which_replaces_its_worker_anyway() -> None:
    assert recycled([a_worker()], by_request, target=2) == []


@pytest.mark.parametrize(
    ("stats", "old"),
    [
        ({"oldest_at": 89.0}, True),
        ({"oldest_at": 90.0}, False),
        ({"in_flight": 1, "progress_at": 88.5}, True),  # its loop stands still: when the request began nobody could write down
        ({"in_flight": 1, "progress_at": 89.0}, False),
        ({"in_flight": 0, "progress_at": 1.0}, False),
        ({"in_flight": 1, "progress_at": 0.0}, False),
    ],
)
def test_a_request_is_too_old_by_its_begin_or_when_the_loop_that_has_it_stands_still(stats: dict[str, Any], old: bool) -> None:
    def check(brain: Any, app: Any) -> None:
        own_time: Any = SimpleNamespace(age=lambda since, now: now - since)
        app.board = SimpleNamespace(stats=lambda serial: SimpleNamespace(**{"in_flight": 0, "progress_at": 0.0, "oldest_at": 0.0} | stats))
        limits._check_requests(brain, app, 10.0, 100.0, own_time)

    assert recycled([a_worker()], check) == ([4242] if old else [])


ONE_LIMIT = {"memory": LimitsConfig(memory=1000), "auto": LimitsConfig(memory="auto"), "age": LimitsConfig(max_age=10.0)}


@pytest.mark.parametrize(
    ("limit", "app", "room", "said"),
    [
        ("memory", {}, None, ["memory 3 MB > 0 MB"]),
        ("memory", {"target": 2}, None, []),
        ("memory", {"running": False}, None, []),
        ("age", {}, None, ["age 999 s > 10 s"]),
        ("auto", {}, 16 << 20, ["memory 3 MB > 2 MB"]),  # its share: three run, there is room for one more, the other half is ours
        ("auto", {}, 40 << 20, []),
        ("auto", {}, None, []),
    ],
)
def test_what_has_a_limit_is_looked_at_when_it_runs_and_is_not_reloaded(
    monkeypatch: pytest.MonkeyPatch, limit: str, app: dict[str, Any], room: int | None, said: list[str]
) -> None:
    clock = [1000.0]
    loop = Loop(lambda: clock[0], pytest.fail)
    config = AppConfig("api", target="a:b", limits=ONE_LIMIT[limit])
    worker = a_worker(ready_at=6.0)
    base = {"config": config, "running": True, "target": None, "workers": {1: worker}, "slots": lambda: [1], "notes": [], "restart_config": config.restart}
    others = [{"config": None}, {"config": AppConfig("web", target="a:b"), "workers": {1: a_worker(pid=1)}}, {"running": False}]
    found: list[str] = []
    brain: Any = SimpleNamespace(
        apps={str(n): SimpleNamespace(**base | each) for n, each in enumerate([app, *others])},
        workers=SimpleNamespace(recycle=lambda app, worker, reason, **more: found.append(reason)), events=EventLog(-1),
    )  # fmt: skip
    monkeypatch.setattr(oom, "group_room", lambda: room)
    sampler: Any = SimpleNamespace(pss=lambda pid: 3 << 20)
    limits.watch(loop, brain, sampler)
    clock[0] += limits.SAMPLE_EVERY + 0.1
    loop.turn(0)
    loop.close()
    assert found == said

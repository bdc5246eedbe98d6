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

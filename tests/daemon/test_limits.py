"""daemon/limits.py: what is looked at again and again is, also after a look that failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyworker.config.schema import AppConfig, LimitsConfig
from pyworker.daemon import limits
from pyworker.daemon.loop import Loop
from pyworker.policy.lifecycle import State


def test_limits_are_watched_on_after_a_look_that_failed_for_want_of_descriptors() -> None:
    clock = [100.0]
    reports: list[str] = []
    loop = Loop(lambda: clock[0], reports.append)
    worker = SimpleNamespace(recycle="", state=State.READY, ready_at=1.0, born_at=1.0, pid=4242)
    config = AppConfig("api", target="a:b", limits=LimitsConfig(memory=1000))
    app = SimpleNamespace(config=config, running=True, target=None, workers={1: worker}, slots=lambda: [1])
    recycled: list[str] = []
    brain: Any = SimpleNamespace(
        apps={"api": app}, workers=SimpleNamespace(recycle=lambda app, worker, reason: recycled.append(reason))
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

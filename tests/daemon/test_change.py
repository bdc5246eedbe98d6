"""What a change of an app that runs leaves of what was known of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.app import App
from pyworker.daemon.requests.change import scale
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR, Record
from pyworker.protocol import control as k
from tests.support.brain import app_of_one_worker

GAVE_UP, TRIES = Record(10, failed=True), Record(2)


def scaled(app: App, change: str) -> list[Any]:
    """Scale it; return the events."""
    said: list[Any] = []
    brain = SimpleNamespace(poke=lambda app: None, emit=lambda app, kind, worker, **data: said.append((kind, data)))
    desk: Any = SimpleNamespace(apps=lambda names: [app], brain=brain, save=lambda: None, wait=lambda *_, **__: None)
    client: Any = None
    scale(desk, client, k.Scale({"api": change}))
    return said


@pytest.mark.parametrize(
    ("change", "finished", "stopped", "deaths", "said"),
    [
        ("2", {1, 2}, {2}, 2, [("scaled", {"from": 4, "to": 2})]),  # deaths in the soak: of fewer workers as many as were before
        ("-1", {1, 2}, {2}, 3, [("scaled", {"from": 4, "to": 3})]),
        ("6", {1, 2, 4}, {2, 4}, 4, [("scaled", {"from": 4, "to": 6})]),
        ("4", {1, 2, 4}, {2, 4}, 4, []),
        ("+0", {1, 2, 4}, {2, 4}, 4, [("scaled", {"from": 4, "to": 4})]),
    ],
)
@pytest.mark.parametrize(("record", "after"), [(GAVE_UP, CLEAR), (TRIES, TRIES)])
def test_what_an_app_that_is_scaled_keeps(
    record: Record, after: Record, change: str, finished: set[int], stopped: set[int], deaths: int, said: list[Any]
) -> None:
    with app_of_one_worker(State.READY) as (app, _, _):
        app.running, app.scale, app.soak_deaths, app.record = True, 4, 4, record
        app.finished_slots, app.stopped_slots = {1, 2, 4}, {2, 4}
        assert scaled(app, change) == said
        assert (app.finished_slots, app.stopped_slots, app.soak_deaths, app.record) == (finished, stopped, deaths, after)


def test_a_job_that_is_scaled_up_has_its_new_workers_from_its_next_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(App, "is_job", True)
    with app_of_one_worker(State.READY) as (app, _, _):
        app.running, app.scale, app.finished_slots = True, 2, {1}
        scaled(app, "4")
        assert app.finished_slots == {1, 3, 4}

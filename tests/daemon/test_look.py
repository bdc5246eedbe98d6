"""What somebody who follows events is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.events import EventLog
from pyworker.daemon.requests.look import follow
from pyworker.daemon.selection import select
from pyworker.protocol import control as k


@pytest.mark.parametrize(
    ("selectors", "told"),
    [
        ((), ["", "api", "api.1", "api.2", "web", "web.1"]),
        (("all",), ["", "api", "api.1", "api.2", "web", "web.1"]),
        (("w*",), ["web", "web.1"]),
        (("api",), ["api", "api.1", "api.2"]),
        (("api.2",), ["api.2"]),
        (("*.1",), ["api.1", "web.1"]),
    ],
)
def test_who_follows_is_told_of_an_app_that_came_later_too(selectors: tuple[str, ...], told: list[str]) -> None:
    events, said = EventLog(-1), []
    desk: Any = SimpleNamespace(brain=SimpleNamespace(events=events), select=lambda selectors: select(selectors, ["api", "worker"]))
    client: Any = SimpleNamespace(progress=said.append, on_gone=lambda callback: None)
    follow(desk, client, k.Follow(selectors))
    events.emit("daemon_stopped")
    for app, workers in (("api", (1, 2)), ("web", (1,))):
        events.emit("app_stopped", app)
        for worker in workers:
            events.emit("worker_healthy", app, worker, generation=1, pid=7)
    assert [f"{e['app']}.{e['worker']}" if e.get("worker") else e["app"] for e in said] == told

"""daemon/workers.py: what a worker says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.workers import Workers
from pyworker.policy.lifecycle import State
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.worker import Recycle


@pytest.mark.parametrize(("state", "events"), [(State.READY, 1), (State.DRAINING, 0), (State.STOPPING, 0)])
def test_one_that_asks_to_be_replaced_is_said_to_be_once_and_not_if_it_leaves_already(state: State, events: int) -> None:
    said: list[Any] = []
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(clock=lambda: 1.0), readiness=None, poke=lambda app: None,
        emit=lambda app, kind, slot, **data: said.append((kind, slot, data["reason"])),
    )  # fmt: skip
    app: Any = SimpleNamespace(generations={1: object()})
    handle = WorkerHandle(WorkerId("api", 1, 2, 3), held=False, born_at=0.0, state=state, pid=4242)
    for _ in range(2):
        Workers(brain)._take(app, handle, Recycle("max_requests 5"), 4242)
    assert said == [("worker_recycled", 2, "max_requests 5")] * events

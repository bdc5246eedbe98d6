"""What follows from a worker's death, in which order. Real loop, no process; whole trees are in tests/system."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.board import Board
from pyworker.daemon.deaths import BURIAL_DELAY, Deaths
from pyworker.daemon.loop import Loop
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import RestartConfig
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.scoreboard import AppF
from pyworker.unix.process import ExitStatus
from tests.support.wait import wait_until


@pytest.mark.parametrize("status", [ExitStatus(None, 9), ExitStatus(None, 15), ExitStatus(1, None)])
def test_the_successor_is_asked_for_before_the_dead_is_buried(
    status: ExitStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    loop = Loop()
    workers = SimpleNamespace(kick_siblings=lambda app, handle: done.append("kick"), on_message=lambda app, handle: None)
    brain: Any = SimpleNamespace(
        loop=loop, workers=workers, store={}, poke=lambda app: loop.call_soon(lambda: done.append("successor"))
    )
    monkeypatch.setattr(Deaths, "_bury", lambda self, app, handle, status: done.append("bury"))
    deaths = Deaths(brain)
    now = time.monotonic()
    handle: Any = SimpleNamespace(
        id=WorkerId("api", 1, 1, 7), status=None, is_alive=True, state=State.READY, failure=None,
        ready_at=now - 60, ended_at=now, happen=lambda happening, now: None,
    )  # fmt: skip
    app: Any = SimpleNamespace(
        generation=1, running=True, starting=False, is_job=False, workers={7: handle},
        restart_config=RestartConfig("always", 10.0, 10, 60.0, 60.0),
    )  # fmt: skip
    deaths.ended(app, handle, status)
    wait_until(lambda: loop.turn(0.01) or "bury" in done, 5, "the burial")
    assert done == ["successor", "kick", "bury"]


def test_who_is_not_buried_yet_is_when_the_app_is_closed_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    board = Board.create("api")
    board.allocate(WorkerId("api", 1, 1, 7))
    workers = SimpleNamespace(kick_siblings=lambda app, handle: None, on_message=lambda app, handle: None)
    brain: Any = SimpleNamespace(loop=loop, workers=workers, poke=lambda app: None)
    deaths = Deaths(brain)
    now = time.monotonic()
    handle: Any = SimpleNamespace(
        id=WorkerId("api", 1, 1, 7), pid=0, status=None, is_alive=True, state=State.READY, failure=None,
        ready_at=now - 60, ended_at=now, happen=lambda happening, now: None,
    )  # fmt: skip
    app: Any = SimpleNamespace(
        generation=1, running=True, starting=False, is_job=False, workers={7: handle}, board=board, slot_restarts={},
        restart_config=RestartConfig("always", 10.0, 10, 60.0, 60.0),
    )  # fmt: skip
    monkeypatch.setattr(Deaths, "_release", lambda self, app, handle: app.board.free(handle.id.serial))
    monkeypatch.setattr(Deaths, "_tell", lambda self, app, handle, status, shortage: None)
    deaths.ended(app, handle, ExitStatus(None, 9))
    deaths.bury_all(app)
    assert (board.row_of(7), board.app(AppF.RESTARTS)) == (0, 1)
    board.close()  # a delete
    later: list[str] = []
    loop.call_later(BURIAL_DELAY, lambda: later.append("the time of its burial is over"))
    wait_until(lambda: loop.turn(0.01) or later, 5, "a moment")
    assert app.slot_restarts == {1: 1}

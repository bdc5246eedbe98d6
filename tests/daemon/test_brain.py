"""daemon/brain.py: what it writes down, and how often. Whole trees are in tests/system."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.brain import Brain
from pyworker.daemon.events import EventLog
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import Loop
from tests.support.channels import ends as ends
from tests.support.wait import wait_until


def test_apps_that_restart_together_are_written_down_once(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, begun, saved = Loop(), [], []
    spawner: Any = SimpleNamespace()
    brain = Brain(loop, FdStore(ends[0]), spawner, EventLog(-1), "")
    brain.save = lambda: saved.append(list(begun))
    monkeypatch.setattr(brain, "begin", lambda app, number: begun.append(number))
    for number in (2, 3, 4):
        app: Any = SimpleNamespace(restart_to=number, running=False, keep_listening=True, is_empty=lambda: True)
        brain._note_progress(app, 0.0)
    wait_until(lambda: loop.turn(0.01) or saved, 5, "the write")
    assert saved == [[2, 3, 4]]
    loop.close()

"""daemon/brain.py: what it writes down, and how often. Whole trees are in tests/system."""

from __future__ import annotations

import os
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, ResolvedApp
from pyworker.daemon.app import App, Failure, Generation
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.desired import InlineSource
from pyworker.daemon.events import EventLog
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.ledger import Ledger
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


def test_reloads_that_nobody_waits_for_are_not_remembered_when_they_were_refused(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    loop, told = Loop(), []
    spawner: Any = SimpleNamespace()
    brain = Brain(loop, FdStore(ends[0]), spawner, EventLog(-1), "")
    resolved = ResolvedApp(
        AppConfig("api", command=("true",), balance="shared"), 1, sys.executable, {}, (), None, None, (), "", 0
    )
    source = InlineSource({"command": ["true"]}, "/")
    app = App("api", source, Board.create("api"), Ledger(ledger := Ledger.create("api")), running=True, closed=False)
    app.generation, app.generations = 1, {1: Generation(1, resolved)}
    brain.gate = lambda app: frozenset({1})  # nothing is started
    brain.on_settled = lambda app: told.append(list(app.refused))
    for number in (2, 3):  # a file that is saved again and again with the same mistake
        app.target, app.target_failure = number, Failure("SyntaxError", "a traceback")
        brain.poke(app)
        loop.turn(0.0)
    assert (told, app.refused) == ([[2], [3]], {})
    app.board.close()
    app.ledger.close()
    os.close(ledger)
    loop.close()

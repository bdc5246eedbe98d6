"""daemon/brain.py: what it writes down, and how often. Whole trees are in tests/system."""

from __future__ import annotations

import mmap
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
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.ledger import Ledger
from pyworker.daemon.loop import Loop
from pyworker.policy.lifecycle import State
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.scoreboard import SIZE, F, row_slice
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


def test_a_reload_is_done_when_no_old_worker_accepts_any_more_or_one_stands_still(ends: tuple[socket.socket, socket.socket]) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    resolved = ResolvedApp(AppConfig("api", target="web:app"), 1, sys.executable, {}, (), None, None, (), "", 0)
    app = App("api", InlineSource({"target": "web:app"}, "/"), board := Board.create("api"), Ledger(ledger := Ledger.create("api")))
    app.generations = {1: Generation(1, resolved)}
    old = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, pid=os.getpid(), state=State.DRAINING, leaving_at=10.0)
    app.workers = {7: old}
    row = row_slice(board.allocate(old.id))
    assert brain._may_old_ones_accept(app, 10.5)
    assert not brain._may_old_ones_accept(app, 11.5)
    with mmap.mmap(board.fd, SIZE) as memory, memoryview(memory).cast("Q") as cells, cells[row] as own:
        own[F.LEFT_AT] = 1
    assert not brain._may_old_ones_accept(app, 10.5)
    loop.close()
    board.close()
    os.close(ledger)


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

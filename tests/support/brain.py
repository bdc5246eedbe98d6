"""A brain without processes, and an app for it."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, ResolvedApp
from pyworker.daemon.app import App, Generation
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


@pytest.fixture
def brain(ends: tuple[socket.socket, socket.socket]) -> Iterator[Brain]:
    """One whose guardian hears nothing."""
    spawner: Any = None
    made = Brain(Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    yield made
    made.loop.close()


@contextlib.contextmanager
def app_of_one_worker(state: State) -> Iterator[tuple[App, WorkerHandle, Callable[[], None]]]:
    """An app of generation 1, its worker of generation 2; the function: what that says when it accepts no more."""
    resolved = ResolvedApp(AppConfig("api", target="web:app"), 1, sys.executable, {}, (), None, None, (), "", 0)
    app = App("api", InlineSource({"target": "web:app"}, "/"), board := Board.create("api"), Ledger(ledger := Ledger.create("api")))
    app.generation, app.generations = 1, {n: Generation(n, resolved) for n in (1, 2)}
    worker = WorkerHandle(WorkerId("api", 2, 1, 7), held=False, born_at=0.0, pid=os.getpid(), state=state)
    app.workers = {7: worker}
    row = row_slice(board.allocate(worker.id))

    def leaves() -> None:
        with mmap.mmap(board.fd, SIZE) as memory, memoryview(memory).cast("Q") as cells, cells[row] as own:
            own[F.LEFT_AT] = 1

    yield app, worker, leaves
    board.close()
    os.close(ledger)

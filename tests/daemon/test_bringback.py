"""daemon/bringback.py: what a daemon does about what the one before has left undone. Whole trees are in tests/system."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyworker.daemon.adopt import Adopted
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.bringback import bring_back
from pyworker.policy.lifecycle import State
from pyworker.unix.fds import memfd
from tests.support.brain import app_of_one_worker
from tests.support.brain import brain as brain
from tests.support.channels import ends as ends


def test_an_app_that_was_to_be_deleted_is_by_the_daemon_after_one_that_was_killed_over_it(brain: Brain) -> None:
    saved: list[tuple[list[str], list[str]]] = []
    operations = SimpleNamespace(look=lambda app: None)
    desk: Any = SimpleNamespace(brain=brain, home="", operations=operations)
    desk.save = lambda: saved.append(([*brain.apps], [*brain.store.fds]))
    with app_of_one_worker(State.STOPPED) as (app, *_):
        app.closed = app.delete_when_closed = True
        app.board = Board.create("api")  # which is closed with it
        brain.apps["api"] = app
        brain.store.put("ledger.api", memfd("ledger", b""))
        bring_back(desk, {}, Adopted(names=["api"]))
    # what says that it is to be deleted is there until it is
    assert saved == [([], ["ledger.api"])]
    assert (brain.apps, brain.store.fds) == ({}, {})

"""daemon/brain.py: what it writes down, and how often. Whole trees are in tests/system."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.address import parse_bind
from pyworker.config.schema import AppConfig, ResolvedApp, RestartConfig
from pyworker.daemon import operations
from pyworker.daemon.app import App, Failure, Generation, Listener
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain, _forget_notes
from pyworker.daemon.desired import InlineSource
from pyworker.daemon.events import EventLog
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.ledger import Ledger
from pyworker.daemon.loop import Loop
from pyworker.policy.lifecycle import State
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.scoreboard import SIZE, F, row_slice
from pyworker.record import replace
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
    wait_until(lambda: loop.turn(0.01) or saved, what="the write")
    assert saved == [[2, 3, 4]]
    loop.close()


def test_an_event_of_a_worker_says_which_generation_and_process_of_its_slot_that_is(ends: tuple[socket.socket, socket.socket]) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    told: list[Any] = []
    brain.events.subscribe(lambda event: told.append((event.type, event.app, event.worker, event.data)))
    app: Any = SimpleNamespace(name="api")
    worker = WorkerHandle(WorkerId("api", 3, 2, 9), held=False, born_at=0.0, pid=42)
    brain.emit(app, "worker_ready", worker, took_s=1.5)
    brain.emit(app, "app_note", 2, text="slow")
    brain.emit_failed("api", Failure("no disk", hint="buy one"), restarts=10, window=60.0)
    assert told == [
        ("worker_ready", "api", 2, {"generation": 3, "pid": 42, "took_s": 1.5}),
        ("app_note", "api", 2, {"text": "slow"}),
        ("app_failed", "api", None, {"reason": "no disk", "traceback": "", "hint": "buy one", "restarts": 10, "window_s": 60.0}),
    ]
    loop.close()


def test_an_app_has_its_round_though_one_of_its_name_that_was_deleted_is_looked_at_in_the_same_turn(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    rounds: list[App] = []
    monkeypatch.setattr(brain, "_round", rounds.append)
    deleted: Any = SimpleNamespace(name="api", closed=True)
    fresh: Any = SimpleNamespace(name="api", closed=False)
    for app in (deleted, fresh, fresh):
        brain.poke(app)
    for _ in range(3):
        loop.turn(0)
    assert rounds == [deleted, fresh]
    brain.poke(fresh)
    loop.turn(0)
    assert rounds[2:] == [fresh]
    loop.close()


@contextlib.contextmanager
def app_of_one_worker(brain: Brain, state: State) -> Iterator[tuple[App, WorkerHandle, Callable[[], None]]]:
    """An app of generation 1, and its worker of generation 2; the function: what that says when it accepts no more."""
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


def test_a_reload_is_done_when_no_old_worker_accepts_any_more_or_one_stands_still(ends: tuple[socket.socket, socket.socket]) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.DRAINING) as (app, worker, leaves):
        worker.leaving_at = 10.0
        assert brain.may_old_ones_accept(app, 10.5)
        assert not brain.may_old_ones_accept(app, 11.5)
        leaves()
        assert not brain.may_old_ones_accept(app, 10.5)
    loop.close()


def test_policy_sees_whether_a_worker_that_leaves_still_accepts(ends: tuple[socket.socket, socket.socket]) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.READY) as (app, worker, leaves):
        assert [w.left for w in app.view().workers] == [None]
        worker.state = State.DRAINING
        assert [w.left for w in app.view().workers] == [False]
        leaves()
        assert [w.left for w in app.view().workers] == [True]
    loop.close()


def test_policy_sees_which_workers_are_runs_of_a_job_and_whether_a_reload_makes_one_of_the_app(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.READY) as (app, worker, _):
        config = replace(app.config, target=None, command=("./job",), cron="* * * * *")
        app.generations[2].resolved = replace(app.generations[2].resolved, config=config)
        worker.state, app.target = State.STARTING, 2
        seen = app.view()
        assert (seen.job, seen.target_job, [w.job for w in seen.workers]) == (False, True, [True])
        app.generation, app.target = 2, 1
        seen = app.view()
        assert (seen.job, seen.target_job, [w.job for w in seen.workers]) == (True, False, [True])
    loop.close()


def test_a_reload_that_was_asked_for_before_a_start_has_failed_is_refused_with_it(ends: tuple[socket.socket, socket.socket]) -> None:
    """Else whoever has asked for it waits for ever."""
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.READY) as (app, _, _):
        app.wanted = app.running = app.starting = True
        app.target, app.start_failure = 2, Failure("the dispatcher ended")
        brain._fail_start(app)
        outcome = operations.reloaded(brain, 2)(app, 1.0)
        assert outcome is not None
        assert outcome.failure == Failure("the dispatcher ended")
        assert app.target is None
    loop.close()


@pytest.mark.parametrize("most", [1, 2])
def test_a_start_that_somebody_kills_is_over_where_one_death_is_one_too_many(ends: tuple[socket.socket, socket.socket], most: int) -> None:
    """Else it stayed a start for ever, its port open, with nobody behind it who would be tried again."""
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.STARTING) as (app, _, _):
        resolved = app.generations[1].resolved
        config = replace(resolved.config, restart=RestartConfig(max_restarts=most))
        app.generations[1] = Generation(1, replace(resolved, config=config))
        app.running = app.starting = True
        brain.deaths.start_failed(app, brain.fail("killed from outside"), 1.0, killed=True)
        assert (app.start_failure is not None, app.record.failed) == (most == 1, False)
    loop.close()


@pytest.mark.parametrize(("cron", "run_of", "slots"), [(None, 2, [1]), ("* * * * *", 2, []), ("* * * * *", 1, [1])])
def test_what_a_generation_that_is_rolled_back_has_finished_is_not_finished_by_the_one_before(
    ends: tuple[socket.socket, socket.socket], cron: str | None, run_of: int, slots: list[int]
) -> None:
    """Its worker has ended with code 0 where that may be; or a run of a job's goes on, of whichever generation."""
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.READY) as (app, worker, _):
        config = replace(app.config, target=None, command=("./job",), cron=cron)
        for generation in app.generations.values():
            generation.resolved = replace(generation.resolved, config=config)
        worker.id = WorkerId("api", run_of, 1, 7)
        app.generation, app.previous, app.finished_slots = 2, 1, {1} if run_of == 1 or not cron else set()
        brain._roll_back(app, 1, "it was given up")
        assert app.slots() == slots
    loop.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_policy_sees_at_a_stop_whether_a_client_waits_to_be_accepted(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path, family: socket.AddressFamily
) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    where: Any = str(tmp_path / "s") if family == socket.AF_UNIX else ("127.0.0.1", 0)
    with app_of_one_worker(brain, State.READY) as (app, _, _), socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind(where)
        listener.listen()
        app.listeners[1] = Listener(1, parse_bind(":80"), listener)
        app.running = True
        assert not app.view().nobody_waits  # of no interest
        app.running = False
        assert app.view().nobody_waits
        client.connect(listener.getsockname())
        assert not app.view().nobody_waits
        listener.accept()[0].close()
        assert app.view().nobody_waits
        program = replace(app.config, target=None, command=("./server",))
        app.generations[1].resolved = replace(app.generations[1].resolved, config=program)  # its own accept would fail
        assert not app.view().nobody_waits
    loop.close()


def test_an_address_that_a_reload_has_left_out_is_shut_in_a_moment_in_which_nobody_waits_there(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.READY) as (app, _, _), socket.create_server(("127.0.0.1", 0)) as listener:
        app.listeners[1] = Listener(1, parse_bind(":80"), listener)
        app.generation, app.generations[1].listeners = 2, (1,)
        with socket.create_connection(listener.getsockname()):
            brain.listening.refuse_dropped(app, at_once=False)
            listener.accept()[0].close()
        brain.listening.refuse_dropped(app, at_once=False)
        with socket.socket() as client:
            assert client.connect_ex(listener.getsockname()) == errno.ECONNREFUSED
    loop.close()


@pytest.mark.parametrize("command", ["scale", "restart"])
def test_a_worker_that_leaves_accepts_no_more_when_the_command_returns(ends: tuple[socket.socket, socket.socket], command: str) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.DRAINING) as (app, old, leaves):
        app.wanted = app.running = True
        goal = operations.scaled(brain, ()) if command == "scale" else operations.replaced(brain, {1}, {7})
        app.workers[8] = WorkerHandle(WorkerId("api", app.generation, 1, 8), held=False, born_at=9.0, pid=os.getpid(), state=State.READY)
        old.leaving_at = 10.0
        assert goal(app, 10.5) is None
        leaves()
        assert goal(app, 10.5) == operations.Outcome(True, f"{command.removesuffix('e')}ed")
    loop.close()


@pytest.mark.parametrize("command", ["reload --abort", "reload --soak"])
def test_a_reload_is_taken_back_when_the_old_code_answers_again(ends: tuple[socket.socket, socket.socket], command: str) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    soak = command == "reload --soak"
    with app_of_one_worker(brain, State.READY) as (app, given_up, leaves):
        app.wanted = app.running = True
        app.refused[2] = Failure("1 worker died in the soak")
        goal = operations.reloaded(brain, 2, soak=True) if soak else operations.aborted(brain, 2)
        assert goal(app, 9.0) is None
        app.refused.clear()
        app.workers[8] = WorkerHandle(WorkerId("api", 1, 1, 8), held=False, born_at=9.0, pid=os.getpid(), state=State.READY)
        given_up.state, given_up.leaving_at = State.DRAINING, 10.0
        assert goal(app, 10.5) is None
        leaves()
        assert goal(app, 10.5) == (operations.Outcome(False, "failed", Failure("1 worker died in the soak")) if soak else operations.Outcome(True, "aborted"))
    loop.close()


@pytest.mark.parametrize("then", ["stop", "reload", "restart"])
def test_a_reload_that_another_command_ends_before_it_is_taken_back_was_not_over(ends: tuple[socket.socket, socket.socket], then: str) -> None:
    spawner: Any = SimpleNamespace()
    brain = Brain(loop := Loop(), FdStore(ends[0]), spawner, EventLog(-1), "")
    with app_of_one_worker(brain, State.READY) as (app, _, _leaves):
        app.wanted, app.generation, app.previous = True, 2, 1
        goal = operations.aborted(brain, 2)
        assert goal(app, 9.0) is None
        app.previous = None
        app.wanted = then != "stop"
        app.target = 3 if then == "reload" else None
        app.restart_to = 3 if then == "restart" else None
        outcome = goal(app, 9.0)
        assert outcome is not None
        assert outcome.failure is not None
        assert outcome.failure.message == ("it was stopped by another command" if then == "stop" else "it was replaced by a later command")
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


def test_what_was_noted_of_workers_is_forgotten_with_their_generation() -> None:
    """Also by a dispatcher, which knows of none which it is."""
    app: Any = SimpleNamespace(notes=["worker 2 said what is no message: no JSON", "a worker said what is no message: no JSON", "another"])
    _forget_notes(app)
    assert app.notes == ["another"]

"""daemon/reloads.py: how a reload ends, and who learns of it. Whole trees are in tests/system."""

from __future__ import annotations

import errno
import os
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.address import parse_bind
from pyworker.config.schema import AppConfig, ResolvedApp, StopConfig
from pyworker.daemon import operations, reloads
from pyworker.daemon.app import App, Failure, Generation, Listener
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.desired import InlineSource
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.ledger import Ledger
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR, Record
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import WorkerId
from pyworker.record import replace
from tests.support.brain import app_of_one_worker
from tests.support.brain import brain as brain
from tests.support.channels import ends as ends


def test_a_reload_that_was_asked_for_before_a_start_has_failed_is_refused_with_it(brain: Brain) -> None:
    """Else whoever has asked for it waits for ever."""
    with app_of_one_worker(State.READY) as (app, _, _):
        app.wanted = app.running = app.starting = True
        app.target, app.start_failure = 2, Failure("the dispatcher ended")
        brain._fail_start(app)
        outcome = operations.reloaded(brain, 2)(app, 1.0)
        assert outcome is not None
        assert outcome.failure == Failure("the dispatcher ended")
        assert app.target is None


def test_what_is_shown_of_the_generation_before_goes_with_the_end_of_its_reload(brain: Brain) -> None:
    """Nothing may happen to the app afterwards: it was shown as one that had failed for as long as it served."""
    with app_of_one_worker(State.READY) as (app, _, _):
        app.running, app.closed, app.generation, app.reload_from = True, False, 2, 1
        app.failure = Failure("gave up after 10 restarts")
        brain._note_progress(app, 1.0)
        assert (app.reload_from, app.failure) == (None, None)


@pytest.mark.parametrize(("cron", "run_of", "slots"), [(None, 2, [1]), ("* * * * *", 2, []), ("* * * * *", 1, [1])])
def test_what_a_generation_that_is_rolled_back_has_finished_is_not_finished_by_the_one_before(
    brain: Brain, cron: str | None, run_of: int, slots: list[int]
) -> None:
    """Its worker has ended with code 0 where that may be; or a run of a job's goes on, of whichever generation."""
    with app_of_one_worker(State.READY) as (app, worker, _):
        config = replace(app.config, target=None, command=("./job",), cron=cron)
        for generation in app.generations.values():
            generation.resolved = replace(generation.resolved, config=config)
        worker.id = WorkerId("api", run_of, 1, 7)
        app.generation, app.previous, app.finished_slots = 2, 1, {1} if run_of == 1 or not cron else set()
        brain.reloads.roll_back(app, 1, "it was given up")
        assert app.slots() == slots


@pytest.mark.parametrize(("scale", "then"), [(None, (3, 2)), (5, (5, 4))])  # scaled meanwhile: that stays
def test_a_roll_back_leaves_nothing_of_the_generation_that_was_given_up_but_why(
    brain: Brain, monkeypatch: pytest.MonkeyPatch, scale: int | None, then: tuple[int, int]
) -> None:
    said: list[Any] = []
    brain.events.subscribe(lambda event: said.append((event.type, event.data)))
    brain.save_or_note = lambda: said.append("saved")
    monkeypatch.setattr(reloads.state, "address", lambda home, resolved: said.append("the state's owner"))
    monkeypatch.setattr(reloads.appmetrics, "prepare", lambda home, resolved: said.append("that of its figures"))
    monkeypatch.setattr(brain, "write_logs_spec", lambda app: said.append("the log's form"))
    with app_of_one_worker(State.READY) as (app, _, _):
        app.generation, app.previous, app.reload_from, app.given_up = 2, 1, 1, "too many deaths"
        app.record = app.template_record = Record(3, (1.0,), 9.0)
        app.scale, app.scale_base, app.scale_before = scale, 4, (3, 2)
        app.failure = Failure("exited with code 3", "a traceback")
        brain.reloads.roll_back(app, 1, "too many deaths")
        assert (app.generation, app.previous, app.reload_from, app.given_up) == (1, None, None, "")
        assert (app.record, app.template_record) == (CLEAR, CLEAR)
        assert (app.scale, app.scale_base) == then
        why = "too many deaths: exited with code 3"
        assert (app.refused[2].message, app.refused[2].traceback) == (why, "a traceback")
        assert app.notes == [f"generation 2 was rolled back: {why}"]
    assert said[:4] == ["the log's form", "the state's owner", "that of its figures", "saved"]
    assert said[-1] == ("reload_rolled_back", {"from": 1, "to": 2, "reason": why})


@pytest.mark.parametrize(
    ("state", "config", "told"),
    [
        (State.DRAINING, {}, [20.0, 0.0]),  # by the commit; by the roll-back, by which its time is over
        (State.READY, {}, []),
        (State.STOPPING, {}, []),
        (State.DRAINING, {"target": None, "script": "run.py"}, [20.0, 0.0]),
        (State.DRAINING, {"target": None, "command": ("./run",)}, []),  # which hears nothing
    ],
)
def test_those_that_drain_already_are_told_the_time_that_a_commit_or_a_roll_back_brings(
    brain: Brain, monkeypatch: pytest.MonkeyPatch, state: State, config: dict[str, Any], told: list[float]
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(brain.workers, "say", lambda worker, message: said.append(message))
    monkeypatch.setattr(brain, "write_logs_spec", lambda app: None)
    monkeypatch.setattr(brain.loop, "clock", lambda: 110.0)
    with app_of_one_worker(state) as (app, worker, _):
        worker.since = 100.0
        for number, seconds in ((1, 5.0), (2, 30.0)):
            resolved = app.generations[number].resolved
            stop = StopConfig(drain_timeout=seconds)
            app.generations[number].resolved = replace(resolved, config=replace(resolved.config, stop=stop, **config))
        brain.reloads.commit(app, 2, 110.0)
        brain.reloads.roll_back(app, 1, "too many deaths")
    assert said == [w.Drain(seconds, to_empty=False) for seconds in told]


def test_an_address_that_a_reload_has_left_out_is_shut_in_a_moment_in_which_nobody_waits_there(
    brain: Brain,
) -> None:
    with app_of_one_worker(State.READY) as (app, _, _), socket.create_server(("127.0.0.1", 0)) as listener:
        app.listeners[1] = Listener(1, parse_bind(":80"), listener)
        app.generation, app.generations[1].listeners = 2, (1,)
        with socket.create_connection(listener.getsockname()):
            brain.listening.refuse_dropped(app, at_once=False)
            listener.accept()[0].close()
        brain.listening.refuse_dropped(app, at_once=False)
        with socket.socket() as client:
            assert client.connect_ex(listener.getsockname()) == errno.ECONNREFUSED


@pytest.mark.parametrize("command", ["reload --abort", "reload --soak"])
def test_a_reload_is_taken_back_when_the_old_code_answers_again(brain: Brain, command: str) -> None:
    soak = command == "reload --soak"
    with app_of_one_worker(State.READY) as (app, given_up, leaves):
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


@pytest.mark.parametrize("then", ["stop", "reload", "restart"])
def test_a_reload_that_another_command_ends_before_it_is_taken_back_was_not_over(brain: Brain, then: str) -> None:
    with app_of_one_worker(State.READY) as (app, _, _leaves):
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


def test_reloads_that_nobody_waits_for_are_not_remembered_when_they_were_refused(
    brain: Brain,
) -> None:
    told: list[list[int]] = []
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
        brain.loop.turn(0.0)
    assert (told, app.refused) == ([[2], [3]], {})
    app.board.close()
    app.ledger.close()
    os.close(ledger)


def test_what_was_noted_of_workers_is_forgotten_with_their_generation() -> None:
    """Also by a dispatcher, which knows of none which it is."""
    app: Any = SimpleNamespace(notes=["worker 2 said what is no message: no JSON", "a worker said what is no message: no JSON", "another"])
    reloads._forget_notes(app)
    assert app.notes == ["another"]

"""daemon/brain.py: what it writes down, and how often. Whole trees are in tests/system."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.address import parse_bind
from pyworker.config.schema import RestartConfig
from pyworker.daemon import operations
from pyworker.daemon.app import App, Failure, Generation, Listener
from pyworker.daemon.brain import Brain
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.requests import desk
from pyworker.daemon.requests.desk import Desk
from pyworker.daemon.sample import Sampler
from pyworker.policy.actions import ClearRecord
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR, Record
from pyworker.protocol.inherited import WorkerId
from pyworker.record import replace
from tests.support.brain import app_of_one_worker
from tests.support.brain import brain as brain
from tests.support.channels import ends as ends
from tests.support.wait import wait_until


def test_apps_that_restart_together_are_written_down_once(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    saved: list[list[int]] = []
    brain.save_or_note = lambda: saved.append(list(begun))
    monkeypatch.setattr(brain, "begin", lambda app, number: begun.append(number))
    for number in (2, 3, 4):
        app: Any = SimpleNamespace(restart_to=number, running=False, is_empty=lambda: True)
        brain._note_progress(app, 0.0)
        assert app.restart_to is None
    for not_yet in ({"running": True}, {"is_empty": lambda: False}):  # it is to stop, or stops
        waits: Any = SimpleNamespace(**{"restart_to": 5, "running": False, "is_empty": lambda: True, "closed": True} | not_yet)
        brain._note_progress(waits, 0.0)
        assert waits.restart_to == 5
    wait_until(lambda: brain.loop.turn(0.01) or saved, what="the write")
    assert saved == [[2, 3, 4]]


@pytest.mark.parametrize(
    ("running", "told", "case"),
    [
        (True, True, {}),
        (False, False, {"is_open": False}),
        (False, False, {"checked": False}),
        (False, False, {"running": False}),
        (False, False, {"closed": True}),
        (False, False, {"starting": False}),
        (True, False, {"is_open": False, "is_job": True}),  # it waits for its time
        (True, False, {"is_open": False, "slots": []}),  # all of it has finished already
        (False, False, {"is_open": False, "is_job": True, "gated": {1}}),  # what it depends on does not run yet
    ],
)
def test_a_start_is_over_when_all_of_the_app_is_open_or_there_is_nothing_to_open(
    brain: Brain, monkeypatch: pytest.MonkeyPatch, running: bool, told: bool, case: dict[str, Any]
) -> None:
    events: list[str] = []
    monkeypatch.setattr(brain, "emit", lambda app, kind, worker, **data: events.append(kind))
    monkeypatch.setattr(brain.reloads, "complete", lambda app, now: True)
    app: Any = SimpleNamespace(
        restart_to=None, closed=case.get("closed", False), running=case.get("running", True), starting=case.get("starting", True),
        is_open=lambda now: case.get("is_open", True), has_been_checked=lambda: case.get("checked", True), is_job=case.get("is_job", False),
        slots=lambda: case.get("slots", [1]), gated=case.get("gated", set()), generation=1, started_at=1.0, failure=Failure("of the one before"),
        record=SimpleNamespace(is_clear=False),
    )  # fmt: skip
    starting = app.starting
    brain._note_progress(app, 2.0)
    assert (starting and not app.starting, events) == (running, ["app_running"] if told else [])
    assert (app.failure is None) == told


@pytest.mark.parametrize(
    ("forgotten", "case"),
    [(True, {}), (False, {"record": Record(1, (1.0,), 2.0)}), (False, {"is_open": False}), (False, {"badly": True})],
)
def test_why_it_has_failed_is_shown_until_all_of_the_app_is_well_again(
    brain: Brain, monkeypatch: pytest.MonkeyPatch, forgotten: bool, case: dict[str, Any]
) -> None:
    monkeypatch.setattr(brain.reloads, "complete", lambda app, now: False)
    app: Any = SimpleNamespace(
        restart_to=None, closed=False, running=True, starting=False, record=case.get("record", CLEAR), failure=Failure("it said why"),
        is_open=lambda now: case.get("is_open", True), has_ended_badly=lambda: case.get("badly", False),
        slots=lambda: [1], is_job=False,
    )  # fmt: skip
    brain._note_progress(app, 2.0)
    assert (app.failure is None) == forgotten


def test_an_event_of_a_worker_says_which_generation_and_process_of_its_slot_that_is(brain: Brain) -> None:
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


def test_a_note_that_is_over_is_so_for_the_next_daemon_too(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[App] = []
    monkeypatch.setattr(brain, "_round", rounds.append)  # which ends with the memo
    app: Any = SimpleNamespace(name="api", notes=["slow"])
    brain.note_is_over(app, "another")
    brain.loop.turn(0)
    assert (app.notes, rounds) == (["slow"], [])
    brain.note_is_over(app, "slow")
    brain.loop.turn(0)
    assert (app.notes, rounds) == ([], [app])


def test_an_app_has_its_round_though_one_of_its_name_that_was_deleted_is_looked_at_in_the_same_turn(
    brain: Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[App] = []
    monkeypatch.setattr(brain, "_round", rounds.append)
    deleted: Any = SimpleNamespace(name="api", closed=True)
    fresh: Any = SimpleNamespace(name="api", closed=False)
    for app in (deleted, fresh, fresh):
        brain.poke(app)
    for _ in range(3):
        brain.loop.turn(0)
    assert rounds == [deleted, fresh]
    brain.poke(fresh)
    brain.loop.turn(0)
    assert rounds[2:] == [fresh]


def test_a_generation_is_kept_for_as_long_as_anything_is_or_may_be_of_it(brain: Brain) -> None:
    removed: list[str] = []
    brain.store.remove = removed.append  # type: ignore[method-assign]
    app: Any = SimpleNamespace(
        name="api", closed=False, generation=1, target=2, previous=3, restart_to=4, templates={5: object()},
        workers={9: WorkerHandle(WorkerId("api", 6, 1, 9), held=False, born_at=0.0)},
        generations=dict.fromkeys(range(1, 8)), codes=dict.fromkeys(range(1, 8)), codes_at={7: 8},
    )  # fmt: skip
    brain._drop_generations(app)
    assert ([*app.generations], [*app.codes], app.codes_at, removed) == ([*range(1, 7)], [*range(1, 7)], {}, ["env.api.7"])
    app.closed, app.workers = True, {}
    brain._drop_generations(app)
    assert 6 in app.generations  # as it is told of one that was deleted


def test_a_start_that_failed_is_told_and_neither_tried_again_nor_is_the_reload_that_was_asked_for_meanwhile(
    brain: Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    why = Failure("it said why")
    monkeypatch.setattr(brain, "emit_failed", lambda name, failure: told.append((name, failure)))
    monkeypatch.setattr(brain.reloads, "refuse", lambda app, number, failure: told.append((number, failure)))
    app: Any = SimpleNamespace(name="api", start_failure=why, record=CLEAR, failure=None, running=True, starting=True, target=2)
    brain._fail_start(app)
    assert told == [(2, why), ("api", why)]
    assert (app.start_failure, app.failure, app.running, app.starting, app.target) == (None, why, False, False, None)
    assert app.record.permanent
    app.target = None
    brain._fail_start(app)
    assert [of for of, _ in told] == [2, "api", "api"]


def test_a_reload_is_done_when_no_old_worker_accepts_any_more_or_one_stands_still(brain: Brain) -> None:
    with app_of_one_worker(State.DRAINING) as (app, worker, leaves):
        worker.leaving_at = 10.0
        assert brain.may_old_ones_accept(app, 10.5)
        assert not brain.may_old_ones_accept(app, 11.5)
        leaves()
        assert not brain.may_old_ones_accept(app, 10.5)


def test_policy_sees_whether_a_worker_that_leaves_still_accepts(brain: Brain) -> None:
    with app_of_one_worker(State.READY) as (app, worker, leaves):
        assert [w.left for w in app.view().workers] == [None]
        worker.state = State.DRAINING
        assert [w.left for w in app.view().workers] == [False]
        leaves()
        assert [w.left for w in app.view().workers] == [True]


def test_policy_sees_that_a_worker_has_ended_whose_death_is_still_to_be_told(brain: Brain) -> None:
    with app_of_one_worker(State.READY) as (app, worker, _):
        assert [w.ended for w in app.view().workers] == [False]
        worker.ended_at = 10.0
        assert [w.ended for w in app.view().workers] == [True]


def test_policy_sees_which_workers_are_runs_of_a_job_and_whether_a_reload_makes_one_of_the_app(
    brain: Brain,
) -> None:
    with app_of_one_worker(State.READY) as (app, worker, _):
        config = replace(app.config, target=None, command=("./job",), cron="* * * * *")
        app.generations[2].resolved = replace(app.generations[2].resolved, config=config)
        worker.state, app.target = State.STARTING, 2
        seen = app.view()
        assert (seen.job, seen.target_job, [w.job for w in seen.workers]) == (False, True, [True])
        app.generation, app.target = 2, 1
        seen = app.view()
        assert (seen.job, seen.target_job, [w.job for w in seen.workers]) == (True, False, [True])


@pytest.mark.parametrize("most", [1, 2])
def test_a_start_that_somebody_kills_is_over_where_one_death_is_one_too_many(brain: Brain, most: int) -> None:
    """Else it stayed a start for ever, its port open, with nobody behind it who would be tried again."""
    with app_of_one_worker(State.STARTING) as (app, _, _):
        resolved = app.generations[1].resolved
        config = replace(resolved.config, restart=RestartConfig(max_restarts=most))
        app.generations[1] = Generation(1, replace(resolved, config=config))
        app.running = app.starting = True
        brain.deaths.start_failed(app, brain.fail("killed from outside"), 1.0, killed=True)
        assert (app.start_failure is not None, app.record.failed) == (most == 1, False)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_policy_sees_at_a_stop_whether_a_client_waits_to_be_accepted(
    brain: Brain, tmp_path: Path, family: socket.AddressFamily
) -> None:
    where: Any = str(tmp_path / "s") if family == socket.AF_UNIX else ("127.0.0.1", 0)
    with app_of_one_worker(State.READY) as (app, _, _), socket.socket(family) as listener, socket.socket(family) as client:
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


@pytest.mark.parametrize("command", ["scale", "restart"])
def test_a_worker_that_leaves_accepts_no_more_when_the_command_returns(brain: Brain, command: str) -> None:
    with app_of_one_worker(State.DRAINING) as (app, old, leaves):
        app.wanted = app.running = True
        goal = operations.scaled(brain, (), None) if command == "scale" else operations.replaced(brain, {1}, {7})
        app.workers[8] = WorkerHandle(WorkerId("api", app.generation, 1, 8), held=False, born_at=9.0, pid=os.getpid(), state=State.READY)
        old.leaving_at = 10.0
        assert goal(app, 10.5) is None
        leaves()
        assert goal(app, 10.5) == operations.Outcome(True, f"{command.removesuffix('e')}ed")


def test_that_an_app_is_over_is_written_down_before_its_port_is_given_back(
    brain: Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is killed in between leaves a start that has failed, and not one that goes on without a port."""
    with app_of_one_worker(State.STOPPED) as (app, _, _), socket.create_server(("127.0.0.1", 0)) as sock:
        app.workers.clear()
        app.running = app.starting = True
        app.listeners[0] = Listener(0, parse_bind(":80"), sock)
        known: list[object] = []
        monkeypatch.setattr(brain.listening, "close", lambda *_: known.append(app.ledger.read()["running"]))
        brain.close(app)
        assert known == [False]


def test_an_app_whose_end_failed_halfway_is_ended_in_the_next_round(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("of no kind that anybody expects")

    with app_of_one_worker(State.STOPPED) as (app, _, _):
        app.workers.clear()
        app.wanted = app.running = app.starting = False
        with monkeypatch.context() as patch:
            patch.setattr(brain.dispatchers, "close", fail)
            with pytest.raises(ValueError, match="expects"):
                brain.close(app)
        closed: list[object] = []
        brain.on_closed = closed.append
        brain._begin_round(app)
        assert closed == [app]


@pytest.mark.parametrize(("config", "is_shown"), [({"restart": RestartConfig(policy="never")}, True), ({"cron": "* * * * *"}, True), ({}, False)])
def test_how_the_last_one_has_ended_is_shown_when_the_record_is_cleared_since_nobody_is_wanted(
    brain: Brain, config: dict[str, Any], is_shown: bool
) -> None:
    with app_of_one_worker(State.READY) as (app, _, _):
        generation = app.generations[1]
        generation.resolved = replace(generation.resolved, config=replace(app.config, **config))
        app.finished_slots, app.last_exits, app.failure = {1}, {1: {"code": 0 if not config else 3}}, Failure("exited with code 3")
        brain._perform(app, ClearRecord(), 1.0)
        assert (app.failure is not None) is is_shown


def test_what_a_restart_or_roll_back_could_not_write_down_is_noted_and_written_when_it_can_be(
    brain: Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "SAVE_AGAIN", 0.0)
    tries: list[int] = []

    def save() -> None:
        tries.append(1)
        if len(tries) % 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    brain.save = save
    Desk(brain, Sampler(), "", 0.0)
    brain._save_soon()
    wait_until(lambda: brain.loop.turn(0.01) or len(tries) == 2, what="another try")
    with app_of_one_worker(State.READY) as (app, _, _):
        app.generation, app.previous = 2, 1
        brain.reloads.roll_back(app, 1, "it was given up")
        wait_until(lambda: brain.loop.turn(0.01) or len(tries) == 4, what="another try")


def test_a_failure_is_over_when_the_only_worker_was_stopped_and_nothing_is_counted_any_more(brain: Brain) -> None:
    with app_of_one_worker(State.READY) as (app, _, _):
        app.running, app.closed, app.workers, app.stopped_slots = True, False, {}, {1}
        app.failure = Failure("gave up after 10 restarts")
        brain._note_progress(app, 1.0)
        assert app.failure is None


def test_who_leaves_is_given_the_time_in_which_nobody_ran(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    with app_of_one_worker(State.DRAINING) as (app, worker, _):
        brain.apps[app.name] = app
        told: list[str] = []
        monkeypatch.setattr(brain.workers, "tell_time_to_drain", lambda app: told.append(app.name))
        before, soak = worker.since, app.soak_until
        brain.loop.on_stood_still(40.0)
        assert (worker.since, app.soak_until, told) == (before + 40, soak + 40, [app.name])

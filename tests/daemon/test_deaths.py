"""What follows from a worker's death, in which order. Real loop, no process; whole trees are in tests/system."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, LogsConfig
from pyworker.daemon import deaths, diagnosis
from pyworker.daemon.app import Failure
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.deaths import BURIAL_DELAY, LOOK_AT_SESSION, Deaths
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.loop import READ, Loop
from pyworker.daemon.shortage import Shortage
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR, Record, RestartConfig
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.logs import LogRecord, format_record, stamp
from pyworker.protocol.scoreboard import AppF
from pyworker.unix import process
from pyworker.unix.fds import socketpair
from pyworker.unix.process import ExitStatus
from tests.support.brain import app_of_one_worker
from tests.support.brain import brain as brain
from tests.support.channels import ends as ends
from tests.support.wait import wait_until


@pytest.mark.parametrize("kind", ["asgi", "command"])
@pytest.mark.parametrize("status", [ExitStatus(None, 9), ExitStatus(None, 15), ExitStatus(1, None)])
def test_the_successor_is_asked_for_before_the_dead_is_buried_and_after_the_end_of_what_it_has_left_behind(
    status: ExitStatus, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    now = time.monotonic()
    loop = Loop(clock=lambda: now)  # on which no time passes in a turn, however long it takes
    workers = SimpleNamespace(kick_siblings=lambda app, handle: done.append("kick"), on_message=lambda app, handle: None)
    brain: Any = SimpleNamespace(
        loop=loop, workers=workers, store={}, poke=lambda app: loop.call_soon(lambda: done.append("successor")),
        when_written=lambda app, pipes, then: loop.call_later(BURIAL_DELAY, lambda: (done.append("its last words"), then())),
    )  # fmt: skip
    monkeypatch.setattr(Deaths, "_bury", lambda self, app, handle, status: done.append("bury"))
    # it may hold the port that a command's successor binds
    monkeypatch.setattr(process, "kill_group", lambda pid, number: done.append(f"end of group {pid}"))
    # ... that of a web app it cannot hold, and all that the machine runs takes a while to look at
    monkeypatch.setattr(process, "sessions", lambda: done.append("look at all") or {})
    deaths = Deaths(brain)
    handle: Any = SimpleNamespace(
        id=WorkerId("api", 1, 1, 7), pid=42, pid_is_reserved=True, status=None, is_alive=True, state=State.READY, failure=None,
        ready_at=now - 60, ended_at=now, happen=lambda happening, now: None,
    )  # fmt: skip
    app: Any = SimpleNamespace(
        kind=kind, generation=1, running=True, starting=False, is_job=False, workers={7: handle}, record=Record(3, (1.0,), 101.0),
        delete_when_closed=False,
        restart_config=RestartConfig("always", 10.0, 10, 60.0, 60.0),
    )  # fmt: skip
    deaths.ended(app, handle, status)
    assert (app.workers, app.record) == ({}, CLEAR)
    for _ in range(5):
        loop.turn(0)
        now += BURIAL_DELAY
    first = ["end of group 42", *(["look at all"] if kind == "command" else [])]
    assert done == [*first, "successor", "kick", *(["its last words"] if status.signal != 9 else []), "bury"]


def test_a_failure_in_its_last_words_does_not_leave_a_dead_worker_as_one_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    finished: list[ExitStatus] = []
    monkeypatch.setattr(Deaths, "finish", lambda self, app, handle, status, *_: finished.append(status))
    monkeypatch.setattr(deaths, "AGAIN", 0.0)
    loop = Loop()
    brain: Any = SimpleNamespace(loop=loop, workers=SimpleNamespace(on_message=fail))
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, pid=42, state=State.READY, ready_at=1.0)
    app: Any = SimpleNamespace(kind="asgi", delete_when_closed=False)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        Deaths(brain).ended(app, handle, ExitStatus(0, None))
    wait_until(lambda: loop.turn(0.01) or finished, what="its end")
    assert finished == [ExitStatus(0, None)]


@pytest.mark.parametrize("step", ["_has_spoken", "_is_explained_first", "_finish_stopped", "_finish", "_shortage"])
def test_a_failure_on_the_way_to_its_end_does_not_leave_a_dead_worker_as_one_that_lives(
    brain: Brain, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fails = iter([True])
    real = getattr(Deaths, step)

    def fail(*args: Any) -> Any:
        if next(fails, False):
            raise ValueError("of no kind that anybody expects")
        return real(*args)

    monkeypatch.setattr(deaths, "AGAIN", 0.0)
    monkeypatch.setattr(Deaths, step, fail)
    monkeypatch.setattr(process, "kill_session", lambda pid, number: None)
    with app_of_one_worker(State.STOPPING) as (app, worker, _):
        worker.pid = 0
        with pytest.raises(ValueError, match="expects"):
            brain.deaths.ended(app, worker, process.UNKNOWN)
        wait_until(lambda: brain.loop.turn(0.01) or not app.workers, what="its end")
        assert worker.state is State.STOPPED


def test_an_end_whose_cause_cannot_be_found_is_told_with_how_it_was(
    brain: Brain, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Any:
        raise ValueError("Exceeds the limit (4300 digits) for integer string conversion")

    monkeypatch.setattr(diagnosis, "of_worker", fail)
    monkeypatch.setattr(diagnosis, "of_template", fail)
    with app_of_one_worker(State.READY) as (app, worker, _):
        brain.apps["api"] = app
        failure = brain.deaths._tell(app, worker, ExitStatus(None, 11), Shortage())
        app.templates[1] = template = TemplateHandle("api", 1, 0.0)
        app.starting, app.running = False, True
        brain.templates.gone(app, template, ExitStatus(3, None))
    told = [(event.type, event.data["reason"]) for event in brain.events.recent("api") if "reason" in event.data]
    assert told == [("worker_exited", "ended: killed by signal 11 (SEGV)"), ("template_exited", "ended: with code 3")]
    assert (failure.message, app.templates, app.record.tries) == ("ended: killed by signal 11 (SEGV)", {}, 1)
    assert "4300 digits" in capfd.readouterr().err


def test_who_is_not_buried_yet_is_when_the_app_is_closed_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    board = Board.create("api")
    board.allocate(WorkerId("api", 1, 1, 7))
    workers = SimpleNamespace(kick_siblings=lambda app, handle: None, on_message=lambda app, handle: None)
    brain: Any = SimpleNamespace(loop=loop, workers=workers, store={}, poke=lambda app: None)
    deaths = Deaths(brain)
    now = time.monotonic()
    handle: Any = SimpleNamespace(
        id=WorkerId("api", 1, 1, 7), pid=0, shortage=None, pid_is_reserved=False, status=None, is_alive=True, state=State.READY, failure=None,
        ready_at=now - 60, ended_at=now, happen=lambda happening, now: None,
    )  # fmt: skip
    app: Any = SimpleNamespace(
        kind="asgi", generation=1, running=True, starting=False, is_job=False, workers={7: handle}, board=board, slot_restarts={},
        delete_when_closed=False,
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
    wait_until(lambda: loop.turn(0.01) or later, what="a moment")
    assert app.slot_restarts == {1: 1}


def test_an_end_that_could_not_be_gone_through_is_gone_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(report=lambda what: None)
    workers = SimpleNamespace(kick_siblings=lambda app, handle: kicked.append(handle.state))
    brain: Any = SimpleNamespace(loop=loop, workers=workers, store={}, poke=lambda app: poked.append(app.name))
    poked: list[str] = []
    kicked: list[State] = []
    befores: list[State] = []

    def release(self: Deaths, app: Any, handle: Any) -> None:
        if not befores:
            befores.append(State.STARTING)
            raise ValueError("of no kind that anybody expects")
        del app.workers[handle.id.serial]

    monkeypatch.setattr(deaths, "AGAIN", 0.0)
    monkeypatch.setattr(Deaths, "_release", release)
    monkeypatch.setattr(Deaths, "_died", lambda self, app, handle, status, before, shortage: befores.append(before))
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0)
    app: Any = SimpleNamespace(name="api", workers={7: handle}, board=Board.create("api"), generation=1)
    with pytest.raises(ValueError, match="expects"):
        Deaths(brain).finish(app, handle, ExitStatus(1, None))
    wait_until(lambda: loop.turn(0.01) or poked, what="another try")
    assert (app.workers, befores) == ({}, [State.STARTING, State.STARTING])
    assert kicked == [State.STOPPED]  # it may have been woken for a connection
    app.board.close()
    loop.close()


def a_death(
    monkeypatch: pytest.MonkeyPatch, status: ExitStatus, policy: Any = "always", before: State = State.READY, **fields: Any
) -> Any:
    """One worker that was ready and has ended by itself; return its app."""
    failure = Failure("it said why")
    monkeypatch.setattr(Deaths, "_tell", lambda self, app, handle, status, shortage: failure)
    brain: Any = SimpleNamespace(loop=Loop(lambda: 100.0), emit=lambda *args, **data: None, emit_failed=lambda *args: None)
    handle: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 7), lost=False, pid=42, ready_at=99.0, ended_at=100.0)
    handle.failure = None
    vars(handle).update(fields.pop("worker", {}))
    board = Board.create("api")
    app: Any = SimpleNamespace(
        name="api", generation=1, target=None, previous=None, running=True, starting=False, restored=False, is_job=False,
        kind="script", workers={}, board=board, slot_restarts={}, finished_slots=set(), failure=None, record=CLEAR, generations={1: None},
        restart_config=RestartConfig(policy, 10.0, 10, 60.0, 60.0), target_failure=None, start_failure=None, soak_deaths=0,
    )  # fmt: skip
    vars(app).update(fields)
    monkeypatch.setattr(deaths, "is_direct", lambda generation, handle: app.kind == "command")
    Deaths(brain)._died(app, handle, status, before, Shortage())
    app.restarts = (board.app(AppF.RESTARTS), app.slot_restarts)  # replaced, ended by themselves
    board.close()
    brain.loop.close()
    return app


NEVER_READY: dict[str, Any] = {"ready_at": None}
NEVER_CAME: dict[str, Any] = {"ready_at": None, "pid": 0}
SERVES: Any = SimpleNamespace(id=WorkerId("api", 1, 2, 8), ready_at=50.0)
OF_BEFORE: Any = SimpleNamespace(id=WorkerId("api", 0, 2, 8), ready_at=50.0)
PREDECESSOR: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 3), ready_at=50.0, state=State.READY)
SUCCESSOR: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 9), ready_at=99.5, state=State.READY)
COMES_UP: Any = SimpleNamespace(id=WorkerId("api", 1, 2, 8), ready_at=None)
FAILED, REFUSED, KILLED, DONE = ExitStatus(1, None), ExitStatus(78, None), ExitStatus(None, 9), ExitStatus(0, None)
TRIED = Record(3, (97.0, 98.0, 99.0), 101.0)


@pytest.mark.parametrize(
    ("follows", "status", "case"),
    [
        ("counted", FAILED, {}),
        ("the reload fails", FAILED, {"generation": 0, "target": 1}),
        ("nothing", FAILED, {"generation": 2}),
        ("nothing", FAILED, {"running": False}),
        ("nothing", FAILED, {"before": State.DRAINING}),  # it was to leave
        ("counted", KILLED, {"before": State.KILLED, "worker": NEVER_READY}),  # for that it did not get ready
        ("cleared", FAILED, {"record": TRIED, "worker": {"ready_at": 50.0}}),  # it had proved stable
        ("counted", FAILED, {"record": TRIED}),
        ("permanent", REFUSED, {"worker": {"ready_at": 50.0}}),
        ("permanent", REFUSED, {"policy": "never"}),
        ("counted", REFUSED, {"worker": NEVER_READY | {"failure": object()}}),  # what it was to be started by had gone
        ("permanent", REFUSED, {"worker": NEVER_READY | {"failure": object()}, "starting": True, "workers": {8: SERVES}}),
        ("finished", REFUSED, {"policy": "never", "is_job": True}),
        ("finished", DONE, {"policy": "on-failure"}),
        ("counted", FAILED, {"policy": "on-failure"}),
        # a first start
        ("the start fails", FAILED, {"starting": True}),
        ("the start fails", FAILED, {"starting": True, "worker": NEVER_CAME}),
        ("the start fails", FAILED, {"starting": True, "workers": {8: OF_BEFORE}}),
        ("the start fails", FAILED, {"starting": True, "workers": {8: COMES_UP}}),
        ("counted", FAILED, {"starting": True, "workers": {8: SERVES, 9: COMES_UP}}),
        ("the start fails", DONE, {"starting": True, "worker": NEVER_READY}),
        ("counted", DONE, {"starting": True}),
        ("finished", DONE, {"starting": True, "worker": NEVER_READY, "policy": "on-failure"}),
        ("counted", KILLED, {"starting": True}),  # by somebody: that says nothing of the code
        ("the start fails", KILLED, {"starting": True, "record": TRIED}),
        ("the start fails", KILLED, {"starting": True, "policy": "never"}),
        ("the start fails", KILLED, {"starting": True, "is_job": True}),
        ("the start fails", KILLED, {"starting": True, "worker": {"failure": object()}}),  # by us
        # one that never came: no process or descriptor was to be had
        ("counted", process.UNKNOWN, {"starting": True, "restored": True, "worker": NEVER_CAME}),
        ("nothing", process.UNKNOWN, {"starting": True, "restored": True, "worker": NEVER_CAME, "record": TRIED}),
        ("the start fails", process.UNKNOWN, {"starting": True, "restored": True, "worker": NEVER_READY}),
        ("counted", process.UNKNOWN, {"restored": True, "worker": NEVER_CAME, "record": TRIED}),
        ("nothing", process.UNKNOWN, {"worker": NEVER_CAME | {"lost": True}, "record": TRIED}),  # with others
        ("counted", process.UNKNOWN, {"worker": NEVER_CAME | {"lost": True}}),
        ("counted", process.UNKNOWN, {"worker": NEVER_READY | {"lost": True}, "record": TRIED}),
        ("finished", process.UNKNOWN, {"worker": NEVER_CAME | {"lost": True}, "policy": "never", "kind": "command"}),  # it may have run
        ("counted", process.UNKNOWN, {"worker": NEVER_CAME | {"lost": True}, "policy": "never"}),
        ("counted", process.UNKNOWN, {"worker": NEVER_CAME | {"lost": True}, "policy": "never", "kind": "asgi", "starting": True}),
        # it was to replace one that serves on
        ("counted", process.UNKNOWN, {"worker": NEVER_CAME, "policy": "never", "workers": {3: PREDECESSOR}}),
        ("counted", DONE, {"policy": "on-failure", "workers": {3: PREDECESSOR}}),
        ("finished", DONE, {"policy": "on-failure", "workers": {9: SUCCESSOR}}),
    ],
)  # fmt: skip
def test_what_follows_from_a_death(
    monkeypatch: pytest.MonkeyPatch, follows: str, status: ExitStatus, case: dict[str, Any]
) -> None:
    before = case.get("record", CLEAR)
    app = a_death(monkeypatch, status, **case)
    found = {
        "the reload fails": app.target_failure is not None,
        "the start fails": app.start_failure is not None,
        "finished": app.finished_slots == {1},
        "permanent": app.record.permanent,
        "counted": app.record.tries == before.tries + 1 and not app.record.permanent,
        "cleared": bool(before.tries) and app.record.tries == 0,
    }
    assert [name for name, is_so in found.items() if is_so] == ([] if follows == "nothing" else [follows])


@pytest.mark.parametrize(
    ("at_once", "status", "case"),
    [
        (True, FAILED, {}),
        (True, KILLED, {"before": State.UNHEALTHY}),
        (True, DONE, {}),
        (False, FAILED, {"before": State.DRAINING}),
        (False, FAILED, {"before": State.HELD}),
        (False, FAILED, {"generation": 2}),  # it is of the one before
        (False, FAILED, {"running": False}),
        (False, FAILED, {"starting": True}),
        (False, FAILED, {"is_job": True}),
        (False, REFUSED, {}),
        (False, DONE, {"policy": "on-failure"}),
        (False, FAILED, {"ready_at": 95.0}),  # it counts against the limit first
        (False, FAILED, {"ready_at": None}),
    ],
)
def test_only_one_that_had_proved_stable_and_of_an_app_that_goes_on_is_replaced_before_its_end_is_told(
    at_once: bool, status: ExitStatus, case: dict[str, Any]
) -> None:
    handle: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 7), ready_at=case.get("ready_at", 50.0), ended_at=100.0)
    app: Any = SimpleNamespace(
        generation=case.get("generation", 1), running=case.get("running", True), starting=case.get("starting", False),
        is_job=case.get("is_job", False), restart_config=RestartConfig(case.get("policy", "always"), 10.0, 10, 60.0, 60.0),
    )  # fmt: skip
    brain: Any = SimpleNamespace(loop=Loop())
    before = case.get("before", State.READY)
    assert Deaths(brain)._is_replaced_at_once(app, handle, status, before) is at_once
    brain.loop.close()


@pytest.mark.parametrize(("age", "why"), [(1.0, "exited with code 3"), (9.0, "the database is gone")])
def test_what_another_process_with_its_pid_has_printed_is_not_why_a_worker_ended(tmp_path: Path, age: float, why: str) -> None:
    """In a container each start has the same pids, and the log may be the same."""
    log = tmp_path / "api.log"
    log.write_bytes(format_record(LogRecord(stamp(time.time() - 5), "api", 1, 42, "err", False, b"the database is gone"), "text"))
    told: list[Any] = []
    brain: Any = SimpleNamespace(
        loop=Loop(lambda: 100.0), home="", emit=lambda app, kind, worker, **data: told.append((kind, data["code"], data["reason"])),
        fail=lambda *words: Failure(*words),
    )
    config = AppConfig("api", command=("serve",), logs=LogsConfig(file=str(log)))
    app: Any = SimpleNamespace(
        name="api", kind="command", want=1, is_job=False, config=config, workers={}, last_exits={}, generations={},
        restart_config=RestartConfig("always", 10.0, 10, 60.0, 60.0),
    )
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=100.0 - age, started_at=time.time() - age, pid=42, ready_at=99.0)
    assert Deaths(brain)._tell(app, handle, ExitStatus(3, None), Shortage()).message.startswith(why)
    assert told == [("worker_exited", 3, app.last_exits[1]["reason"])]
    assert told[0][2].startswith(why)
    brain.loop.close()


@pytest.mark.parametrize(
    ("why", "noted", "status", "case"),
    [
        ("exited with code 3", True, ExitStatus(3, None), {}),
        ("ended by itself with code 0", True, DONE, {}),
        ("", True, DONE, {"policy": "on-failure"}),  # it has finished
        ("ended by itself with code 0", True, DONE, {"policy": "on-failure", "kind": "asgi"}),
        ("", False, DONE, {"is_job": True}),
        ("exited with code 3", True, ExitStatus(3, None), {"is_job": True, "policy": "on-failure"}),
    ],
)
def test_of_what_has_done_its_work_there_is_nothing_to_explain(
    why: str, noted: bool, status: ExitStatus, case: dict[str, Any]
) -> None:
    reasons: list[str] = []
    brain: Any = SimpleNamespace(
        loop=Loop(lambda: 100.0), home="", emit=lambda *_, **data: reasons.append(data["reason"]), fail=lambda *words: Failure(*words)
    )
    app: Any = SimpleNamespace(
        name="api", kind=case.get("kind", "command"), want=1, is_job=case.get("is_job", False), workers={}, last_exits={},
        config=AppConfig("api", command=("serve",), logs=LogsConfig(file="/dev/null")), generations={},
        restart_config=RestartConfig(case.get("policy", "always"), 10.0, 10, 60.0, 60.0),
    )
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=99.0, pid=42, ready_at=99.5)
    Deaths(brain)._tell(app, handle, status, Shortage())
    assert reasons[0].startswith(why)
    assert bool(reasons[0]) == bool(why)
    assert ({*app.last_exits} == {1}) is noted
    brain.loop.close()


@pytest.mark.parametrize(
    ("status", "reaped", "by_number"),
    [(ExitStatus(1, None), False, True), (ExitStatus(1, None), True, False), (process.UNKNOWN, False, False)],
)
def test_what_a_worker_has_left_behind_is_killed_by_its_number_only_while_that_is_reserved(
    monkeypatch: pytest.MonkeyPatch, status: ExitStatus, reaped: bool, by_number: bool
) -> None:
    killed: list[tuple[str, int]] = []
    monkeypatch.setattr(process, "kill_group", lambda pid, number: killed.append(("number", pid)))
    monkeypatch.setattr(process, "sessions", dict)
    monkeypatch.setattr(process, "kill_group_of", lambda pidfd: killed.append(("pidfd", pidfd)))
    brain: Any = SimpleNamespace(loop=Loop(), store={"pid.api.1.1.7": 5})
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, pid=42, status=status, reaped=reaped)
    Deaths(brain)._end_session(handle)
    assert killed == [("number", 42) if by_number else ("pidfd", 5)]
    brain.loop.close()


def test_what_has_left_the_group_of_a_worker_is_killed_as_its_session_and_looked_for_once_for_those_that_end_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, looked, killed = [100.0], list[float](), list[int]()
    loop = Loop(lambda: now[0])

    def look() -> dict[int, set[int]]:
        looked.append(now[0])
        return {42: {50}}

    monkeypatch.setattr(process, "sessions", look)
    monkeypatch.setattr(process, "kill_group", lambda pid, number: None)
    monkeypatch.setattr(process, "kill_session", lambda pid, number: killed.append(pid))
    brain: Any = SimpleNamespace(loop=loop, store={})
    deaths = Deaths(brain)
    for pid, ended_at, at in ((42, 100.0, 100.1), (43, 100.0, 100.2), (42, 100.0, 100.2), (44, 100.2, 100.3)):
        handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, pid=pid, status=ExitStatus(1, None))
        handle.ended_at, now[0] = ended_at, at
        deaths._end_session(handle)
    assert (looked, killed) == ([100.1, 100.3], [42, 42])
    loop.close()


@pytest.mark.parametrize(("code", "why"), [(0, None), (1, "it said why"), (78, "it said why")])
def test_a_job_that_has_ended_shows_how_its_last_run_ended(
    monkeypatch: pytest.MonkeyPatch, code: int, why: str | None
) -> None:
    ended = a_death(monkeypatch, ExitStatus(code, None), "never", is_job=True, failure=Failure("the run before"))
    assert ended.finished_slots == {1}
    assert (ended.failure.message if ended.failure else None) == why


@pytest.mark.parametrize(("code", "why"), [(0, None), (1, "it said why")])
def test_what_is_never_restarted_shows_why_it_has_not_ended_with_code_0(
    monkeypatch: pytest.MonkeyPatch, code: int, why: str | None
) -> None:
    ended = a_death(monkeypatch, ExitStatus(code, None), "never")
    assert ended.finished_slots == {1}
    assert (ended.failure.message if ended.failure else None) == why


def test_who_asks_not_to_be_restarted_has_ended_by_itself_and_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = a_death(monkeypatch, ExitStatus(1, None))
    assert (failed.restarts, failed.failure.message) == ((1, {1: 1}), "it said why")
    refused = a_death(monkeypatch, ExitStatus(78, None))
    assert refused.restarts == (0, {1: 1})
    assert refused.record.permanent
    assert refused.failure.message == "it asked not to be restarted (exit code 78): it said why"


def test_why_nothing_is_tried_any_more_is_not_hidden_by_who_dies_afterwards() -> None:
    brain: Any = SimpleNamespace(loop=Loop(), emit_failed=lambda *args: None)
    app: Any = SimpleNamespace(
        name="api", restart_config=RestartConfig("always", 10.0, 10, 60.0, 60.0), record=CLEAR, failure=None
    )
    deaths = Deaths(brain)
    gone = "cannot run the interpreter /srv/.venv/bin/python: No such file or directory"
    deaths.unstable(app, Failure(gone, "", "", ""), 1.0, permanent=True)
    deaths.unstable(app, Failure("killed by SIGKILL from outside", "", "", ""), 2.0, permanent=False)
    assert app.failure.message == f"it cannot be started as it is: {gone}"
    assert (app.record.tries, len(app.record.deaths)) == (2, 1)


def test_an_end_is_gone_through_once_and_after_the_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    workers = SimpleNamespace(on_message=lambda app, handle: done.append("its last words"))
    brain: Any = SimpleNamespace(loop=Loop(lambda: 100.0), workers=workers)
    monkeypatch.setattr(Deaths, "finish", lambda self, app, handle, status: done.append(status))
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, state=State.DRAINING, ready_at=1.0, pid=42)
    app: Any = SimpleNamespace(kind="asgi", delete_when_closed=False)
    ends = Deaths(brain)
    for status in (ExitStatus(3, None), process.UNKNOWN):  # by its pidfd, and then by the guardian's word, say
        ends.ended(app, handle, status)
    assert done == ["its last words", ExitStatus(3, None)]
    assert (handle.status, handle.ended_at) == (ExitStatus(3, None), 100.0)
    brain.loop.close()


@pytest.mark.parametrize(
    ("kind", "state", "reaped", "pid", "ends_at_once"),
    [
        ("command", State.STOPPING, False, 42, False),
        ("script", State.STOPPING, False, 42, False),
        ("asgi", State.STOPPING, False, 42, True),
        ("command", State.KILLED, False, 42, True),  # ... and so are those
        ("command", State.STOPPING, True, 42, False),
        ("command", State.STOPPING, True, 44, True),  # its number, and so its session's, may be another's
        ("command", State.STOPPING, False, 43, True),  # it has left nobody
    ],
)
def test_a_command_that_was_stopped_has_ended_when_those_of_its_session_have_and_they_are_told_once(
    monkeypatch: pytest.MonkeyPatch, kind: str, state: State, reaped: bool, pid: int, ends_at_once: bool
) -> None:
    now, told, finished = [100.0], list[tuple[int, int]](), list[int]()
    sessions = {42, 44}
    loop = Loop(lambda: now[0])
    brain: Any = SimpleNamespace(loop=loop, workers=SimpleNamespace(on_message=lambda app, handle: None))
    monkeypatch.setattr(process, "sessions_with_others", lambda: set(sessions))
    monkeypatch.setattr(process, "kill_session", lambda pid, number: told.append((pid, number)))

    def tell_rest(pid: int, number: int, alive_at: float) -> bool:
        told.extend([(pid, number)] if number else ())
        return pid == 42 and alive_at == 8.5

    monkeypatch.setattr(process, "kill_rest_of_session", tell_rest)
    monkeypatch.setattr(Deaths, "finish", lambda self, app, handle, status: finished.append(handle.pid))
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, state=state, ready_at=1.0, pid=pid)
    handle.reaped, handle.alive_at = reaped, 8.5
    app: Any = SimpleNamespace(kind=kind, delete_when_closed=False, stop_config=lambda number: SimpleNamespace(signal="INT"))
    Deaths(brain).ended(app, handle, ExitStatus(None, signal.SIGINT))
    assert (told, finished) == (([], [pid]) if ends_at_once else ([(42, signal.SIGINT)], []))
    for _ in range(2):
        now[0] += 2 * LOOK_AT_SESSION
        loop.turn(0.0)
    assert finished == ([pid] if ends_at_once else [])
    sessions.clear()
    now[0] += 2 * LOOK_AT_SESSION
    loop.turn(0.0)
    assert (finished, len(told)) == ([pid], 0 if ends_at_once else 1)
    loop.close()


def test_a_pid_is_let_go_when_all_is_done_that_it_is_needed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    pidfd = os.pidfd_open(os.getpid())
    ours, theirs = socketpair()
    copy = ours.dup()  # the store's
    store: Any = SimpleNamespace(
        get=lambda name: pidfd if name.startswith("pid.") and not any("close" in step for step in done) else None,
        remove=lambda *names: done.append(f"close {' '.join(name.partition('.')[0] for name in names)}"),
        forget=lambda *names: done.append(f"forget {' '.join(name.partition('.')[0] for name in names)}"),
    )
    loop = Loop()
    number = ours.fileno()
    for fd in (pidfd, number):
        loop.add(fd, READ, lambda _: None)
    brain: Any = SimpleNamespace(
        loop=loop, store=store, messages=SimpleNamespace(forget=lambda app, handle: done.append("forget its messages")),
        templates=SimpleNamespace(end_left_behind=lambda app, number: done.append(f"left behind of {number}")),
        pids=SimpleNamespace(let_go=lambda pid: done.append(f"let go {pid}")),
    )  # fmt: skip
    monkeypatch.setattr(process, "kill_group", lambda pid, number: done.append(f"end of group {pid}"))
    monkeypatch.setattr(process, "sessions", dict)
    health = SimpleNamespace(stop=lambda: done.append("end of its checks"))
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, pid=42, status=ExitStatus(1, None), ctl=ours)
    handle.health = health  # type: ignore[assignment]
    app: Any = SimpleNamespace(board=Board.create("api"), generations={}, workers={7: handle})
    app.board.allocate(handle.id)
    Deaths(brain)._release(app, handle)
    # the logger has not read the pipes to their end: the guardian keeps those
    closed = ["forget out err", "forget its messages", "close ctl pid ipc"]  # at once: a daemon may be killed in between
    assert done == ["end of its checks", "end of group 42", *closed, "left behind of 1", "let go 42"]
    assert (app.workers, app.board.row_of(7), handle.ctl, ours.fileno()) == ({}, 0, None, -1)
    Deaths(brain)._release(app, handle)  # a burial that is done again: the number may be another's by now
    assert (done.count("end of group 42"), done.count("let go 42")) == (1, 1)
    assert (loop.watches(pidfd), loop.watches(number)) == (False, False)
    with pytest.raises(BrokenPipeError):  # also while somebody has a copy
        theirs.send(b"x")
    app.board.close()
    loop.close()
    copy.close()
    theirs.close()
    os.close(pidfd)


@pytest.mark.parametrize("refused", ["of_death", "_release", "_tell"])
def test_a_burial_that_fails_is_done_again_and_what_is_counted_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    loop = Loop(report=lambda what: None)
    done: list[str] = []

    def step(name: str) -> Any:
        def do(*_: object) -> str:
            done.append(name)
            if name == refused and done.count(name) == 1:
                raise ValueError("of no kind that anybody expects")
            return name

        return do

    for name in ("_release", "_tell", "_count_restart"):
        monkeypatch.setattr(Deaths, name, step(name))
    monkeypatch.setattr(deaths, "AGAIN", 0.0)
    brain: Any = SimpleNamespace(loop=loop, poke=lambda app: done.append("poke"))
    ends = Deaths(brain)
    monkeypatch.setattr(ends, "shortages", SimpleNamespace(of_death=step("of_death")))
    handle = WorkerHandle(WorkerId("api", 1, 1, 7), held=False, born_at=0.0, pid=42)
    app: Any = object()
    ends._unburied[id(handle)] = app, handle, FAILED
    with pytest.raises(ValueError, match="expects"):
        ends._bury(app, handle, FAILED)
    wait_until(lambda: loop.turn(0.01) or "poke" in done, what="another try")
    ends._bury(app, handle, FAILED)
    all_of_it = ["of_death", "_release", "_tell"]
    again = all_of_it if refused == "of_death" else all_of_it[1:]  # the first answer counts, a kill is one death's cause
    assert done == [*all_of_it[: all_of_it.index(refused) + 1], *again, "_count_restart", "poke"]
    assert ends._unburied == {}
    loop.close()


def test_that_an_app_is_given_up_is_said_once_and_before_that_each_try() -> None:
    said: list[Any] = []
    brain: Any = SimpleNamespace(
        loop=Loop(), emit=lambda app, kind, slot, **data: said.append((kind, data["try"], data["max"])),
        emit_failed=lambda name, failure, *_: said.append((name, failure.message)),
    )  # fmt: skip
    app: Any = SimpleNamespace(name="api", restart_config=RestartConfig("always", 10.0, 2, 60.0, 60.0), record=CLEAR, failure=None)
    ends = Deaths(brain)
    for now in (1.0, 2.0, 3.0):
        ends.unstable(app, Failure(f"it ended at {now}"), now, permanent=False)
    why = "gave up after 2 restarts in 1 s: it ended at"
    assert said == [("worker_backoff", 1, 2), ("api", f"{why} 2.0")]
    assert app.failure.message == f"{why} 3.0"
    ends.unstable(app, Failure("it asked for it"), 4.0, permanent=True, asked=True)
    assert len(said) == 2
    brain.loop.close()



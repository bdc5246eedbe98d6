"""What a command that waits is told, by what has become of the app: done, lost, or nothing yet; and when. No process, no loop."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import RestartConfig
from pyworker.daemon import operations as o
from pyworker.daemon.app import Failure
from pyworker.daemon.events import EventLog
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR, Record
from tests.support.brain import app_of_one_worker

BROKEN = Failure("it is broken")
REFUSED = Failure("the import failed")
GAVE_UP = Record(10, (1.0,), 60.0, failed=True)
NEVER = Record(1, permanent=True)


def an_app(**changes: Any) -> Any:
    """One of generation 1 that runs and is well, but for these."""
    base: dict[str, Any] = {
        "name": "api", "wanted": True, "running": True, "starting": False, "closed": False,
        "is_job": False, "generation": 1, "target": None, "previous": None, "restart_to": None, "reload_from": None,
        "refused": {}, "record": CLEAR, "failure": None, "blocked": None, "restart_config": RestartConfig(), "want": 1,
        "workers": {}, "stopped_slots": frozenset(), "delete_when_closed": False, "slots": lambda: [1], "is_open": lambda now: True,
        "sick": lambda slots=None: None, "has_been_checked": lambda slots=None: True,
    }  # fmt: skip
    return SimpleNamespace(**base | changes)


def a_worker(serial: int, generation: int = 1, slot: int = 1, state: State = State.READY, verdict: str = "ok") -> Any:
    health = SimpleNamespace(health=SimpleNamespace(verdict=verdict, reason="it said no"))
    identity = SimpleNamespace(serial=serial, generation=generation, slot=slot)
    return SimpleNamespace(id=identity, state=state, is_alive=state is not State.STOPPED, health=health)


def told(goal: o.Goal, app: Any) -> str:
    """Return how the wait ends, and why; "" while it goes on."""
    outcome = goal(app, 5.0)
    if outcome is None:
        return ""
    assert outcome.ok is (outcome.action not in {"failed", "unhealthy"})  # it is what the command exits with
    why = outcome.failure.message if outcome.failure is not None else ""
    return f"{outcome.action}: {why}" if why else outcome.action


def a_brain(*, old_ones_accept: bool = False, **apps: Any) -> Any:
    return SimpleNamespace(may_old_ones_accept=lambda app, now: old_ones_accept, apps=apps)


def shut(now: float) -> bool:
    return False


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ({}, "started"),
        ({"starting": True}, ""),
        ({"is_open": shut}, ""),
        ({"is_open": shut, "is_job": True}, "started"),  # nothing of it runs before its time
        ({"is_open": shut, "slots": list}, "started"),  # scaled to 0, or it has done its work
        ({"wanted": False}, "failed: it was stopped by another command"),
        ({"wanted": False, "running": False}, "failed: it was stopped by another command"),
        ({"wanted": False, "delete_when_closed": True}, "failed: it was deleted by another command"),
        ({"generation": 2}, "failed: another command came first"),
        ({"generation": 0, "restart_to": 1}, ""),  # what comes before it is at work, or all stops first
        ({"restart_to": 2}, "failed: another command came first"),
        ({"generation": 2, "wanted": False}, "failed: it was stopped by another command"),
        ({"generation": 0, "refused": {1: REFUSED}}, "failed: the import failed"),
        ({"running": False}, ""),
        ({"running": False, "failure": BROKEN}, "failed: it is broken"),
        ({"record": GAVE_UP, "failure": BROKEN}, "failed: it is broken"),
        ({"record": NEVER, "failure": BROKEN}, "failed: it is broken"),
        ({"starting": True, "record": Record(9), "failure": BROKEN}, ""),
        (
            {"starting": True, "record": Record(10), "failure": BROKEN},
            "failed: still not ready after 10 restarts, and tried on: it is broken",
        ),
        ({"starting": True, "blocked": Failure("waits for db")}, "failed: waits for db"),
        ({"blocked": Failure("waits for db")}, "started"),
        ({"sick": lambda slots: a_worker(7)}, "unhealthy: api.1 fails its health check: it said no"),
    ],
)
def test_a_start_is_told(app: dict[str, Any], says: str) -> None:
    assert told(o.started("started", 1), an_app(**app)) == says


@pytest.mark.parametrize(
    ("app", "says", "says_after_the_soak"),
    [
        ({"target": 2}, "", ""),
        ({"generation": 2, "reload_from": 1, "previous": 1}, "", ""),
        ({"generation": 2, "previous": 1}, "reloaded", ""),
        ({"generation": 2}, "reloaded", "reloaded"),
        ({"generation": 2, "record": GAVE_UP, "is_open": shut, "failure": BROKEN}, "failed: it is broken", "failed: it is broken"),
        ({"generation": 2, "record": NEVER, "is_open": shut, "failure": BROKEN}, "failed: it is broken", "failed: it is broken"),
        ({}, "failed: it was replaced by a later command", "failed: it was replaced by a later command"),
        ({"wanted": False}, "failed: it was stopped by another command", "failed: it was stopped by another command"),
        ({"refused": {2: REFUSED}}, "failed: the import failed", "failed: the import failed"),
        # rolled back: for as long as one of it may answer, the older code does not serve alone
        ({"refused": {2: REFUSED}, "workers": {7: a_worker(7, 2)}}, "failed: the import failed", ""),
        ({"refused": {2: REFUSED}, "workers": {7: a_worker(7, 1)}}, "failed: the import failed", "failed: the import failed"),
        ({"refused": {2: REFUSED}, "workers": {7: a_worker(7, 2, state=State.DRAINING)}}, "failed: the import failed", "failed: the import failed"),
        ({"refused": {2: REFUSED}, "workers": {7: a_worker(7, 2)}, "record": GAVE_UP}, "failed: the import failed", "failed: the import failed"),
        ({"refused": {2: REFUSED}, "workers": {7: a_worker(7, 2)}, "record": NEVER}, "failed: the import failed", "failed: the import failed"),
        ({"refused": {2: REFUSED}, "workers": {7: a_worker(7, 2)}, "running": False}, "failed: the import failed", "failed: the import failed"),
    ],
)  # fmt: skip
def test_a_reload_is_told(app: dict[str, Any], says: str, says_after_the_soak: str) -> None:
    assert told(o.reloaded(a_brain(), 2), an_app(**app)) == says
    assert told(o.reloaded(a_brain(), 2, soak=True), an_app(**app)) == says_after_the_soak


def test_a_reload_goes_on_being_told_why_it_was_given_up_once_the_app_has_forgotten_it() -> None:
    goal = o.reloaded(a_brain(), 2, soak=True)
    assert told(goal, an_app(refused={2: REFUSED}, workers={7: a_worker(7, 2)})) == ""
    assert told(goal, an_app()) == "failed: the import failed"


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ({"target": 2}, ""),
        ({"generation": 2, "previous": 1}, ""),
        ({"generation": 2}, "failed: its soak was over before"),
        ({"generation": 2, "wanted": False}, "failed: it was stopped by another command"),
        ({"generation": 2, "target": 3}, "failed: it was replaced by a later command"),
        ({"generation": 2, "restart_to": 3}, "failed: it was replaced by a later command"),
        ({}, "aborted"),
    ],
)
def test_an_abort_is_told(app: dict[str, Any], says: str) -> None:
    assert told(o.aborted(a_brain(), 2), an_app(**app)) == says
    # once the generation is given up: for as long as a worker of it may answer, it is not over
    assert told(o.aborted(a_brain(old_ones_accept=True), 2), an_app(**app)) == says.removeprefix("aborted")


@pytest.mark.parametrize(
    ("slots", "app", "says"),
    [
        (None, {"closed": True, "wanted": False}, "stopped"),
        (None, {"wanted": False}, ""),
        (None, {}, "failed: it was started again by another command"),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=1)}}, "stopped"),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2, state=State.STOPPED)}}, "stopped"),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2)}, "stopped_slots": frozenset({2})}, ""),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2)}}, "failed: it was started again by another command"),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2)}, "running": False, "wanted": False}, ""),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2)}, "running": False}, ""),  # all stop, to start again
    ],
)
def test_a_stop_is_told(slots: frozenset[int] | None, app: dict[str, Any], says: str) -> None:
    assert told(o.stopped(slots), an_app(**app)) == says


def test_an_end_is_waited_for_of_what_a_later_daemon_has_to_bring_back_too() -> None:
    assert [told(o.ended(), an_app(closed=closed)) for closed in (False, True)] == ["", "stopped"]


def test_what_another_command_has_decided_is_known_for_that() -> None:
    for goal, app in ((o.started("started", 1), {"generation": 2}), (o.stopped(None), {}), (o.scaled(a_brain(), (), 1), {"wanted": False})):
        outcome = goal(an_app(**app), 5.0)
        assert outcome is not None
        assert outcome.overtaken


def test_a_delete_is_told_once_nothing_of_that_name_is_the_app_that_was_to_go() -> None:
    app = an_app(wanted=False)
    assert told(o.deleted(a_brain(api=app)), app) == ""
    assert told(o.deleted(a_brain()), app) == "deleted"
    assert told(o.deleted(a_brain(api=an_app())), app) == "deleted"
    wanted = an_app()
    assert told(o.deleted(a_brain(api=wanted)), wanted) == "failed: it was started again by another command"


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ({}, "scaled"),
        ({"workers": {7: a_worker(7, slot=2)}}, ""),
        ({"workers": {7: a_worker(7, slot=2, state=State.DRAINING)}}, "scaled"),
        ({"target": 2}, "scaled"),
        ({"restart_to": 2}, ""),
        ({"has_been_checked": lambda slots: False}, ""),
        ({"sick": lambda slots: a_worker(7)}, "unhealthy: api.1 fails its health check: it said no"),
    ],
)
def test_a_scale_is_told(app: dict[str, Any], says: str) -> None:
    assert told(o.scaled(a_brain(), {1}, 1), an_app(**app)) == says
    assert told(o.scaled(a_brain(old_ones_accept=True), {1}, 1), an_app(**app)) == ""


@pytest.mark.parametrize(("count", "says"), [(3, "scaled"), (None, "scaled"), (2, "failed: the number was changed again meanwhile, to 3")])
def test_a_scale_to_a_number_that_another_one_came_after_has_failed(count: int | None, says: str) -> None:
    assert told(o.scaled(a_brain(), (), count), an_app(want=3)) == says


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ([a_worker(8)], "restarted"),
        ([a_worker(7), a_worker(8)], ""),
        ([a_worker(7, state=State.DRAINING), a_worker(8)], "restarted"),
        ([a_worker(7), a_worker(8, verdict="failing")], "failed: the new api.1 fails its health check: it said no"),
        ([a_worker(7, verdict="failing")], ""),
        ([a_worker(7), a_worker(8, slot=2, verdict="failing")], ""),
    ],
)
def test_a_restart_of_a_worker_is_told(workers: list[Any], says: str) -> None:
    app = an_app(workers={worker.id.serial: worker for worker in workers})
    assert told(o.replaced(a_brain(), {1}, {7}), app) == says


class Waits:
    """A client that waits for some of three apps, and what these have come to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.answers: list[Any] = []
        self.seen: list[int] = []
        self.leave: list[Callable[[], None]] = []
        self.apps = {name: an_app(name=name) for name in ("api", "web", "db")}
        self.events = EventLog(-1, report=pytest.fail)
        self.brain: Any = SimpleNamespace(apps=self.apps, events=self.events, loop=SimpleNamespace(clock=lambda: self.now))
        self.client: Any = SimpleNamespace(
            progress=lambda event: self.seen.append(event["seq"]), on_gone=self.leave.append,
            reply=lambda ok, body: self.answers.append((ok, {each["app"]: each["action"] for each in body["apps"]})),
        )  # fmt: skip
        self.came_to: dict[str, o.Outcome | None] = {}
        self.took: dict[str, float] = {}
        monkeypatch.setattr(o, "result", self.result)
        self.operations = o.Operations(self.brain)

    def result(self, app: Any, outcome: o.Outcome, took: float) -> dict[str, Any]:
        self.took[app.name] = took
        return {"app": app.name, "ok": outcome.ok, "action": outcome.action}

    def wait(self, *names: str, wait: bool = True, since_seq: int = 0, **decided: o.Outcome) -> None:
        goals: dict[str, o.Goal] = {name: lambda app, now: self.came_to.get(app.name) for name in names}
        self.operations.wait(self.client, goals, decided, wait=wait, since_seq=since_seq)

    def comes_to(self, name: str, action: str | None, *, overtaken: bool = False) -> None:
        self.came_to[name] = None if action is None else o.Outcome(action != "failed", action, overtaken=overtaken)
        self.brain.on_settled(self.apps[name])


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


def test_a_client_is_answered_once_all_that_it_waits_for_is_decided(waits: Waits) -> None:
    waits.wait("api", "web", db=o.Outcome(True, "unchanged"))
    assert waits.operations.under_way() == ["api", "web"]
    waits.now += 2
    waits.comes_to("web", "started")
    assert (waits.answers, waits.operations.under_way()) == ([], ["api"])
    waits.now += 1
    waits.comes_to("api", "stopped")
    assert waits.answers == [(True, {"api": "stopped", "web": "started", "db": "unchanged"})]
    assert (waits.took, waits.operations.under_way()) == ({"api": 3.0, "web": 2.0, "db": 0.0}, [])
    waits.comes_to("api", "stopped")
    assert len(waits.answers) == 1


def test_what_is_so_already_is_answered_at_once_and_a_failure_of_one_is_one_of_the_command(waits: Waits) -> None:
    waits.came_to = {"api": o.Outcome(True, "started"), "web": o.Outcome(False, "failed")}
    waits.wait("api", "web")
    assert waits.answers == [(False, {"api": "started", "web": "failed"})]
    waits.wait(db=o.Outcome(True, "unchanged"))
    assert waits.answers[1:] == [(True, {"db": "unchanged"})]


def test_who_does_not_wait_is_told_what_is_decided_and_that_the_rest_goes_on(waits: Waits) -> None:
    waits.came_to["api"] = o.Outcome(False, "failed")
    waits.wait("api", "web", wait=False)
    waits.wait("web", wait=False)
    assert waits.answers == [(False, {"api": "failed", "web": "under_way"}), (True, {"web": "under_way"})]
    assert waits.operations.under_way() == []


@pytest.mark.parametrize(
    ("first", "then", "overtaken", "wanted", "told"),
    [
        ("started", "failed", False, True, "failed"),  # it has died while another was waited for
        ("started", "unhealthy", False, True, "unhealthy"),
        ("started", "failed", True, True, "started"),  # a later command's affair
        ("started", "failed", True, False, "failed"),
        ("failed", "started", False, True, "failed"),
        ("stopped", "failed", False, True, "stopped"),  # nothing of it is to serve
    ],
)
def test_an_app_that_serves_is_looked_at_for_as_long_as_others_are_waited_for(
    waits: Waits, first: str, then: str, overtaken: bool, wanted: bool, told: str
) -> None:
    waits.wait("api", "web")
    waits.comes_to("api", first)
    waits.apps["api"].wanted = wanted
    waits.comes_to("api", then, overtaken=overtaken)
    waits.comes_to("web", "started")
    assert [apps["api"] for _, apps in waits.answers] == [told]


def test_an_app_of_which_a_worker_is_missing_again_is_waited_for_again(waits: Waits) -> None:
    waits.wait("api", "web")
    waits.comes_to("api", "started")
    waits.comes_to("api", None)
    waits.comes_to("web", "started")
    assert (waits.answers, waits.operations.under_way()) == ([], ["api"])
    waits.comes_to("api", "started")
    assert len(waits.answers) == 1


def test_the_events_of_its_apps_are_the_progress_of_a_client_also_those_before_it_waited(waits: Waits) -> None:
    for name in ("api", "api", "web"):
        waits.events.emit("app_stopped", name)
    waits.wait("api", since_seq=1, db=o.Outcome(True, "unchanged"))
    for name in ("web", "api", "db"):
        waits.events.emit("app_stopped", name)
    waits.comes_to("api", "stopped")
    waits.events.emit("app_stopped", "api")
    assert waits.seen == [2, 5, 6]


def test_nobody_is_told_and_nothing_kept_of_a_wait_whose_client_has_left(waits: Waits) -> None:
    waits.wait("api")
    [leave] = waits.leave
    leave()
    waits.events.emit("app_stopped", "api")
    waits.comes_to("api", "stopped")
    leave()  # that it has its answer is said in the same way
    assert (waits.answers, waits.seen, waits.operations.under_way()) == ([], [], [])


def test_a_wait_that_fails_is_answered_and_keeps_no_other_from_its_answer(
    waits: Waits, capfd: pytest.CaptureFixture[str]
) -> None:
    def goal(app: Any, now: float) -> Any:
        if fails:
            raise KeyError(fails)

    fails = ""
    waits.client.refuse = lambda refused: waits.answers.append(refused.message)
    waits.operations.wait(waits.client, {"api": goal}, {}, wait=True, since_seq=0)
    waits.wait("api")
    fails = "slot"
    waits.comes_to("api", "started")
    assert waits.answers == ["the daemon failed at this request: KeyError: 'slot'", (True, {"api": "started"})]
    assert waits.operations.under_way() == []
    assert "KeyError" in capfd.readouterr().err


def test_of_an_app_that_was_deleted_no_notes_are_told_and_of_others_what_the_outcome_says_too() -> None:
    with app_of_one_worker(State.READY) as (app, _, _):
        app.notes = ["a note"]
        told = o.result(app, o.Outcome(True, "started", note="of the command", changes=({"key": "x"},)), 1.23456)
        assert (told["app"], told["action"], told["ok"], told["gen"], told["took_s"]) == ("api", "started", True, 1, 1.235)
        assert (told["notes"], told["changes"], told["reason"]) == (["a note", "of the command"], [{"key": "x"}], "")
        told = o.result(app, o.Outcome(False, "deleted", BROKEN), 0.0)
        assert (told["notes"], "changes" in told, told["ok"], told["reason"]) == ([], False, False, "it is broken")

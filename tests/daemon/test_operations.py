"""What a command that waits is told, by what has become of the app: done, lost, or nothing yet. No process, no loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import RestartConfig
from pyworker.daemon import operations as o
from pyworker.daemon.app import Failure
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR, Record

BROKEN = Failure("it is broken")
REFUSED = Failure("the import failed")
GAVE_UP = Record(10, (1.0,), 60.0, failed=True)
NEVER = Record(1, permanent=True)


def an_app(**changes: Any) -> Any:
    """One of generation 1 that runs and is well, but for these."""
    base: dict[str, Any] = {
        "name": "api", "wanted": True, "running": True, "starting": False, "closed": False, "keep_listening": False,
        "is_job": False, "generation": 1, "target": None, "previous": None, "restart_to": None, "reload_from": None,
        "refused": {}, "record": CLEAR, "failure": None, "blocked": None, "restart_config": RestartConfig(), "want": 1,
        "workers": {}, "stopped_slots": frozenset(), "slots": lambda: [1], "is_open": lambda now: True,
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
        ({"generation": 2}, "failed: another command came first"),
        ({"generation": 0, "restart_to": 1}, ""),  # what comes before it is at work, or all stops first
        ({"restart_to": 2}, "failed: another command came first"),
        ({"generation": 0, "refused": {1: REFUSED}}, "failed: the import failed"),
        ({"running": False}, ""),
        ({"running": False, "failure": BROKEN}, "failed: it is broken"),
        ({"running": False, "keep_listening": True, "is_open": shut}, ""),
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
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2)}, "stopped_slots": frozenset({1, 2})}, ""),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2)}}, "failed: it was started again by another command"),
        (frozenset({2}), {"workers": {7: a_worker(7, slot=2)}, "running": False, "wanted": False}, ""),
    ],
)
def test_a_stop_is_told(slots: frozenset[int] | None, app: dict[str, Any], says: str) -> None:
    assert told(o.stopped(slots), an_app(**app)) == says


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
        ({"target": 2}, ""),
        ({"restart_to": 2}, ""),
        ({"has_been_checked": lambda slots: False}, ""),
        ({"sick": lambda slots: a_worker(7)}, "unhealthy: api.1 fails its health check: it said no"),
    ],
)
def test_a_scale_is_told(app: dict[str, Any], says: str) -> None:
    assert told(o.scaled(a_brain(), {1}), an_app(**app)) == says
    assert told(o.scaled(a_brain(old_ones_accept=True), {1}), an_app(**app)) == ""


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

"""Apps of a foreground pyworker: which are ready, how each has ended, or why it has not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import RestartConfig
from pyworker.daemon.app import Failure
from pyworker.daemon.run import Run, _end_of
from pyworker.policy.fate import AppEnd
from pyworker.policy.restart import CLEAR, Record

WAITS = Failure("waits for db, which failed")
GAVE_UP, NEVER = Record(10, failed=True), Record(1, permanent=True)
OVER: dict[str, Any] = {"finished_slots": {1}, "slots": list}
EXITS = {2: {"code": None, "signal": 15}, 1: {"code": 3, "signal": None}, 3: {"code": None, "signal": None}}
CODES = (3, 143, 1)


@pytest.mark.parametrize(
    ("app", "end"),
    [
        ({}, AppEnd("going")),
        (OVER, AppEnd("finished", (0,))),
        ({**OVER, "last_exits": EXITS}, AppEnd("finished", CODES)),
        ({**OVER, "is_job": True}, AppEnd("going")),  # its time comes again
        ({**OVER, "slots": lambda: [2]}, AppEnd("going")),
        ({**OVER, "starting": True}, AppEnd("going")),
        ({**OVER, "target": 2}, AppEnd("going")),
        ({**OVER, "has_untouched": lambda: True}, AppEnd("going")),
        ({**OVER, "workers": {7: SimpleNamespace(is_alive=True)}}, AppEnd("going")),  # one that leaves
        ({"starting": True, "blocked": WAITS}, AppEnd("waits")),
        ({"blocked": WAITS}, AppEnd("going")),
        ({"record": NEVER, "is_unusable": True}, AppEnd("unusable")),
        ({"record": NEVER}, AppEnd("failed")),
        ({"record": GAVE_UP, "is_unusable": True}, AppEnd("failing")),
        ({"record": GAVE_UP, "running": False}, AppEnd("failing")),
        ({"record": GAVE_UP, "running": False, "restart_config": RestartConfig(retry=0.0)}, AppEnd("failed")),
        ({"record": GAVE_UP, "running": False, "restart_config": RestartConfig(policy="never")}, AppEnd("failed")),
        ({"record": NEVER, "restart_config": RestartConfig(policy="never"), "last_exits": EXITS}, AppEnd("finished", CODES)),
        ({"record": NEVER, "last_exits": EXITS}, AppEnd("failed")),
        ({"record": NEVER, "running": False, "config": None}, AppEnd("failed")),
        ({"record": NEVER, "running": False, "config": None, "restored": True}, AppEnd("failing")),
        ({"record": NEVER, "running": False, "config": None, "last_exits": EXITS}, AppEnd("finished", CODES)),
    ],
)
def test_how_an_app_has_ended(app: dict[str, Any], end: AppEnd) -> None:
    base: dict[str, Any] = {
        "starting": False, "blocked": None, "target": None, "has_untouched": lambda: False, "workers": {}, "last_exits": {},
        "record": CLEAR, "is_unusable": False, "config": object(), "restart_config": RestartConfig(), "is_job": False,
        "finished_slots": set(), "slots": lambda: [1], "running": True, "restored": False,
    }  # fmt: skip
    found: Any = SimpleNamespace(**base | app)
    assert _end_of(found) == end


@pytest.mark.parametrize(
    ("app", "stops", "answer"),
    [
        ({}, 0, (True, "api ready 1/2\n")),
        ({}, 1, (False, "api not ready 1/2\nstopping\n")),
        ({"running": False}, 0, (False, "api not ready 1/2\n")),
        ({"ready_count": lambda: 0}, 0, (False, "api not ready 0/2\n")),
        ({"ready_count": lambda: 0, "slots": list}, 0, (True, "api ready 0/0\n")),  # scaled to 0, or it has done its work
        ({"ready_count": lambda: 0, "slots": list, "starting": True}, 0, (False, "api not ready 0/0\n")),
        ({"ready_count": lambda: 0, "slots": list, "has_ended_badly": lambda: True}, 0, (False, "api not ready 0/0\n")),
    ],
)
def test_an_app_is_ready_when_one_of_its_workers_is_or_none_is_wanted(app: dict[str, Any], stops: int, answer: tuple[bool, str]) -> None:
    base: dict[str, Any] = {
        "name": "api", "running": True, "starting": False, "ready_count": lambda: 1, "slots": lambda: [1, 2], "has_ended_badly": lambda: False,
    }  # fmt: skip
    brain = SimpleNamespace(apps={"api": SimpleNamespace(**base | app)})
    desk: Any = SimpleNamespace(brain=brain, waiting={})
    run: Any = SimpleNamespace(_desk=desk, _stops=stops)
    assert Run._ready(run, "") == Run._ready(run, "api") == answer
    desk.waiting = {"one that there is no descriptor for": ()}
    assert Run._ready(run, "") == (False, answer[1])
    assert Run._ready(run, "api") == answer
    assert Run._ready(run, "web") == (False, "no app web\n")

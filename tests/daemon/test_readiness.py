"""daemon/readiness.py: whose word counts for which worker. Whole trees are in tests/system."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, HealthConfig, ResolvedApp
from pyworker.daemon import check
from pyworker.daemon.app import Generation
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.readiness import EARLY, PORT_TRIES, Readiness, is_known_by_its_port
from pyworker.policy.lifecycle import State
from pyworker.protocol.inherited import WorkerId
from pyworker.unix import process

NOTIFIES = AppConfig("api", command=("x",), balance="shared", ready="notify")
PROXIED = AppConfig("api", command=("x",), balance="proxy")
SCRIPT = AppConfig("api", script="s.py")
NODE = AppConfig("api", command=("node", "a.js"), balance="round-robin")


class Coming:
    """Workers that come up, on a clock of ours, and what was noted of them."""

    def __init__(self, config: AppConfig = NOTIFIES, uid: int | None = None) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        self.said: list[tuple[str, int]] = []
        resolved = ResolvedApp(config, 1, "python", {}, (), uid, None, (), "", 0)
        self.app: Any = SimpleNamespace(
            name="api", generation=1, running=True, generations={1: Generation(1, resolved)}, workers={}, listeners={}, write_memo=lambda: None
        )
        brain: Any = SimpleNamespace(
            loop=self.loop, apps={"api": self.app}, poke=lambda app: None,
            emit=lambda app, kind, worker, **data: self.said.append((kind, worker.id.slot)),
        )  # fmt: skip
        self.readiness = Readiness(brain)

    def worker(self, slot: int, pid: int, state: State = State.STARTING, **fields: Any) -> WorkerHandle:
        serial = len(self.app.workers) + 1
        handle = WorkerHandle(WorkerId("api", 1, slot, serial), held=False, born_at=50.0, pid=pid, state=state)
        for name, value in fields.items():
            setattr(handle, name, value)
        self.app.workers[serial] = handle
        return handle

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.loop.turn(0.0)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """pid -> its session, of processes that there are; they are ours."""
    known: dict[int, int] = {}

    def getsid(pid: int) -> int:
        if pid not in known:
            raise ProcessLookupError
        return known[pid]

    monkeypatch.setattr(os, "getsid", getsid)
    monkeypatch.setattr(process, "owner", lambda pid: os.geteuid() if pid < 9000 else os.geteuid() + 1)
    return known


@pytest.mark.parametrize(("sender", "session"), [(42, 42), (43, 42)])
def test_a_command_is_ready_by_its_own_word_and_by_that_of_its_helpers(sessions: dict[int, int], sender: int, session: int) -> None:
    coming = Coming()
    states = [coming.worker(1, 41), coming.worker(2, 42), coming.worker(3, 0), coming.worker(4, 42, State.STOPPED)]
    sessions[sender] = session
    coming.readiness.on_notified(sender, os.geteuid(), "STATUS=loading\nREADY=0")
    assert coming.said == []
    coming.readiness.on_notified(sender, os.geteuid(), "STATUS=up\nREADY=1\n")
    assert coming.said == [("worker_ready", 2)]
    assert [handle.state for handle in states] == [State.STARTING, State.READY, State.STARTING, State.STOPPED]
    assert not coming.readiness.was_early(session)
    coming.readiness.on_notified(sender, os.geteuid(), "READY=1")
    assert coming.said == [("worker_ready", 2)]


def test_who_was_ready_before_anybody_told_its_pid_is_so_once_and_for_a_while(sessions: dict[int, int]) -> None:
    coming = Coming()
    sessions |= {50: 50, 51: 51, 9001: 9001, 52: 52}
    for pid in (50, 51, 9001):
        coming.readiness.on_notified(pid, os.geteuid(), "READY=1")
    coming.readiness.on_notified(52, os.geteuid(), "STATUS=loading")
    assert [coming.readiness.was_early(pid) for pid in (50, 50, 9001, 52)] == [True, False, False, False]  # another user's; not ready
    coming.pass_time(EARLY)
    assert not coming.readiness.was_early(51)  # the number may be another's by now


@pytest.mark.parametrize(
    ("config", "uid", "states", "ready"),
    [
        (NOTIFIES, None, [State.STARTING], True),
        (NOTIFIES, None, [State.STARTING, State.READY], True),
        (NOTIFIES, None, [State.STARTING, State.STARTING], False),  # either may be meant
        (AppConfig("api", command=("x",), balance="shared"), None, [State.STARTING], False),
        (NOTIFIES, 12345, [State.STARTING], False),  # another user's
    ],
)
def test_the_word_of_a_helper_that_has_ended_counts_if_only_one_can_be_meant(
    sessions: dict[int, int], config: AppConfig, uid: int | None, states: list[State], ready: bool
) -> None:
    coming = Coming(config, uid)
    for slot, state in enumerate(states, 1):
        coming.worker(slot, 40 + slot, state)
    coming.readiness.on_notified(99, os.geteuid(), "READY=1")
    assert coming.said == ([("worker_ready", 1)] if ready else [])


@pytest.mark.parametrize(
    ("config", "fields", "happens"),
    [
        (PROXIED, {"port": 20000}, "worker_ready"),
        (PROXIED, {"port": 20000, "held": True}, "worker_held"),  # nobody comes there before the commit
        (PROXIED, {"port": 20000, "held": True, "gone_go": True}, "worker_ready"),
        (NODE, {"held": True}, "worker_held"),
        (NOTIFIES, {"held": True}, "worker_ready"),  # it serves at once
    ],
)
def test_who_comes_up_before_the_commit_is_held_if_it_can_be(config: AppConfig, fields: dict[str, Any], happens: str) -> None:
    coming = Coming(config)
    coming.readiness.says_ready(coming.app, coming.worker(1, 42, **fields))
    assert coming.said == [(happens, 1)]


def test_who_is_held_is_ready_and_checked_from_then_on_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    coming = Coming(PROXIED)
    checked: list[int] = []
    monkeypatch.setattr(Readiness, "watch_health", lambda self, app, handle: checked.append(handle.id.slot))
    handle = coming.worker(1, 42)
    coming.readiness.is_held(coming.app, handle, coming.now)
    coming.now += 7
    for _ in range(2):
        coming.readiness.is_held(coming.app, handle, coming.now)
        coming.readiness.accepts(coming.app, handle)
    assert (handle.state, handle.ready_at, checked) == (State.READY, 100.0, [1])
    assert coming.said == [("worker_held", 1), ("worker_ready", 1)]
    coming.loop.close()


def test_who_is_ready_before_its_pid_is_told_is_so_when_it_is() -> None:
    coming = Coming()
    handle = coming.worker(1, 0)
    coming.readiness.says_ready(coming.app, handle)
    coming.pass_time(PORT_TRIES)
    assert coming.said == []
    handle.pid = 42
    coming.pass_time(PORT_TRIES)
    assert coming.said == [("worker_ready", 1)]


@pytest.mark.parametrize("late", [{"state": State.DRAINING}, {"ended_at": 99.0}])
def test_a_port_is_tried_until_somebody_answers_and_no_answer_counts_for_one_that_leaves(
    monkeypatch: pytest.MonkeyPatch, late: dict[str, Any]
) -> None:
    answers: list[Any] = []
    monkeypatch.setattr(check, "at", lambda loop, address, config, done: answers.append(done))
    coming = Coming(PROXIED)
    leaves, stays = coming.worker(1, 41, port=20000), coming.worker(2, 42, port=20001)
    for handle in (leaves, stays):
        coming.readiness.watch_port(coming.app, handle)
    for name, value in late.items():
        setattr(leaves, name, value)
    answers.pop(0)(True, "")
    answers.pop(0)(False, "connection refused")
    assert (coming.said, answers) == ([], [])
    coming.readiness.watch_port(coming.app, leaves)
    coming.pass_time(PORT_TRIES)
    (answer,) = answers
    answer(True, "")
    assert coming.said == [("worker_ready", 2)]


@pytest.mark.parametrize(
    ("config", "port", "is_known"),
    [
        (PROXIED, 20000, True),
        (PROXIED, 0, False),
        (AppConfig("api", command=("x",), balance="proxy", health=HealthConfig()), 20000, False),
        (AppConfig("api", command=("x",), balance="proxy", ready="notify"), 20000, False),
    ],
)
def test_its_port_tells_that_a_worker_is_up_if_nothing_else_does(config: AppConfig, port: int, is_known: bool) -> None:
    handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, port=port)
    assert is_known_by_its_port(config, handle) is is_known


@pytest.mark.parametrize(
    ("config", "bound", "other", "waits"),
    [
        (SCRIPT, False, {"bound": True, "slot": 1, "state": State.READY}, True),
        (SCRIPT, True, {"bound": True, "slot": 1, "state": State.READY}, False),
        (SCRIPT, False, {"bound": False, "slot": 1, "state": State.READY}, False),
        (SCRIPT, False, {"bound": True, "slot": 2, "state": State.READY}, False),  # of another place
        (SCRIPT, False, {"bound": True, "slot": 1, "state": State.DRAINING}, False),
        (NOTIFIES, False, {"bound": True, "slot": 1, "state": State.READY}, False),
    ],
)
def test_a_script_that_is_to_replace_one_that_has_a_port_is_not_up_before_it_has_one(
    config: AppConfig, bound: bool, other: dict[str, Any], waits: bool
) -> None:
    coming = Coming(config)
    handle = coming.worker(1, 42, bound=bound)
    coming.worker(other["slot"], 43, other["state"], bound=other["bound"])
    assert coming.readiness.is_to_bind(coming.app, handle) is waits

"""What the launcher says of the processes that it was asked for, and what is said when it cannot."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker import __version__
from pyworker.config.schema import AppConfig, LimitsConfig, ResolvedApp
from pyworker.daemon import lost
from pyworker.daemon.app import Generation
from pyworker.daemon.direct import Direct, is_direct
from pyworker.daemon.handles import WorkerHandle
from pyworker.policy.lifecycle import State
from pyworker.protocol.inherited import WorkerId
from pyworker.unix import process


def test_of_a_launcher_that_was_killed_it_is_said_also_when_the_end_of_the_channel_is_seen_first() -> None:
    later: list[Callable[[], None]] = []
    ended: list[process.ExitStatus] = []
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(call_later=lambda _, call: later.append(call)),
        poke=lambda app: None,
        spawner=SimpleNamespace(launcher=SimpleNamespace(last_status=process.ExitStatus(None, 9))),
        deaths=SimpleNamespace(
            finish=lambda app, handle, status: ended.append(status), ended=lambda app, handle, status: ended.append(status)
        ),
    )
    app: Any = SimpleNamespace(generations={})
    handle = WorkerHandle(WorkerId("job", 1, 1, 1), held=False, born_at=0.0)
    direct = Direct(brain)
    direct.failed(app, handle, 0)
    while later:
        direct.without_a_word(app, handle)
        assert not ended
        later.pop(0)()
    assert handle.failure is not None
    assert handle.failure.message == "cannot start a process: the launcher was killed"
    assert len(ended) == 1
    other = WorkerHandle(WorkerId("job", 1, 2, 2), held=False, born_at=0.0)
    direct.without_a_word(app, other)
    assert len(ended) == 2, "its launcher lives, and nobody else looks for it"


def a_generation(*, listeners: tuple[int, ...] = (), uid: int | None = None, gid: int | None = None, **config: Any) -> Generation:
    resolved = ResolvedApp(AppConfig("job", **{"balance": "shared", **config}), 1, "python", {}, (), uid, gid, (), "", 0)
    return Generation(1, resolved, listeners)


def a_worker(*, held: bool = False, **changes: Any) -> WorkerHandle:
    return WorkerHandle(WorkerId("job", 1, 1, 7), held=held, born_at=0.0, **changes)


SLEEP: dict[str, Any] = {"command": ("sleep", "600")}


@pytest.mark.parametrize(
    ("generation", "held", "direct"),
    [
        (SLEEP, False, True),
        (SLEEP, True, False),  # somebody has to wait for Go
        (SLEEP | {"listeners": (0,)}, False, False),  # and to tell it which process LISTEN_FDS is meant for
        (SLEEP | {"listeners": (0,), "balance": "proxy"}, True, True),  # a dispatcher does both
        (SLEEP | {"uid": 0}, False, False),
        (SLEEP | {"gid": 0}, False, False),
        (SLEEP | {"limits": LimitsConfig(nofile=100)}, False, False),
        ({"script": "/srv/run.py"}, False, False),
        ({"script": "/srv/run.py", "balance": "proxy"}, False, True),
        ({"target": "web:app", "balance": "proxy"}, False, False),
    ],
)
def test_only_a_command_before_whose_exec_nothing_is_to_be_done_is_started_directly(generation: dict[str, Any], held: bool, direct: bool) -> None:
    assert is_direct(a_generation(**generation), a_worker(held=held)) is direct


@pytest.mark.parametrize(
    ("generation", "worker", "early", "follows"),
    [
        (SLEEP, {}, False, ["claimed", "ready"]),
        (SLEEP | {"ready": "notify"}, {}, False, ["claimed"]),
        (SLEEP | {"ready": "notify"}, {}, True, ["claimed", "says ready"]),
        (SLEEP, {"pid": 4711}, False, []),  # found meanwhile, or by its Hello
        (SLEEP, {"pid": 4711, "state": State.STOPPING}, False, []),  # and has been signalled then
        (SLEEP, {"state": State.STOPPED}, False, ["ended"]),
        (None, {}, False, ["ended"]),
        (SLEEP | {"balance": "proxy"}, {"port": 8001}, False, ["claimed", "ready"]),
        (SLEEP | {"balance": "proxy"}, {}, False, ["ended", "given up"]),
        # what says Hello says there how far it has come
        ({"script": "/srv/run.py"}, {}, False, ["claimed"]),
        ({"script": "/srv/run.py"}, {"state": State.STOPPED}, False, []),
    ],
)
def test_what_follows_when_the_launcher_has_started_one(
    monkeypatch: pytest.MonkeyPatch, generation: dict[str, Any] | None, worker: dict[str, Any], early: bool, follows: list[str]
) -> None:
    did: list[str] = []
    brain: Any = SimpleNamespace(
        pids=SimpleNamespace(claim=lambda app, handle, pid: did.append("claimed")), poke=lambda app: None,
        readiness=SimpleNamespace(
            is_ready=lambda app, handle, generation, serving: did.append("ready"), was_early=lambda pid: early,
            says_ready=lambda app, handle: did.append("says ready"),
        ),
        deaths=SimpleNamespace(finish=lambda app, handle, status: did.append("given up")),
    )  # fmt: skip
    monkeypatch.setattr(lost, "end", lambda pid, identity: did.append("ended") or True)
    app: Any = SimpleNamespace(generations={1: a_generation(**generation)} if generation else {})
    handle = a_worker(**worker)
    Direct(brain).started(app, handle, 4242)
    assert did == follows
    is_ours = "claimed" in follows and "script" not in (generation or {})
    assert (handle.direct, handle.version) == (is_ours, __version__ if is_ours else "")


def test_one_that_was_given_up_is_looked_at_until_it_shows_who_it_is_and_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    later: list[Callable[[], None]] = []
    looks: list[int] = []
    brain: Any = SimpleNamespace(loop=SimpleNamespace(call_later=lambda _, call: later.append(call)))
    monkeypatch.setattr(lost, "end", lambda pid, identity: looks.append(pid) or len(looks) == 3)
    Direct(brain).started(SimpleNamespace(generations={}), a_worker(), 4242)  # type: ignore[arg-type]
    while later:
        later.pop(0)()
    assert looks == [4242] * 3
    monkeypatch.setattr(lost, "end", lambda pid, identity: looks.append(pid))
    Direct(brain).started(SimpleNamespace(generations={}), a_worker(), 4242)  # type: ignore[arg-type]
    while later:
        later.pop(0)()
    assert len(looks) < 100


@pytest.mark.parametrize(
    ("generation", "untold", "pid", "found", "is_lost"),
    [
        (SLEEP, False, 4242, True, False),
        (SLEEP, False, 0, False, True),
        ({"script": "/srv/run.py"}, False, 4242, False, True),  # it would have said Hello, and is not looked for
        ({"target": "web:app"}, False, 4242, False, False),  # nor is it known whether it came: its template is asked
        ({"target": "web:app"}, True, 4242, False, True),  # nobody has asked that one
        (None, False, 4242, False, False),
    ],
)
def test_who_has_no_pid_yet_is_looked_for_where_nobody_else_will_tell_it(
    monkeypatch: pytest.MonkeyPatch, generation: dict[str, Any] | None, untold: bool, pid: int, found: bool, is_lost: bool
) -> None:
    told: list[int] = []
    direct = Direct(SimpleNamespace(store=SimpleNamespace(guardian_pid=7, get=lambda name: 5)))  # type: ignore[arg-type]
    monkeypatch.setattr(lost, "find", lambda guardian, identity, pipe: pid if (guardian, pipe) == (7, 5) else 0)
    monkeypatch.setattr(direct, "started", lambda app, handle, pid: told.append(pid))
    app: Any = SimpleNamespace(generations={1: a_generation(**generation)} if generation else {})
    handle = a_worker()
    handle.untold = untold
    direct.find(app, handle, lambda: told.append(0))
    assert (told, handle.lost) == ([pid if found else 0], is_lost)
    handle.pid = 4711  # told meanwhile
    direct.find(app, handle, lambda: told.append(0))
    assert len(told) == 1


@pytest.mark.parametrize(
    ("number", "launcher", "why"),
    [
        (errno.EAGAIN, process.UNKNOWN, "Resource temporarily unavailable"),
        (0, process.ExitStatus(1, None), "the launcher ended with exit code 1"),
        (0, process.UNKNOWN, "the launcher was killed"),
    ],
)
def test_why_nothing_was_started_is_said_of_one_that_still_waits_for_it(number: int, launcher: process.ExitStatus, why: str) -> None:
    later: list[Callable[[], None]] = []
    did: list[str] = []
    brain: Any = SimpleNamespace(
        loop=SimpleNamespace(call_later=lambda _, call: later.append(call)), poke=lambda app: did.append("poke"),
        spawner=SimpleNamespace(launcher=SimpleNamespace(last_status=launcher)),
        deaths=SimpleNamespace(finish=lambda app, handle, status: did.append("given up")),
    )  # fmt: skip
    direct = Direct(brain)
    for handle in (a_worker(), a_worker(pid=4711), a_worker(state=State.STOPPED)):
        direct.failed(SimpleNamespace(generations={}), handle, number)  # type: ignore[arg-type]
        while later:
            later.pop(0)()
        waits = not handle.pid and handle.is_alive
        assert did == (["given up", "poke"] if waits else [])
        assert (handle.failure.message if handle.failure else "") == (f"cannot start a process: {why}" if waits else "")
        did.clear()

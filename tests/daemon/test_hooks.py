"""daemon/hooks.py: what a start or reload waits for, whose a failure is, and what is told of events. Nothing is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, HooksConfig, ResolvedApp
from pyworker.daemon import hooks
from pyworker.daemon.app import Generation
from pyworker.daemon.events import EventLog
from pyworker.daemon.hooks import Hooks
from pyworker.daemon.loop import Loop
from pyworker.protocol.events import TYPES
from pyworker.record import replace
from tests.support.words import TOO_MANY_OPEN_FILES

CHECK = HooksConfig(pre_start=("sh", "check.sh"))


class Ran:
    """What would be executed, in the place of daemon/check.py's Command."""

    def __init__(self, loop: Any, resolved: Any, config: Any, done: Any, *, stdin: bytes, env: dict[str, str], of_death: Any) -> None:
        self.words, self.done, self.stdin, self.env, self.timeout = config.command, done, stdin, env, config.timeout
        self.pidfd = os.open(os.devnull, os.O_RDONLY)
        self.output, self.cancelled = "", False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """One app of generation 1 that runs, its hooks, and all that these say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[Ran] = []
        self.said: list[Any] = []
        self.now = 100.0
        self.loop = Loop(lambda: self.now, pytest.fail)
        self.stored: dict[str, int] = {}
        self.brain: Any = SimpleNamespace(
            apps={}, events=EventLog(-1, report=pytest.fail), loop=self.loop, poke=lambda app: self.said.append("poke"),
            store=SimpleNamespace(put=self.stored.__setitem__, remove=self.forget),
            reloads=SimpleNamespace(refuse=lambda app, number, failure: self.said.append(("refused", number, failure.message))),
            remark=lambda app, text: self.said.append(text), note=lambda app, text: self.said.append(text),
            deaths=SimpleNamespace(shortages=SimpleNamespace(of_death=None)),
        )  # fmt: skip

        def run(*args: Any, **more: Any) -> Ran:
            self.ran.append(Ran(*args, **more))
            return self.ran[-1]

        monkeypatch.setattr(hooks, "Command", run)
        self.hooks = Hooks(self.brain)
        self.app: Any = SimpleNamespace(
            name="api", running=True, starting=False, generation=1, target=None, restart_to=None, templates={}, workers={},
            target_failure=None, start_failure=None, generations={},
        )  # fmt: skip
        self.brain.apps["api"] = self.app
        self.generation(1, HooksConfig())

    def generation(self, number: int, config: HooksConfig = CHECK) -> Generation:
        resolved = ResolvedApp(AppConfig("api", target="a:b", cwd="/srv", hooks=config), 1, "python", {}, (), None, None, (), "", 0)
        made = self.app.generations[number] = Generation(number, resolved)
        self.app.current = self.app.generations[self.app.generation]
        return made

    def forget(self, name: str) -> None:
        if name in self.stored:
            os.close(self.stored.pop(name))

    def gate(self, **app: Any) -> set[int]:
        vars(self.app).update(app)
        return set(self.hooks.gate(self.app))

    def happens(self, kind: str = "worker_stopping", **data: Any) -> None:
        self.brain.events.emit(kind, "api", 1, **{**dict.fromkeys(TYPES[kind], 0), **data})

    def close(self) -> None:
        for each in self.ran:
            os.close(each.pidfd)
        for name in list(self.stored):
            self.forget(name)
        self.loop.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("app", "waits"),
    [
        ({"target": 2}, True),
        ({"generation": 2, "starting": True}, True),
        ({"restart_to": 2}, True),
        ({"generation": 2}, False),  # it has started already
        ({"generation": 2, "starting": True, "running": False}, False),
        ({"restart_to": 2, "running": False}, False),  # all stop first
        ({}, False),
        ({"target": 3}, False),  # which has none
    ],
)
def test_a_generation_that_is_to_come_waits_for_its_hook_which_is_begun_once(world: World, app: dict[str, Any], waits: bool) -> None:
    generation = world.generation(2)
    world.generation(3, HooksConfig())
    assert world.gate(**app) == ({2} if waits else set())
    assert world.gate() == ({2} if waits else set())
    assert [each.words for each in world.ran] == [("sh", "check.sh")] * waits
    assert world.hooks.preparing == ["api"] * waits
    assert list(world.stored) == ["hook.api.2"] * waits  # the next daemon would end it
    if waits:
        assert world.ran[0].env == {"PYWORKER_APP": "api", "PYWORKER_HOOK": "pre_start", "PYWORKER_GENERATION": "2"}
        world.ran[0].done(True, "")
        assert (world.gate(), generation.prepared, world.hooks.preparing, world.stored) == (set(), "yes", [], {})


@pytest.mark.parametrize("lives", [{"templates": {2: None}}, {"workers": {7: SimpleNamespace(id=SimpleNamespace(generation=2))}}])
def test_what_lives_already_was_prepared_by_the_daemon_before_this_one(world: World, lives: dict[str, Any]) -> None:
    world.generation(2)
    assert world.gate(target=2, **lives) == set()
    assert world.gate(templates={}, workers={}) == set()
    assert world.ran == []


def test_a_hook_of_which_nothing_comes_any_more_is_ended_and_no_other(world: World) -> None:
    for number in (2, 3):
        world.generation(number)
    world.gate(target=2)
    other: Any = SimpleNamespace(**{**vars(world.app), "name": "web", "generations": {2: replace(world.app.generations[2], prepared="no")}})
    world.hooks.gate(other)
    assert world.gate(target=3) == {3}
    assert [(each.env["PYWORKER_APP"], each.env["PYWORKER_GENERATION"], each.cancelled) for each in world.ran] == [
        ("api", "2", True), ("web", "2", False), ("api", "3", False)
    ]  # fmt: skip
    assert world.hooks.preparing == ["api", "web"]
    assert sorted(world.stored) == ["hook.api.3", "hook.web.2"]


FAILED = "hooks.pre_start failed: sh: exit code 3: it is locked"


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ({"target": 2}, {"target_failure": FAILED}),
        ({"generation": 2, "starting": True}, {"start_failure": FAILED}),
        ({"restart_to": 2}, {}),
    ],
)
def test_a_hook_that_fails_is_a_failure_of_what_waits_for_it(world: World, app: dict[str, Any], told: dict[str, Any]) -> None:
    world.generation(2)
    world.gate(**app)
    world.ran[0].output = "it is locked"
    world.ran[0].done(False, "sh: exit code 3: it is locked")
    failures = {name: failure.message for name in ("target_failure", "start_failure") if (failure := getattr(world.app, name))}
    assert failures == told
    assert [each for each in world.said if isinstance(each, tuple)] == ([] if told else [("refused", 2, FAILED)])
    assert world.app.restart_to is None
    assert world.said[-1] == "poke"
    assert world.gate() == (set() if "restart_to" in app else {2})  # until policy has given it up
    assert len(world.ran) == 1


def test_a_hook_of_whose_failure_the_cause_cannot_be_found_has_failed_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ValueError("embedded null byte")

    monkeypatch.setattr(hooks, "of_module", fail)
    world.generation(2)
    world.gate(target=2)
    world.ran[0].done(False, "sh: exit code 3: it is locked")
    assert (world.app.target_failure.message, world.said) == (FAILED, ["poke"])


def test_a_hook_that_fails_in_the_moment_of_a_stop_is_no_failure_of_a_later_start(world: World) -> None:
    world.generation(2)
    for app in ({"target": 2}, {"target": None, "generation": 2, "starting": True}, {"generation": 1, "starting": False, "restart_to": 2}):
        world.app.generations[2].prepared = "no"
        world.gate(**app, running=True)
        stopped = {"running": False, "starting": False, "target": None, "restart_to": None}
        vars(world.app).update(stopped)
        world.ran[-1].done(False, "sh: exit code 3")
        assert {name: getattr(world.app, name) for name in stopped} == stopped
        assert (world.app.target_failure, world.app.start_failure) == (None, None)
    assert world.said == ["poke"] * 3


def test_what_a_hook_has_printed_is_shown_from_the_begin_of_a_line_and_its_last_words_once(world: World) -> None:
    world.generation(2)
    for printed, message, shown in (
        ("it is locked", "it is locked", ""),
        ("first\nit is locked", "it is locked", "first\nit is locked"),
        ("first line\n" + "x" * 7990 + "\nend", "end", "x" * 7990 + "\nend"),
        ("x" * 9000, "x" * 300, "x" * 8000),
        ("", "", ""),
    ):
        world.app.generations[2].prepared = "no"
        world.gate(target=2)
        world.ran[-1].output = printed
        world.ran[-1].done(False, "sh: exit code 3" + (f": {printed[-300:]}" if printed else ""))
        failure = world.app.target_failure
        assert failure.message == "hooks.pre_start failed: sh: exit code 3" + (f": {message}" if message else "")
        assert failure.traceback == shown
        assert failure.hint == "try it in /srv: sh check.sh"


def test_of_a_hook_for_which_there_was_no_descriptor_it_is_said_what_to_raise_and_not_to_try_it(world: World) -> None:
    world.generation(2)
    world.gate(target=2)
    world.ran[0].done(None, f"cannot start it: {TOO_MANY_OPEN_FILES}")
    failure = world.app.target_failure
    assert failure.message == f"hooks.pre_start failed: cannot start it: {TOO_MANY_OPEN_FILES}"
    assert failure.hint.startswith("raise the limit of open files: ")


@pytest.mark.parametrize("ends", [False, True])
def test_what_is_waited_for_is_said_after_a_while_if_it_still_runs(world: World, ends: bool) -> None:
    world.generation(2)
    world.gate(target=2)
    if ends:
        world.ran[0].done(True, "")
    world.now += 2.9
    world.loop.turn(0)
    assert "hooks.pre_start runs: sh check.sh" not in world.said
    world.now += 0.2
    world.loop.turn(0)
    assert ("hooks.pre_start runs: sh check.sh" in world.said) is not ends


def test_a_hook_runs_also_when_no_descriptor_is_left_for_the_next_daemon_to_end_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> int:
        raise OSError

    world.generation(2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", refuse)
        assert world.gate(target=2) == {2}
    world.ran[0].done(True, "")
    assert world.gate() == set()


def test_events_are_told_one_at_a_time_in_their_order_and_what_fails_is_noted(world: World) -> None:
    world.generation(1, HooksConfig(on_event=("tell",), post_reload=("reloaded",), timeout=7.0))
    world.happens("worker_stopping")
    world.happens("reload_done")
    world.happens("app_note", text="hooks.on_event failed: it would go on for ever")
    world.happens("app_note", text="of another")
    assert [each.words for each in world.ran] == [("tell",), ("reloaded",)]
    assert world.ran[0].timeout == 7.0
    assert not world.hooks.is_idle
    world.ran[1].done(False, "no network")
    world.ran[0].done(True, "")
    assert len(world.ran) == 2  # not from inside of the one before
    for number in (2, 3):
        assert not world.hooks.is_idle
        world.loop.turn(0)
        assert len(world.ran) == number + 1
        world.ran[number].done(number != 3, "no route")
    world.loop.turn(0)
    assert (len(world.ran), world.hooks.is_idle) == (4, True)
    assert [json.loads(each.stdin)["type"] for each in world.ran if each.stdin] == ["worker_stopping", "reload_done", "app_note"]
    assert world.said == ["hooks.post_reload failed: no network", "hooks.on_event failed: no route"]


def test_an_event_that_waits_is_told_to_the_hook_that_there_is_by_then_or_to_none(world: World) -> None:
    world.generation(1, HooksConfig(on_event=("slow",)))
    for _ in range(3):
        world.happens()
    for command in (("other",), ()):
        world.generation(1, HooksConfig(on_event=command))
        world.ran[-1].done(True, "")
        world.loop.turn(0)
    assert [each.words for each in world.ran] == [("slow",), ("other",)]
    assert world.hooks.is_idle


def test_of_events_that_come_too_fast_for_a_hook_the_later_ones_are_dropped_and_that_is_noted(world: World) -> None:
    world.generation(1, HooksConfig(on_event=("tell",)))
    for _ in range(201):
        world.happens()
    assert world.said == []
    world.happens()
    assert world.said == ["hooks.on_event failed: is too slow: more than 200 events wait, later ones are dropped"]


def test_hooks_that_still_run_when_the_daemon_leaves_are_ended(world: World) -> None:
    world.generation(1, HooksConfig(on_event=("tell",)))
    world.happens()
    assert not world.hooks.is_idle
    world.hooks.end()
    assert world.ran[0].cancelled
    assert world.hooks.is_idle


def test_an_app_without_hooks_has_none_run(world: World) -> None:
    world.happens("reload_done")
    assert (world.ran, world.hooks.is_idle) == ([], True)


def test_what_happens_to_an_app_that_is_not_known_or_was_not_read_yet_is_told_to_nobody(world: World) -> None:
    world.generation(1, replace(CHECK, on_event=("tell",)))
    world.app.current = None
    world.happens()
    world.brain.apps.clear()
    world.happens()
    assert world.ran == []

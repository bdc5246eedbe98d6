"""daemon/bringback.py: what is started again, with what, and what is said of it. Nothing is started."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon import bringback
from pyworker.daemon.adopt import Adopted
from pyworker.daemon.app import Failure
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.desired import DesiredApp, FileSource, InlineSource
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.loop import Loop
from pyworker.daemon.requests import auto
from pyworker.daemon.requests.apps import forget
from pyworker.daemon.requests.auto import READ_AGAIN, RESTORE_AGAIN
from pyworker.policy.lifecycle import State
from pyworker.unix.fds import memfd
from tests.support.brain import app_of_one_worker
from tests.support.brain import brain as brain
from tests.support.channels import ends as ends
from tests.support.descriptors import open_fds


class World:
    """A daemon that has adopted what it could, and what it does then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[Any] = []
        self.lines: list[str] = []
        self.restores: dict[str, Any] = {}  # what comes of it: a failure, or an error; else it is well
        self.env: dict[str, str] = {}
        self.now = 100.0
        self.loop = Loop(lambda: self.now, pytest.fail)
        self.apps: dict[str, Any] = {}
        brain: Any = SimpleNamespace(
            apps=self.apps, loop=self.loop, store=SimpleNamespace(alive=lambda: None, together=contextlib.nullcontext, names=lambda kind, name: ()),
            fail=lambda message, hint="": Failure(message, hint=hint), note=lambda app, text: self.did.append(("note", app.name, text)),
            emit_failed=lambda name, failure: self.did.append(("failed", name, failure.message)),
        )  # fmt: skip
        self.desk: Any = SimpleNamespace(brain=brain, waiting={}, shutting_down=False, save=lambda: self.did.append("save"))
        monkeypatch.setattr(bringback, "restore", self.restore)
        monkeypatch.setattr(bringback, "forget", lambda desk, app: self.apps.pop(app.name) and self.did.append(("forget", app.name)))
        monkeypatch.setattr(bringback, "let_go", lambda brain, name: self.did.append(("let go", name)))
        monkeypatch.setattr(bringback, "raw_resolved", lambda brain, name: {"env": self.env})
        monkeypatch.setattr(bringback, "found_listeners", lambda brain, name: {0: "found"})
        monkeypatch.setattr(bringback, "start_again", lambda desk, apps, every: self.did.extend(("again", app.name, every) for app in apps))
        monkeypatch.setattr(bringback.stderr, "say", lambda who, text: self.lines.append(text))

    def restore(self, desk: Any, app: DesiredApp, values: dict[str, str], listeners: dict[int, Any]) -> str:
        self.did.append(("restore", app.name, values, listeners))
        comes = self.restores.get(app.name, "")
        if isinstance(comes, OSError):
            raise comes
        self.apps[app.name] = SimpleNamespace(name=app.name, restored=False, unusable=False, closed=False, delete_when_closed=False)
        self.desk.waiting.pop(app.name, None)
        return str(comes)

    def there(self, app: DesiredApp, **changes: Any) -> None:
        base = {"name": app.name, "closed": False, "delete_when_closed": False, "stays_failed": False, "listeners": {0: "its own"}, "desired": lambda: app}
        self.apps[app.name] = SimpleNamespace(**base | changes)

    def bring_back(self, *wanted: DesiredApp, **found: Any) -> list[Any]:
        bringback.bring_back(self.desk, {app.name: app for app in wanted}, Adopted(**found))
        return self.did

    def later(self) -> list[Any]:
        """Return what is done when it is tried again."""
        self.did.clear()
        self.now += RESTORE_AGAIN + 0.1
        self.loop.turn(0)
        return self.did


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = World(monkeypatch)
    yield made
    made.loop.close()


API, STOPPED = DesiredApp("api", InlineSource({}, "/")), DesiredApp("old", InlineSource({}, "/"), running=False)


@pytest.mark.parametrize(
    ("there", "goes_on"),
    [({}, True), ({"closed": True}, False), ({"closed": True, "stays_failed": True}, True)],
)
def test_what_lives_goes_on_and_what_is_wanted_and_has_ended_is_started_again(world: World, there: dict[str, Any], goes_on: bool) -> None:
    world.there(API, **there)
    again = [("let go", "api"), ("forget", "api"), ("restore", "api", {}, {0: "its own"}), "save"]
    assert world.bring_back(API, names=["api"]) == ([] if goes_on else again)
    assert world.lines == ([] if goes_on else ["restored: api"])


def test_what_is_stopped_and_known_already_is_left_alone(world: World) -> None:
    world.there(STOPPED, closed=True)
    assert world.bring_back(STOPPED, names=["old"]) == []


def test_what_is_there_and_whose_generation_cannot_be_read_is_started_again_on_its_listeners(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.there(API, closed=True)
    monkeypatch.setattr(world.desk.brain.store, "names", lambda kind, name: [kind])
    did = world.bring_back(API, names=["api"])
    assert did[:3] == [("let go", "api"), ("forget", "api"), ("restore", "api", {}, {0: "its own"})]
    assert did[3][2].endswith("(its generation cannot be read)")


def test_what_is_stopped_is_known_again_and_nothing_is_said_of_it(world: World) -> None:
    assert world.bring_back(STOPPED) == [("restore", "old", {}, {})]
    assert not world.apps["old"].restored
    assert world.lines == []


@pytest.mark.parametrize("differs", [True, False])
def test_what_the_daemon_before_had_decided_and_not_written_down_is_written_down(world: World, differs: bool) -> None:
    world.there(API, desired=lambda: STOPPED if differs else API)
    assert world.bring_back(API, names=["api"]) == (["save"] if differs else [])


def test_what_is_known_by_what_was_left_of_it_only_is_written_down(world: World) -> None:
    world.there(API)
    assert world.bring_back(names=["api"], wanted={"api": API}) == ["save"]


def test_what_cannot_be_taken_over_is_started_again_on_its_listeners_with_the_values_that_it_had(world: World) -> None:
    world.env = {"KEY": "sesame", "PATH": "/bin"}
    api = DesiredApp("api", InlineSource({}, "/", env_names=("KEY", "GONE")))
    did = world.bring_back(api, let_go={"api": "missing 'state'", "who": "it has no scoreboard"})
    assert did[:2] == [("let go", "api"), ("restore", "api", {"KEY": "sesame"}, {0: "found"})]
    assert did[2][:2] == ("note", "api")
    assert did[3:] == ["save"]
    assert world.lines[0] == "who: left as it runs, nothing says where it is from (it has no scoreboard)"
    assert world.lines[1].endswith("started again: missing 'state'")


@pytest.mark.parametrize(("unusable", "every"), [(True, READ_AGAIN), (False, RESTORE_AGAIN)])
def test_a_start_that_fails_is_said_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch, unusable: bool, every: float) -> None:
    def restore(*args: Any) -> str:
        world.restore(*args)
        world.apps["api"].unusable = unusable
        return "api: no module"

    monkeypatch.setattr(bringback, "restore", restore)
    assert world.bring_back(API)[1:] == [("again", "api", every)]
    assert world.apps["api"].restored
    assert world.lines == ["restored no app; failed: api: no module"]


def test_what_a_boot_cannot_read_is_started_once_it_can_be_and_what_is_lacking_meanwhile_is_said(
    brain: Brain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is on a disk that is mounted after the boot, its folder on another one."""
    now = 100.0
    monkeypatch.setattr(brain.loop, "clock", lambda: now)
    begun: list[int] = []
    alive: list[float] = []  # who waits for a server of users, as a boot may, is no hang
    monkeypatch.setattr(brain, "begin", lambda app, number: begun.append(number))
    monkeypatch.setattr(brain.store, "alive", lambda: alive.append(now))
    desk: Any = SimpleNamespace(brain=brain, waiting={}, shutting_down=False, in_foreground=False, save=lambda: None, home=str(tmp_path))
    file = tmp_path / "disk" / "app.toml"
    bringback.bring_back(desk, {"api": DesiredApp("api", FileSource(str(file), "api"), generation=3)}, Adopted())
    said = []
    for step in (
        lambda: None,
        lambda: (file.parent.mkdir(), file.write_text('[apps.api]\ncommand = "sleep 9"\ncwd = "mnt"\n')),
        lambda: (file.parent / "mnt").mkdir(),
        lambda: None,
    ):
        step()
        now += READ_AGAIN + 0.1
        brain.loop.turn(0)
        failure = brain.apps["api"].failure
        said.append((failure.message if failure else "", begun[:]))
        brain.apps["api"].running = bool(begun)
    no_folder = f"`cwd` of app `api` names {file.parent}/mnt, which does not exist"
    assert said == [("cannot read app.toml: no such file", []), (no_folder, []), (no_folder, [4]), (no_folder, [4])]
    assert len(set(alive)) == 4
    forget(desk, brain.apps["api"])


def test_a_failure_is_of_its_first_time_as_long_as_the_reason_is_the_same(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below it stands who has an address, and for how long."""
    with app_of_one_worker(State.STOPPED) as (app, _, _):
        reasons = iter(["in use\n  by x, started 2s ago", "in use\n  by x, started 7s ago", "no such address"])
        app.failure = Failure("in use\n  by x, started 1s ago", at="once")

        def refuse(*_: Any) -> None:
            raise ListenFailed(next(reasons))

        monkeypatch.setattr(auto, "read_again", refuse)
        monkeypatch.setattr(brain, "fail", lambda message, hint: Failure(message, hint=hint, at="now"))
        desk: Any = SimpleNamespace(brain=brain, home="")
        shown = [auto._begins(desk, app) or (app.failure.message, app.failure.at) for _ in range(3)]
    assert shown == [("in use\n  by x, started 2s ago", "once"), ("in use\n  by x, started 7s ago", "once"), ("no such address", "now")]


NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_what_there_is_no_descriptor_for_waits_and_is_tried_until_there_is(world: World) -> None:
    world.restores["api"] = NO_DESCRIPTOR
    assert world.bring_back(API, STOPPED)[1] == ("failed", "api", "cannot be restored yet: Too many open files")
    assert world.did[-1] == ("restore", "old", {}, {})  # the others are
    assert list(world.desk.waiting) == ["api"]
    for _ in range(2):
        assert world.later() == [("restore", "api", {}, {})]
    del world.restores["api"]
    world.lines.clear()
    assert world.later() == [("restore", "api", {}, {}), "save"]
    assert (world.lines, world.apps["api"].restored) == (["restored api"], True)
    assert world.later() == []


def test_what_waited_and_cannot_be_started_then_is_tried_again_as_any_other(world: World) -> None:
    world.restores["api"] = NO_DESCRIPTOR
    world.bring_back(API)
    world.restores["api"] = "api: no module"
    assert world.later() == [("restore", "api", {}, {}), ("again", "api", RESTORE_AGAIN), "save"]


@pytest.mark.parametrize("by", ["shutdown", "start", "delete"])
def test_what_waits_is_not_tried_any_more_when_somebody_has_decided_otherwise(world: World, by: str) -> None:
    world.restores["api"] = NO_DESCRIPTOR
    world.bring_back(API)
    world.desk.shutting_down = by == "shutdown"
    if by == "start":
        world.apps["api"] = SimpleNamespace(closed=False, delete_when_closed=False)
    if by == "delete":
        world.desk.waiting.clear()
    assert world.later() == []
    assert world.later() == []


def test_descriptors_are_kept_for_the_daemon_itself_while_it_brings_back_and_given_back_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    during: list[int] = []

    def restore(*args: Any) -> str:
        during.append(len(open_fds() - before))
        return world.restore(*args)

    monkeypatch.setattr(bringback, "restore", restore)
    world.bring_back(API)
    assert during == [bringback.OWN_FDS]
    assert open_fds() == before


def test_an_app_that_was_to_be_deleted_is_by_the_daemon_after_one_that_was_killed_over_it(brain: Brain) -> None:
    saved: list[tuple[list[str], list[str]]] = []
    operations = SimpleNamespace(look=lambda app: None)
    desk: Any = SimpleNamespace(brain=brain, home="", operations=operations)
    desk.save = lambda: saved.append(([*brain.apps], [*brain.store.fds]))
    with app_of_one_worker(State.STOPPED) as (app, *_):
        app.closed = app.delete_when_closed = True
        app.board = Board.create("api")  # which is closed with it
        brain.apps["api"] = app
        brain.store.put("ledger.api", memfd("ledger", b""))
        bringback.bring_back(desk, {}, Adopted(names=["api"]))
    # what says that it is to be deleted is there until it is
    assert saved == [([], ["ledger.api"])]
    assert (brain.apps, brain.store.fds) == ({}, {})

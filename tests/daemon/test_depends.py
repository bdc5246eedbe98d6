"""Who is looked at again when something happens to an app. Whole starts are in tests/system/test_depends_hooks.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyworker.daemon.app import App, Failure
from pyworker.daemon.depends import Depends
from pyworker.policy.lifecycle import State
from pyworker.policy.restart import CLEAR
from pyworker.protocol.events import Event


def an_app(name: str, *depends_on: str, wanted: bool = True) -> Any:
    return SimpleNamespace(
        name=name, config=SimpleNamespace(depends_on=depends_on), generation=1, running=wanted, starting=True, wanted=wanted,
        blocked=None, failure=None, record=CLEAR, finished_slots=set(), restart_to=None, is_job=False, is_empty=lambda: True,
        slots=lambda: [1], runs_once=False,
    )  # fmt: skip


def test_only_who_waits_for_an_app_has_a_round_when_something_happens_to_it() -> None:
    apps = {app.name: app for app in (an_app("db"), an_app("api", "db"), an_app("web", "api"), an_app("other", "far"))}
    poked: list[str] = []
    subscribers: list[Any] = []
    brain: Any = SimpleNamespace(
        apps=apps, events=SimpleNamespace(subscribe=subscribers.append), poke=lambda app: poked.append(app.name)
    )
    depends = Depends(brain)

    def rounds() -> list[str]:
        """Have rounds until nobody is poked any more; return who had one."""
        had = []
        while poked:
            had.append(poked.pop(0))
            depends.gate(apps[had[-1]])
        return had

    poked += apps
    rounds()
    subscribers[0](Event(1, "", "db", 1, "worker_ready", {}))
    assert rounds() == ["api"]
    apps["db"].wanted = apps["db"].running = False
    subscribers[0](Event(2, "", "db", None, "app_stopped", {}))
    assert rounds() == ["api", "web"]
    assert apps["web"].blocked.message == "waits for api, which waits for db, which is stopped"
    db = apps.pop("db")
    subscribers[0](Event(3, "", "db", None, "app_deleted", {}))
    assert rounds() == ["api", "web"]
    assert apps["web"].blocked.message == "waits for api, which waits for db, which is not known here"
    apps["db"] = db
    db.wanted = db.running = True
    subscribers[0](Event(4, "", "db", None, "app_started", {}))
    assert rounds() == ["api", "web"]
    assert apps["web"].blocked is None


def test_apps_that_wait_for_one_another_are_not_looked_at_without_end() -> None:
    apps = {app.name: app for app in (an_app("a", "b", "gone"), an_app("b", "a"))}
    poked: list[str] = []
    brain: Any = SimpleNamespace(
        apps=apps, events=SimpleNamespace(subscribe=lambda _: None), poke=lambda app: poked.append(app.name)
    )
    depends = Depends(brain)
    poked += apps
    for _ in range(10):
        if poked:
            depends.gate(apps[poked.pop(0)])
    assert poked == []


def test_an_app_does_not_wait_in_vain_for_one_that_is_about_to_be_started_anew() -> None:
    db = an_app("db")
    api = an_app("api", "db")
    brain: Any = SimpleNamespace(
        apps={"db": db, "api": api}, events=SimpleNamespace(subscribe=lambda _: None), poke=lambda app: None
    )
    db.running, db.restart_to = False, 2
    db.failure = Failure("no disk")
    Depends(brain).gate(api)
    assert api.blocked is None
    db.restart_to = None
    Depends(brain).gate(api)
    assert api.blocked.message == "waits for db, which failed: no disk"


def test_how_a_worker_ended_that_was_scaled_away_keeps_nobody_waiting() -> None:
    migration = an_app("migration")
    migration.slots = list
    migration.finished_slots, migration.last_exits = {1}, {1: {"code": 0}, 2: {"code": 1}}
    migration.has_ended_badly = lambda: App.has_ended_badly(migration)
    api = an_app("api", "migration")
    brain: Any = SimpleNamespace(
        apps={"migration": migration, "api": api}, events=SimpleNamespace(subscribe=lambda _: None)
    )
    assert Depends(brain).gate(api) == frozenset()
    migration.finished_slots = {1, 2}
    assert Depends(brain).gate(api) == {1}


def test_an_app_stops_after_those_that_depend_on_it_and_leave_as_it_does() -> None:
    web, db = an_app("web", "db"), an_app("db")
    for app in (web, db):
        app.is_stopping, app.hurry, app.is_empty = True, False, lambda: False
        app.workers = {1: SimpleNamespace(state=State.READY)}
    poked: list[str] = []
    subscribers: list[Any] = []
    brain: Any = SimpleNamespace(
        apps={"web": web, "db": db},
        events=SimpleNamespace(subscribe=subscribers.append),
        poke=lambda app: poked.append(app.name),
    )
    depends = Depends(brain)
    assert depends.stops_after(web) == ()
    assert depends.stops_after(db) == ("web",)
    subscribers[0](Event(1, "", "web", None, "app_stopped", {}))
    assert poked == ["db"]

    def without(app: Any, **changes: Any) -> bool:
        """Whether db waits no more when this is so of an app."""
        before = vars(app).copy()
        vars(app).update(changes)
        waits = depends.stops_after(db)
        vars(app).update(before)
        assert depends.stops_after(db) == ("web",)
        return not waits

    assert without(web, is_stopping=False)  # it goes on, or is restarted
    assert without(web, is_empty=lambda: True)  # it has failed, or never started
    assert without(web, is_job=True)
    assert without(web, config=None)
    assert without(db, is_stopping=False)
    assert without(db, hurry=True)
    assert without(db, config=SimpleNamespace(depends_on=("web",)))  # a circle, of a file that was half reloaded
    assert without(db, workers={1: SimpleNamespace(state=State.DRAINING)})  # it is too late
    assert not without(web, workers={1: SimpleNamespace(state=State.DRAINING)})

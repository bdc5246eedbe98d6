"""The end of all apps, and of the daemon: what a later one is to bring back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyworker.daemon.requests.shutdown import shut_down


def an_app(*, wanted: bool, closed: bool) -> Any:
    return SimpleNamespace(wanted=wanted, running=not closed, closed=closed, hurry=False, notes=[])


def test_what_was_wanted_stays_so_and_whatever_has_not_ended_is_stopped_once_it_is_written_down() -> None:
    done: list[str] = []
    apps = {"runs": an_app(wanted=True, closed=False), "leaves": an_app(wanted=False, closed=False), "gone": an_app(wanted=False, closed=True)}
    brain = SimpleNamespace(apps=apps, poke=lambda app: None, emit=lambda app, *_: done.append(f"stopped, wanted: {app.wanted}"))
    desk: Any = SimpleNamespace(
        brain=brain, shutting_down=False, save=lambda: done.append("saved"), on_shutdown=lambda: done.append("ends"),
        operations=SimpleNamespace(look=lambda app: done.append(f"told, wanted: {app.wanted}")),
    )  # fmt: skip
    stopped = ["stopped, wanted: False", "told, wanted: False"]
    assert shut_down(desk, now=False) == ["runs", "leaves"]
    assert done == ["saved", *stopped, *stopped, "ends"]
    assert {name: (app.wanted, app.hurry) for name, app in apps.items()} == {"runs": (True, False), "leaves": (False, False), "gone": (False, False)}
    assert desk.shutting_down
    done.clear()
    assert shut_down(desk, now=True) == ["runs", "leaves"]  # told again: without a drain
    assert {name: (app.wanted, app.hurry) for name, app in apps.items()} == {"runs": (True, True), "leaves": (False, True), "gone": (False, False)}
    assert not {"saved", "ends"} & set(done)

from __future__ import annotations

from typing import Any

from tests.support.cli import run
from tests.support.fake_control import FakeControl, replies


def compared(name: str, *changes: dict[str, Any]) -> dict[str, Any]:
    return {"app": name, "file": "/srv/app.toml", "gen": 1, "running": True, "scaled": None, "changes": list(changes)}


def test_apps_that_are_the_same_are_one_line_beside_those_that_are_not(home: str) -> None:
    change = {"key": "workers", "old": 2, "new": 4, "apply": "live", "secret": False}
    body = {"v": 1, "same": False, "changes": [], "apps": [compared("api", change), compared("db"), compared("web")]}
    with FakeControl(home, {"diff": replies(body)}):
        found = run("diff", home=home)
        named = run("diff", "db", home=home)
    assert found.code == 1
    assert found.out.splitlines()[-1] == "The same: db, web"
    assert "db: the same (generation 1)" in named.out


def test_a_reload_that_has_a_gap_is_not_said_to_have_none(home: str) -> None:
    change = {"key": "env.A", "old": None, "new": "1", "apply": "reload", "secret": False}
    apps = [{**compared(name, change), "gap": name == "beat"} for name in ("api", "beat")]
    with FakeControl(home, {"diff": replies({"v": 1, "same": False, "changes": [], "apps": apps})}):
        text = run("diff", home=home).out
    assert "pyworker reload api   applies all of this without a gap\n" in text
    assert "pyworker reload beat   applies all of this; there is a gap\n" in text

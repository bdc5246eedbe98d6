from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.cli import run, run_on_terminal
from tests.support.fake_control import FakeControl, replies


def compared(name: str, *changes: dict[str, Any]) -> dict[str, Any]:
    what = {"app": name, "file": "/srv/app.toml", "gen": 1, "running": True, "overlaps": True, "scaled": None}
    return {**what, "changes": list(changes)}


def test_apps_that_are_the_same_are_one_line_beside_those_that_are_not(home: str) -> None:
    change = {"key": "workers", "old": 2, "new": 4, "apply": "live", "secret": False}
    body = {"v": 1, "same": False, "changes": [], "apps": [compared("api", change), compared("db"), compared("web")]}
    with FakeControl(home, {"diff": replies(body)}):
        found = run("diff", home=home)
        named = run("diff", "db", home=home)
    assert found.code == 1
    assert found.out.splitlines()[-1] == "The same: db, web"
    assert "db: the same (generation 1)" in named.out


def test_its_commands_name_the_home_that_was_named(home: str, tmp_path: Path) -> None:
    change = {"key": "workers", "old": 2, "new": 4, "apply": "live", "secret": False}
    body = {"v": 1, "same": False, "changes": [], "apps": [compared("api", change)]}
    with FakeControl(home, {"diff": replies(body)}):
        found = run("diff", "--home", home, home=str(tmp_path / "another"), HOME="/nowhere")
    assert f"pyworker --home {home} reload api   applies" in found.out


def test_where_nothing_was_started_since_a_boot_no_app_is_said_to_be_unknown(home: str) -> None:
    with FakeControl(home, {"diff": replies({"v": 1, "same": True, "changes": [], "apps": []})}):
        found = run("diff", home=home)
    assert (found.code, found.out) == (0, "")
    assert found.err == "There is nothing to compare: no app has been started since the daemon was.\n"


def test_no_gap_is_promised_only_where_old_and_new_workers_live_side_by_side(home: str) -> None:
    change = {"key": "env.A", "old": "1", "new": "2", "apply": "reload", "secret": False}
    apps = [compared("api", change), {**compared("jobs", change), "overlaps": False}]
    with FakeControl(home, {"diff": replies({"v": 1, "same": False, "changes": [], "apps": apps})}):
        lines = run("diff", home=home).out.splitlines()
    assert "pyworker reload api   applies all of this without a gap" in lines
    assert "pyworker reload jobs   applies all of this: the old workers stop first" in lines


def test_beside_a_long_name_of_a_variable_no_row_is_filled_with_blanks(home: str) -> None:
    changes = [
        {"key": "workers", "old": 3, "new": 4, "apply": "live", "secret": False},
        {"key": "env.A_NAME_OF_MORE_THAN_THIRTY_LETTERS", "old": "a" * 20, "new": "b" * 20, "apply": "live", "secret": False},
    ]  # fmt: skip
    with FakeControl(home, {"diff": replies({"v": 1, "same": False, "changes": [], "apps": [compared("api", *changes)]})}):
        shown = run_on_terminal("diff", home=home, columns=60).screen.text.splitlines()
    assert [len(line) for line in shown[1:-1] if len(line) > 60] == []
    assert f"      {'a' * 20} → {'b' * 20}" in shown

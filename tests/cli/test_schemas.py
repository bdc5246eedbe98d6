"""`--json` of every command against the schemas that are shipped; a real daemon's answers are held to them in tests/system/test_json.py."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest

from pyworker.cli.names import COMMANDS
from tests.cli.scenes import SCENES, Scene, stage
from tests.support.cli import environment, run
from tests.support.schemas import check, check_operation, names

NO_JSON = {"help", "help-start"}
# a server and the foreground: their first line, and the log, are tested with them
ELSEWHERE = {"run", "web"}


@pytest.mark.parametrize("scene", [s for s in SCENES if s.name not in NO_JSON], ids=lambda scene: scene.name)
@pytest.mark.parametrize("before", [False, True])
def test_json_is_as_its_schema_says_and_stdout_has_nothing_else(scene: Scene, before: bool) -> None:
    args = ("--json", *scene.args) if before else (*scene.args, "--json")
    with stage(scene) as at:
        done = run(*args, home=at.home, cwd=at.folder, LC_ALL="C" if before else "")
    assert done.code == scene.code, done
    assert done.out.isascii() or not before
    if scene.schema == "error":
        assert done.out == ""
        (line,) = done.err.splitlines()
        value = json.loads(line)
        check("error", value)
        assert value["error"]["exit"] == scene.code
        return
    assert done.err == ""
    values = [json.loads(line) for line in done.out.splitlines()] if scene.lines else [json.loads(done.out)]
    assert values
    if scene.schema == "operation":
        check_operation(values)
        return
    for value in values:
        check(scene.schema, value)
        assert value["v"] == 1


def test_every_command_is_among_them() -> None:
    good = {s.args[0] for s in SCENES if s.args and s.schema not in ("", "error")}
    assert set(COMMANDS) - good == ELSEWHERE


def test_the_page_names_every_schema() -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "json.md").read_text().partition("## Schemas")[2]
    assert set(re.findall(r"`([a-z]+)`", page)) >= names()


def test_every_schema_is_used() -> None:
    used = {s.schema for s in SCENES} - {"", "operation"} | {"progress", "result", "web"}
    assert names() == used


def test_the_dashboards_first_line_is_json_too(home: str) -> None:
    pytest.importorskip("starlette", reason="the dashboard is an extra: pip install 'pyworker[web]'")
    argv = [sys.executable, "-m", "pyworker", "web", "--json", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment(home), text=True) as process:
        assert process.stdout is not None
        value = json.loads(process.stdout.readline())
        process.terminate()
    check("web", value)
    assert value["url"].startswith("http://127.0.0.1:")

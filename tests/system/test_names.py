"""Names of workers (api.2): what narrows to one, what wants whole apps, and a worker that is not there."""

from __future__ import annotations

import json

import pytest

from tests.support.pyworker import Pyworker

APP = """
import os, sys
print("hello of", os.environ.get("PYWORKER_SLOT", "?"), flush=True)
async def app(scope, receive, send):
    pass
"""


@pytest.fixture
def started(pw: Pyworker) -> Pyworker:
    pw.api(APP, workers=3)
    pw.ok("start", "app.toml")
    return pw


def test_a_worker_narrows_what_is_shown_to_it(started: Pyworker) -> None:
    (app,) = json.loads(started.ok("ps", "api.2", "--json").stdout)["apps"]
    assert ([w["worker"] for w in app["pool"]], app["workers"]["ready"]) == ([2], 3)
    assert [row.split()[0] for row in started.ok("ps", "api.2").stdout.splitlines()] == ["WORKER", "api.2"]
    (app,) = json.loads(started.ok("describe", "api.2", "--json").stdout)["apps"]
    assert {w["worker"] for w in app["pool"]} == {e["worker"] for e in app["events"]} == {2}
    assert len(json.loads(started.ok("ps", "api.2", "api", "--json").stdout)["apps"][0]["pool"]) == 3
    started.ok("ps", "--check", "api.2")
    started.ok("stop", "api.2")
    assert started.run("ps", "--check", "api.2").returncode == 3


def test_what_concerns_whole_apps_refuses_a_worker(started: Pyworker) -> None:
    for command in ("diff", "config", "config env", "wait", "metrics", "top --once", "flush", "reload", "delete"):
        refused = started.run(*command.split(), "api.2")
        assert (command, refused.returncode, refused.stdout) == (command, 4, "")
        assert "api.2 is a worker: this is done with whole apps" in refused.stderr


def test_a_worker_that_is_not_there_is_said_with_those_that_are(started: Pyworker) -> None:
    for command in ("ps", "describe", "logs", "logs -f", "diff", "config", "wait", "stack", "stop", "delete"):
        refused = started.run(*command.split(), "api.9")
        assert (command, refused.returncode, refused.stdout) == (command, 4, "")
        assert "api has no worker 9: they are 1 to 3" in refused.stderr


def test_nothing_is_done_when_one_of_several_names_is_wrong(started: Pyworker) -> None:
    before = [w["pid"] for w in started.app("api")["pool"]]
    for command, wrong in (("stop", "api.9"), ("restart", "api.9"), ("delete", "api.9"), ("delete", "api.2"), ("stop", "web")):
        refused = started.run(command, "api", wrong)
        assert (command, wrong, refused.returncode, refused.stdout) == (command, wrong, 4, "")
    app = started.app("api")
    assert (app["state"], [w["pid"] for w in app["pool"]]) == ("running", before)


def test_a_name_that_is_taken_is_said_with_where_another_is_written(started: Pyworker) -> None:
    started.write("other.toml", '[app]\nname = "api"\ncommand = ["sleep", "60"]\n')
    for words, where in ((("other.toml",), "in other.toml"), (("--name", "api", "--", "sleep", "60"), "--name")):
        refused = started.run("start", *words)
        assert refused.returncode == 1
        assert f"choose another name ({where}), or: pyworker delete api" in refused.stderr

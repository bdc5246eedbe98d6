"""Every --json answer of a real daemon against the schemas that are shipped in the package."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from tests.cli import documents
from tests.support.pyworker import Pyworker, kill
from tests.support.schemas import check, check_operation, names, schema
from tests.support.wait import wait_until

APP = """\
import os, time
def app(environ, start_response):
    if environ["PATH_INFO"] == "/die":
        os._exit(3)
    print('{"level":"info","msg":"served"}', flush=True)
    start_response("500 x" if environ["PATH_INFO"] == "/bad" else "200 OK", [])
    return [b"ok"]
"""


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_schemas_are_schemas_and_refuse_what_is_wrong() -> None:
    assert len(names()) >= 10
    for name in names():
        jsonschema.Draft202012Validator.check_schema(schema(name))
    document = documents.ps()
    for app in document["apps"]:
        app["config"]["file"] = None
    document["apps"][0]["state"] = "fine"
    assert not jsonschema.Draft202012Validator(schema("ps")).is_valid(document)
    del document["apps"][0]["pool"]
    assert not jsonschema.Draft202012Validator(schema("ps")).is_valid(document)
    assert not jsonschema.Draft202012Validator(schema("result")).is_valid({"v": 1, "type": "result"})


def test_every_answer_is_as_its_schema_says(pw: Pyworker) -> None:
    pw.api(APP, tables='[app.env]\nSECRET_KEY = "x"')
    refused = pw.run("ps", "--json")
    assert (refused.returncode, refused.stdout) == (69, "")
    check("error", json.loads(refused.stderr))

    check("check", json.loads(pw.ok("check", "app.toml", "--json").stdout))
    check_operation(lines(pw.ok("start", "app.toml", "--json").stdout))
    check("wait", json.loads(pw.ok("wait", "api", "--json").stdout))
    for _ in range(3):
        pw.get("/")
    found = pw.ps()
    check("ps", found)
    assert found["apps"][0]["http"]["status"]["2xx"] == 3
    assert found["apps"][0]["http"]["p50_s"] > 0  # no reading of `wait` is in its way: that one measures nothing
    check("ps", json.loads(pw.ok("top", "--json", "--once").stdout))
    status = json.loads(pw.ok("daemon", "status", "--json").stdout)
    check("status", status)
    assert status["rss_bytes"] > 1_000_000
    check("config", json.loads(pw.ok("config", "app.toml", "--json", "--origin").stdout))
    check("config", json.loads(pw.ok("config", "api", "--json", "--origin").stdout))
    check("config", json.loads(pw.ok("config", "env", "api", "--json").stdout))
    check("stack", json.loads(pw.ok("stack", "api", "--json").stdout))
    check("send", json.loads(pw.run("send", "api", "1", "--json").stdout))
    check("doctor", json.loads(pw.run("doctor", "--json").stdout))
    pw.write("Procfile", "web: gunicorn web:app\n")
    check("import", json.loads(pw.ok("import", "Procfile", "-o", "-", "--json").stdout))
    pw.api(APP, tables='[app.env]\nSECRET_KEY = "x"\nMORE = "1"')
    changed = pw.run("diff", "api", "--json")
    assert changed.returncode == 1
    check("diff", json.loads(changed.stdout))
    check_operation(lines(pw.ok("reload", "api", "--json").stdout))
    check_operation(lines(pw.ok("scale", "api=3", "--json").stdout))

    kill(pw.wait_steady()["pool"][0]["pid"])
    wait_until(
        lambda: any(e["type"] == "worker_exited" for e in lines(pw.ok("events", "--json").stdout)), 30, "its end"
    )
    described = json.loads(pw.ok("describe", "api", "--json").stdout)
    check("describe", described)
    (app,) = described["apps"]
    assert {"name": "SECRET_KEY", "value": "***", "origin": "[env]"} in app["env"]
    assert [e["type"] for e in app["exits"]] == ["worker_exited"]
    assert app["pss_bytes"] > 0
    # what the workers that are gone have answered still counts
    assert app["http"]["status"]["2xx"] == app["requests"] == 3
    for event in lines(pw.ok("events", "--json").stdout):
        check("event", event)
    logged = lines(pw.ok("logs", "api", "--json").stdout)
    assert [line["fields"]["msg"] for line in logged if "fields" in line] == ["served"] * 3
    for line in logged:
        check("log", line)
    unknown = pw.run("describe", "nosuch", "--json")
    assert (unknown.returncode, unknown.stdout) == (4, "")
    check("error", json.loads(unknown.stderr))
    check_operation(lines(pw.ok("stop", "api", "--json").stdout))
    check("ps", pw.ps())
    pw.write("web.py", "import no_such_module")
    failed = pw.run("start", "app.toml", "--json")
    assert failed.returncode == 1
    check_operation(lines(failed.stdout))
    check("ps", pw.ps())


def test_an_app_is_not_described_with_the_exits_of_another_one_that_had_its_name(pw: Pyworker) -> None:
    pw.api(APP)
    pw.ok("start", "app.toml")
    kill(pw.pids()[0])
    wait_until(lambda: json.loads(pw.ok("describe", "api", "--json").stdout)["apps"][0]["exits"], 30, "its end")
    pw.ok("delete", "api", "-y")
    pw.ok("start", "app.toml")
    assert json.loads(pw.ok("describe", "api", "--json").stdout)["apps"][0]["exits"] == []


def test_a_start_has_one_time_however_often_it_is_told_and_the_next_daemon_knows_it(pw: Pyworker) -> None:
    """Prometheus counts every other value of a start time as a restart."""
    pw.api(APP)
    pw.ok("start", "app.toml")
    before = {w["started_at"] for _ in range(20) for w in pw.app()["pool"] if w["worker"] == 1}
    kill(pw.role("daemon"))
    after = {w["started_at"] for _ in range(5) for w in pw.app()["pool"] if w["worker"] == 1}
    assert before == after
    assert len(after) == 1
    began = pw.app()["started_at"]
    pw.ok("stop", "api")
    pw.ok("start", "api")
    assert pw.app()["started_at"] > began

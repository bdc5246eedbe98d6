"""[app.health]: a sick worker is replaced, its successor first, and never the last one that serves."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive
from tests.support.sources import ASGI
from tests.support.wait import wait_until

SICK = ASGI.replace(
    '    if path == "/slow":',
    '    if path == "/health" and (hoard or os.path.exists("sick")):\n        raise RuntimeError("no database")\n'
    '    if path == "/sicken":\n        hoard.append(1)\n    if path == "/slow":',
)
OFTEN = 'interval = "200ms"\ntimeout = "2s"\nretries = 2\n'
HTTP = f'[app.health]\npath = "/health"\n{OFTEN}'


def events(pw: Pyworker) -> list[tuple[str, int]]:
    lines = pw.ok("events", "api", "-n", "200", "--json").stdout.splitlines()
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [(event["type"], event["data"].get("pid", 0)) for event in found]


def test_a_worker_that_lives_but_does_not_answer_well_is_replaced_its_successor_first(pw: Pyworker) -> None:
    pw.api(SICK, tables=HTTP)
    pw.ok("start", "app.toml")
    before = pw.pids()
    with Load(pw.port, "new", "keep") as load:
        sick = int(pw.get("/sicken").split()[1])
        wait_until(lambda: not alive(sick), LONG, "the sick worker to be replaced")
        after = [worker["pid"] for worker in pw.wait_steady()["pool"]]
        load.wait_more(20)
    assert load.lost == []
    (successor,) = set(after) - set(before)
    assert set(before) - {sick} <= set(after)
    order = [event for event in events(pw) if event in {("worker_unhealthy", sick), ("worker_ready", successor), ("worker_draining", sick)}]  # fmt: skip
    assert order == [("worker_unhealthy", sick), ("worker_ready", successor), ("worker_draining", sick)]


def test_while_all_are_sick_they_serve_on_and_are_well_again_when_the_cause_is_gone(pw: Pyworker) -> None:
    pw.api(SICK, tables=HTTP)
    pw.ok("start", "app.toml")
    before = pw.pids()
    with Load(pw.port, "new", "keep") as load:
        pw.write("sick", "")
        wait_until(lambda: sum(kind == "worker_unhealthy" for kind, _ in events(pw)) >= 3, LONG, "successors that are sick, too")
        assert [pid for pid in before if alive(pid)] == before
        assert "unhealthy: GET /health answered " in pw.ok("ps").stderr
        assert ", 0 failing" not in pw.ok("describe", "api").stdout
        load.wait_more(20)
        os.unlink(os.path.join(pw.folder, "sick"))
        wait_until(lambda: pw.app()["state"] == "running", LONG, "all to be well")
        pw.wait_steady()
        load.wait_more(20)
    assert load.lost == []


def test_a_start_says_that_the_first_checks_fail_and_the_app_serves_on_until_they_pass(pw: Pyworker) -> None:
    pw.api(SICK, tables='[app.health]\npath = "/health"\ninterval = "2s"\nretries = 3\n')
    pw.write("sick", "")
    done = pw.run("start", "app.toml")
    assert done.returncode == 1
    late = re.findall("api: worker [12] has not passed its health check yet: GET /health answered 500, expected 2xx", done.stderr)
    assert len(late) == 1
    assert "error: api runs, but api.1 fails its health check: GET /health answered 500, expected 2xx" in done.stderr
    pw.get("/")
    done = pw.run("restart", "api", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, result["action"], result["state"]) == (1, "unhealthy", "degraded")
    pw.get("/")
    assert "api is degraded: api.1 fails its health check: " in pw.run("doctor").stdout
    done = pw.run("start", "app.toml")  # again
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: api runs, but api.1 fails its health check: " in done.stderr
    os.unlink(os.path.join(pw.folder, "sick"))
    wait_until(lambda: any(kind == "worker_healthy" for kind, _ in events(pw)), LONG, "a check to pass")
    pw.ok("restart", "api")


def test_a_worker_that_a_command_adds_or_replaces_has_to_pass_its_first_check_and_leaves_the_old_one_until_it_has(
    pw: Pyworker,
) -> None:
    pw.api(SICK, tables=HTTP)
    pw.ok("start", "app.toml")
    first, _ = pw.pids()
    pw.write("sick", "")
    done = pw.run("restart", "api.1")
    assert done.returncode == 1
    failure = "fails its health check: GET /health answered 500, expected 2xx"
    assert f"error: api was not restarted, gen 1 goes on: the new api.1 {failure}" in done.stderr
    assert alive(first)
    done = pw.run("scale", "api=3", "--save")
    assert done.returncode == 1
    assert f"error: api runs, but api.3 {failure}" in done.stderr
    assert "no file was changed" in done.stderr
    pw.ok("stop", "api.2")
    done = pw.run("start", "api.2")
    assert done.returncode == 1
    assert f"error: api runs, but api.2 {failure}" in done.stderr
    os.unlink(os.path.join(pw.folder, "sick"))
    wait_until(lambda: not alive(first), LONG, "the first to be replaced, as it was told")
    for command in (("restart", "api.1"), ("scale", "api=4"), ("stop", "api.2"), ("start", "api.2")):
        pw.ok(*command)


def test_what_depends_on_an_app_starts_once_that_passes_a_check(pw: Pyworker) -> None:
    pw.write("app.py", SICK)
    pw.write("sick", "")
    pw.write(
        "app.toml",
        f'[apps.api]\ntarget = "app:app"\nbind = "127.0.0.1:{pw.port}"\n[apps.api.health]\npath = "/health"\n{OFTEN}'
        '[apps.late]\ncommand = ["sleep", "1000"]\ndepends_on = "api"\n',
    )
    done = pw.run("start")
    assert done.returncode == 1
    assert "late did not start: waits for api, which fails its health check" in done.stderr
    assert "= help: pyworker ps api   says how; late starts by itself then" in done.stderr
    assert pw.app("late")["pool"] == []
    os.unlink(os.path.join(pw.folder, "sick"))
    wait_until(lambda: pw.app("late")["state"] == "running", LONG, "late to start")


TCP = """
import os, socket, time
listener = socket.create_server(("127.0.0.1", PORT))
while not os.path.exists("sick"):
    time.sleep(0.01)
listener.close()
os.unlink("sick")
time.sleep(1000)
"""
COMMANDS = {
    "exec": ('["sh", "-c", "rm -f sick; exec sleep 1000"]', 'type = "exec"\ncommand = ["test", "!", "-e", "sick"]\n'),
    "tcp": ('["python3", "tcp.py"]', 'type = "tcp"\nport = PORT\n'),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_sick_command_is_replaced(pw: Pyworker, kind: str) -> None:
    command, health = (text.replace("PORT", str(pw.port)) for text in COMMANDS[kind])
    pw.write("tcp.py", TCP.replace("PORT", str(pw.port)))
    pw.write("app.toml", f'[app]\nname = "api"\ncommand = {command}\n[app.health]\n{health}{OFTEN}')
    pw.ok("start", "app.toml")
    (first,) = pw.pids()
    pw.write("sick", "")
    wait_until(lambda: not alive(first), LONG, "the sick command to be replaced")
    app = pw.wait_steady()
    assert app["state"] == "running"
    assert ("worker_unhealthy", first) in events(pw)


def test_a_check_that_never_passes_is_named_as_what_keeps_an_app_from_being_ready(pw: Pyworker) -> None:
    pw.write(
        "app.toml",
        '[app]\nname = "api"\ncommand = ["sleep", "1000"]\n[app.reload]\nready_timeout = "2s"\n'
        f'[app.health]\ntype = "exec"\ncommand = ["sh", "-c", "echo no disk; exit 3"]\n{OFTEN}',
    )
    done = pw.run("start", "app.toml")
    assert done.returncode == 1
    assert "api: worker 1 has not passed its health check yet: " in done.stderr  # told before it is given up
    assert "not ready within 2 s: it fails its health check: " in done.stderr
    assert "no disk" in done.stderr


def test_ps_says_what_a_start_waits_for_while_a_check_has_not_passed(pw: Pyworker) -> None:
    check = f'[app.health]\ntype = "exec"\ncommand = ["sh", "-c", "test -e up || (echo no disk; exit 3)"]\n{OFTEN}'
    pw.write("app.toml", f'[app]\nname = "api"\ncommand = ["sleep", "1000"]\n{check}')
    pw.ok("start", "app.toml", "--no-wait")
    wait_until(lambda: pw.app()["notes"], LONG, "the note")
    said = pw.ok("ps").stderr
    assert "api: worker 1 has not passed its health check yet: sh: exit code 3: no disk" in said
    assert said.count("no disk") == 1
    pw.write("up", "")
    pw.wait_steady()
    assert pw.app()["notes"] == []

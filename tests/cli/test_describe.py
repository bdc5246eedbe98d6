from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli import documents
from tests.support.cli import run, run_on_terminal
from tests.support.fake_control import FakeControl, replies

PIPED = """\
api — running, 4/4 workers ready

  target      shop.main:app (asgi)
  listening   http://127.0.0.1:8000
  balance     round-robin
  generation  7, since 3d 4h
  restarts    0 of 10 in the last 1m (0 total)
  limits      512 MB per worker
  requests    1,240/s, p50 3.1 ms, p99 25 ms
  errors      5xx 0.02% lately, 57 of 284,000 in all
  now         4 in flight, 16 connections
  queue       0 of 2048 waiting to be accepted
  config      /srv/shop/app.toml (unchanged)
  cwd         /srv/shop
  python      /srv/shop/.venv/bin/python
  user        deploy
  logs        /srv/state/logs/api.log
  health      http /healthz every 10s, 4 ok, 0 failing
  preload     imported once, then forked
  engine      uvicorn 0.54.0 (the app's)

Workers
  WORKER    PID  STATE  GEN   CPU  MEM  PSS  REQ/S  OPEN  RESTARTS  UPTIME  LAST EXIT
  api.1   41210  ready    7  9.8%  88M  48M    311     4         0  3d4h    -
  api.2   41211  ready    7  9.8%  88M  48M    311     4         0  3d4h    -
  api.3   41212  ready    7  9.8%  88M  48M    311     4         0  3d4h    -
  api.4   41213  ready    7  9.8%  88M  48M    311     4         0  3d4h    -

Last exits
  AGO   api.3  exited    pid 41208 killed by signal 9 (KILL) after 3.2s: out of memory
  → pyworker logs -p api   what the last of them printed

Environment   2 variables (1 from base, 1 from .env)
  NAME        VALUE  FROM
  STRIPE_KEY  ***    .env
  … 1 more with -v

Events
  AGO   api.3  recycled  pid 41212: memory 530 MB > 512 MB
"""


@pytest.mark.parametrize(
    ("program", "waiting", "balance", "is_told"),
    [("granian", 2, "shared", True), ("granian", 0, "shared", False), ("granian", 2, "proxy", False), ("/usr/bin/node", 2, "shared", False)],
)
def test_a_command_before_which_clients_wait_is_told_which_socket_it_has(
    home: str, program: str, waiting: int, balance: str, is_told: bool
) -> None:
    body = documents.describe()
    body["apps"][0] |= {"command": [program, "--port", "1"], "balance": balance, "queue": [[waiting, 2048]]}
    with FakeControl(home, {"describe": replies(body)}):
        found = run("describe", "api", home=home)
    assert f"{waiting} of 2048 waiting to be accepted" in found.out
    assert ("LISTEN_FDS (fd 3)" in found.out) is is_told


def test_the_card_is_plain_in_a_pipe(home: str) -> None:
    with FakeControl(home, {"describe": replies(documents.describe())}):
        found = run("describe", "api", home=home)
    assert (found.code, re.sub(r"\d+d \d+h ago|\d+d ago", "AGO", found.out), found.err) == (0, PIPED, "")


def test_its_commands_name_the_home_that_was_named(home: str, tmp_path: Path) -> None:
    with FakeControl(home, {"describe": replies(documents.describe())}):
        found = run("describe", "api", "--home", home, home=str(tmp_path / "another"), HOME="/nowhere")
    assert f"  → pyworker --home {home} logs -p api   what the last of them printed" in found.out


def test_a_worker_that_has_not_passed_its_check_is_not_ok_and_the_check_is_named(home: str) -> None:
    body = documents.describe()
    app = body["apps"][0]
    app["health"] = {"type": "exec", "path": "/", "command": ["sh", "-c", "exit 1"], "interval": 10.0}
    app["pool"][0] |= {"state": "starting", "reason": "sh: exit code 1: no heart"}
    with FakeControl(home, {"describe": replies(body)}):
        found = run("describe", "api", home=home)
    assert "  health      exec sh -c 'exit 1' every 10s, 3 ok, 0 failing, 1 not passed yet\n" in found.out


def test_the_card_has_every_limit(home: str) -> None:
    body = documents.describe()
    every = {"memory": "auto", "max_requests": 1000, "max_age": 3600.0, "request_timeout": 0.5, "nofile": 1024}
    body["apps"][0]["limits"] = {"max_requests_jitter": 50, **every}
    with FakeControl(home, {"describe": replies(body)}):
        found = run("describe", "api", home=home)
    all_of_them = "its share of the cgroup's memory per worker, 1,000 requests, 1h old, 500ms for a request, 1,024 open files"
    assert f"  limits      {all_of_them}\n" in found.out
    body["apps"][0]["limits"] = dict.fromkeys(every, 0)
    with FakeControl(home, {"describe": replies(body)}):
        found = run("describe", "api", home=home)
    assert "  limits      none\n" in found.out


def test_the_card_has_two_columns_where_they_fit_and_never_wraps(home: str) -> None:
    body = documents.describe()
    body["apps"][0]["env"] += [{"name": n, "value": "1", "origin": n} for n in ("pyworker", "inherit_env", "venv")]
    body["apps"][0]["notes"] = ["waits for base, which failed; mend it, then: pyworker restart base"]
    with FakeControl(home, {"describe": replies(body)}):
        wide = run_on_terminal("describe", "api", home=home, columns=120).screen
        narrow = run_on_terminal("describe", "api", home=home, columns=60).screen
    both = "  balance     round-robin                               python      /srv/shop/.venv/bin/python"
    assert both in wide.lines
    assert "● running" in wide.lines[0]
    assert all(len(text) <= 60 for text in narrow.lines)


def test_the_reason_comes_first_with_its_traceback_once(home: str) -> None:
    body = documents.describe()
    body["apps"][0] |= {"state": "failed", "last_failure": documents.ps()["apps"][4]["last_failure"]}
    with FakeControl(home, {"describe": replies(body)}):
        lines = run("show", "api", home=home).out.splitlines()
    assert lines[2].startswith("failed: gave up after 5 restarts in 60 s: ModuleNotFoundError")
    assert lines[3:6] == ['  File "mail.py", line 3, in <module>', "    import redis", "  = help: pip install redis"]


def test_an_app_that_is_tried_again_says_why_and_what_helps(home: str) -> None:
    failure = {"message": "cannot fork", "hint": "raise the limit of processes", "traceback": ""}
    body = documents.describe()
    body["apps"][0] |= {"state": "starting", "last_failure": failure, "backoff": {"try": 3, "max": 10, "in_s": 4.2}}
    with FakeControl(home, {"describe": replies(body)}):
        lines = run("describe", "api", home=home).out.splitlines()
    assert lines[2:4] == ["starting: cannot fork", "  = help: raise the limit of processes"]


def test_what_helps_against_the_last_end_is_said_once_also_of_an_app_that_goes_on(home: str) -> None:
    """A script that ends by itself with code 0 after a minute was started again each minute, and nothing said why."""
    body = documents.describe()
    body["apps"][0]["exits"][0]["data"] |= {"code": 0, "signal": None, "reason": "ended by itself with code 0", "hint": "a job that may end"}
    failure = {"message": "ended by itself with code 0", "hint": "a job that may end", "traceback": ""}
    with FakeControl(home, {"describe": replies(body)}) as daemon:
        assert "\n  → a job that may end\n" in run("describe", "api", home=home).out
        body["apps"][0] |= {"state": "degraded", "last_failure": failure}
        daemon.handlers["describe"] = replies(body)
        assert run("describe", "api", home=home).out.count("a job that may end") == 1


def test_a_command_and_a_script_are_called_what_they_are(home: str) -> None:
    """All of them were called a target."""
    app = documents.describe()["apps"][0]
    for what, shown in (
        ({"kind": "command", "command": ["sleep", "1 day"]}, "command     sleep '1 day'"),
        ({"kind": "script", "script": "/srv/serve.py"}, "script      /srv/serve.py"),
        ({"kind": "target"}, "target      shop.main:app"),
    ):
        with FakeControl(home, {"describe": replies({"v": 1, "apps": [{**app, **what}]})}):
            assert run("describe", "api", home=home).out.splitlines()[2] == f"  {shown}"


def test_when_a_job_runs_is_shown(home: str) -> None:
    body = documents.describe()
    body["apps"][0]["cron"] = "0 4 * * *"
    with FakeControl(home, {"describe": replies(body)}):
        assert "  runs        at 0 4 * * *" in run("describe", "api", home=home).out.splitlines()
    body["apps"][0]["next_run_at"] = "2026-11-29T03:00:00.000Z"
    body["apps"][0]["reload"]["cron"], body["apps"][0]["next_reload_at"] = "@hourly", "2026-11-29T01:00:00.000Z"
    with FakeControl(home, {"describe": replies(body)}):
        shown = run("describe", "api", home=home, TZ="AAA-1").out.splitlines()
    assert "  runs        at 0 4 * * *, next Sun 2026-11-29 04:00 AAA" in shown
    assert "  reload      at @hourly, next Sun 2026-11-29 02:00 AAA" in shown


def test_reveal_is_asked_of_the_daemon_and_everything_shown(home: str) -> None:
    with FakeControl(home, {"describe": replies(documents.describe())}) as daemon:
        found = run("describe", "api", "--reveal", home=home)
        document = json.loads(run("describe", "api", "--json", home=home).out)
    assert [request.reveal for request in daemon.requests] == [True, False]
    assert "  PATH        /usr/bin  base" in found.out
    assert document == {"v": 1, **documents.describe()}


@pytest.mark.parametrize(("command", "said"), [
    ("describe all", "No app is known here.\n"), ("config all", "No app is known here.\n"), ("flush all", "Nothing to do.\n"),
])  # fmt: skip
def test_without_apps_that_is_said(home: str, command: str, said: str) -> None:
    none = replies({"v": 1, "apps": []})
    with FakeControl(home, {"describe": none, "config": none}):
        found = run(*command.split(), home=home)
    assert (found.code, found.out, found.err) == (0, "", said)

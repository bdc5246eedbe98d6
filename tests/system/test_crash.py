"""Workers that die: what replaces them, when it is given up, and how it comes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, kill
from tests.support.sources import ASGI, WSGI, version
from tests.support.wait import wait_until


def test_a_killed_worker_loses_nothing_but_its_own_requests_and_is_replaced_alone(pw: Pyworker) -> None:
    pw.api(ASGI, workers=3)
    pw.ok("start", "app.toml")
    first, second, third = pw.pids()
    with Load(pw.port, "new", "keep") as load:
        load.wait_more(50)
        kill(second)
        load.wait_more(200)
    assert len(load.lost) <= 2, load.lost  # each of the two clients may have had one request in it
    pw.wait_restarts(1)
    app = pw.wait_steady()
    pids = [worker["pid"] for worker in app["pool"]]
    assert pids[0] == first
    assert pids[2] == third
    assert pids[1] not in (0, second)
    assert "KILL" in pw.ok("describe", "api").stdout
    assert pw.get().startswith("one")


def test_a_template_that_an_older_daemon_has_started_is_not_asked_for_workers_after_its_end(pw: Pyworker) -> None:
    pw.api(WSGI, tables='[app.restart]\nmin_uptime = "0s"')
    pw.ok("start", "app.toml")
    kill(pw.role("daemon"))
    pw.wait_steady()
    first, second = pw.pids()
    for pid in (pw.role("template"), first):
        kill(pid)
    pw.wait_restarts(1)
    assert pw.wait_steady()["pool"][1]["pid"] == second


LOOP = '[app.restart]\nmax_restarts = 3\nwindow = "60s"\nretry = "0s"\n'


def crash_until_failed(pw: Pyworker) -> None:
    """The app answers no request any more, so that each request ends a worker until it is given up."""

    def step() -> bool:
        if pw.app()["state"] == "failed":
            return True
        for pid in pw.pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        return False

    wait_until(step, 60.0, "the limiter to give up")


def test_a_crash_loop_is_given_up_with_its_cause_and_restart_tries_again(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1, tables=LOOP)
    pw.ok("start", "app.toml")
    crash_until_failed(pw)
    app = pw.app()
    assert "gave up" in str(app["last_failure"]), app["last_failure"]
    assert "KILL" in str(app["last_failure"]), app["last_failure"]
    assert app["restarts"]["max"] == 3
    pw.ok("restart", "api")
    assert pw.wait_steady()["state"] == "running"
    assert pw.get().startswith("one")


def test_a_failed_app_is_mended_by_new_code_and_a_reload(pw: Pyworker) -> None:
    pw.api(ASGI, workers=2, tables=LOOP)
    pw.ok("start", "app.toml")
    crash_until_failed(pw)
    pw.write("web.py", version(ASGI, "two"))
    pw.ok("reload", "api")
    assert pw.wait_steady()["state"] == "running"
    assert pw.get().startswith("two")


def test_an_app_that_was_given_up_can_be_scaled_back_and_tried_again(pw: Pyworker) -> None:
    command = '["sh", "-c", "[ $PYWORKER_WORKER = 1 ] || [ -e mended ] || exit 3; exec sleep 600"]'
    pw.write("app.toml", f'[app]\nname = "api"\ncommand = {command}\n{LOOP}')
    pw.ok("start", "app.toml")
    refused = pw.run("scale", "api=2")
    assert refused.returncode == 1
    assert "gave up after 3" in refused.stderr
    pw.ok("scale", "api=1")
    assert pw.app()["state"] == "running"
    assert pw.run("scale", "api=2").returncode == 1
    pw.write("mended", "")
    pw.ok("scale", "api=2")
    assert pw.app()["state"] == "running"


NEVER_COMES = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan" and os.environ["PYWORKER_WORKER"] == "2":
        await asyncio.sleep(0.7)
        os._exit(3)
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
"""


def test_a_start_ends_also_when_the_deaths_are_too_far_apart_to_be_given_up(pw: Pyworker) -> None:
    pw.api(NEVER_COMES, workers=2, tables=LOOP.replace("60s", "1s"))
    refused = pw.run("start", "app.toml")
    assert refused.returncode == 1
    assert "still not ready after 3 restarts, and tried on: exited with code 3" in refused.stderr
    assert pw.app()["last_failure"]["message"].count("gave up") == 0
    assert pw.app()["workers"]["ready"] == 1


def test_backoff_is_shown_while_it_waits(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")

    def step() -> bool:
        app = pw.app()
        if app["backoff"]:
            return True
        for pid in pw.pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        return False

    wait_until(step, LONG, "a backoff")
    described = pw.ok("describe", "api").stdout + pw.ok("ps").stderr
    assert "of 10" in described, described
    pw.wait_steady()


def test_exit_code_78_is_not_retried(pw: Pyworker) -> None:
    pw.write(
        "app.toml", '[app]\nname = "api"\ncommand = ["sh", "-c", "while [ ! -e end ]; do sleep 0.05; done; exit 78"]\n'
    )
    pw.ok("start", "app.toml")
    Path(pw.folder, "end").touch()
    wait_until(lambda: pw.app()["state"] == "failed", LONG, "the app to be failed")
    app = pw.app()
    assert app["restarts"]["total"] == 0
    assert "78" in str(app["last_failure"])


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [("on-failure", 0, False), ("on-failure", 1, True)],
)
def test_the_policy_decides_what_is_started_again(pw: Pyworker, policy: str, code: int, again: bool) -> None:
    script = f"while [ ! -e end ]; do sleep 0.05; done; rm end; exit {code}"
    pw.write(
        "app.toml",
        f'[app]\nname = "api"\ncommand = ["sh", "-c", "{script}"]\n[app.restart]\npolicy = "{policy}"\n',
    )
    pw.ok("start", "app.toml")
    old = pw.pids()[0]
    Path(pw.folder, "end").touch()  # not by pw.write, which looks at it again: it is removed at once
    wait_until(lambda: not alive(old), LONG, "the end of the worker")
    if again:
        wait_until(lambda: [pid for pid in pw.pids() if pid != old], LONG, "another worker")
    else:
        wait_until(lambda: pw.app()["state"] not in ("running", "starting"), LONG, lambda: f"the end of the app: {pw.app()}")
        assert pw.pids() == []


def test_workers_are_recycled_after_their_requests_without_losing_one(pw: Pyworker) -> None:
    pw.api(ASGI, tables="[app.limits]\nmax_requests = 40")
    pw.ok("start", "app.toml")
    first = set(pw.pids())
    with Load(pw.port) as load:
        wait_until(lambda: len({body.split()[1] for body in load.bodies}) >= 6, LONG, "some recycling")
    assert load.lost == []
    app = pw.wait_steady()
    assert not first & {worker["pid"] for worker in app["pool"]}
    assert app["state"] == "running"


def test_a_worker_over_its_memory_limit_is_replaced_without_losing_a_request(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1, tables='[app.limits]\nmemory = "90MB"')
    pw.ok("start", "app.toml")
    first = pw.pids()[0]
    with Load(pw.port, "new") as load:
        for _ in range(100):
            if not pw.get("/grow"):
                break
        wait_until(lambda: any(int(b.split()[1]) != first for b in load.bodies), LONG, "a replacement to serve")
    assert load.lost == []
    app = pw.wait_steady()
    assert app["pool"][0]["pid"] != first
    events = pw.ok("events", "--json").stdout
    assert "memory" in events


def test_the_children_of_a_worker_go_with_it(pw: Pyworker) -> None:
    source = ASGI.replace("hoard = []", "import subprocess\nchild = None").replace(
        '    if path == "/slow":',
        '    global child\n    if path == "/child":\n        child = child or subprocess.Popen(["sleep", "3600"])\n'
        '        body = b"child %d" % child.pid\n'
        '        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})\n'
        '        await send({"type": "http.response.body", "body": body})\n        return\n    if path == "/slow":',
    )
    pw.api(source, workers=1, tables='[app.stop]\nkill_timeout = "1s"')
    pw.ok("start", "app.toml")
    child = int(pw.get("/child").split()[1])
    assert alive(child)
    pw.ok("restart", "api")
    wait_until(lambda: not alive(child), LONG, "the child of a stopped worker to be gone")
    child = int(pw.get("/child").split()[1])
    kill(pw.pids()[0])
    wait_until(lambda: not alive(child), LONG, "the child of a killed worker to be gone")


@pytest.mark.parametrize("point", ["template.loaded", "template.fork", "template.forked"])
def test_what_somebody_kills_in_a_restart_is_tried_once_more_and_the_port_stays_open(pw: Pyworker, point: str) -> None:
    pw.make_failpoints()
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    path = pw.arm(point, "kill")
    with Load(pw.port, "new") as load:
        pw.ok("restart", "api")
        load.wait_more(5)
    assert os.path.exists(path + ".hit")
    assert [lost for lost in load.lost if "refused" in lost.lower()] == []
    assert pw.wait_steady()["state"] == "running"


@pytest.mark.parametrize("policy", ["always", "never"])
def test_a_first_start_goes_on_when_the_daemon_dies_before_it_has_asked_for_a_worker(pw: Pyworker, policy: str) -> None:
    pw.make_failpoints()
    passed = pw.arm("spawn.worker", "kill") + ".hit"
    pw.api(ASGI, workers=1, tables=f'[app.restart]\npolicy = "{policy}"')
    pw.run("start", "app.toml")
    assert os.path.exists(passed)
    assert pw.wait_steady()["state"] == "running"


def test_a_worker_that_is_killed_in_its_start_is_tried_once_more(pw: Pyworker) -> None:
    once = Path(pw.write("once", ""))
    dies = 'if scope["type"] == "lifespan":\n        if os.path.exists("once"):\n            os.unlink("once")\n            os.kill(os.getpid(), 9)'
    pw.api(ASGI.replace('if scope["type"] == "lifespan":', dies), workers=1)
    pw.ok("start", "app.toml")
    assert not once.exists()
    once.touch()
    pw.api(ASGI.replace('if scope["type"] == "lifespan":', dies.replace('os.unlink("once")', "pass")), workers=1)
    refused = pw.run("restart", "api")
    assert refused.returncode == 1, "what is killed each time is no accident"
    assert "killed by SIGKILL from outside" in refused.stderr

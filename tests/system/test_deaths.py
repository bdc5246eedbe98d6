"""kill -9 of any one of our processes closes no port and loses no request."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, kill
from tests.support.sources import ASGI, version
from tests.support.wait import wait_until

ROLES = ("daemon", "guardian", "template", "logger")


@pytest.mark.parametrize("role", ROLES)
def test_the_death_of_one_of_ours_is_noticed_by_no_client(pw: Pyworker, role: str) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    before = pw.app()
    pids = [worker["pid"] for worker in before["pool"]]
    victim = pw.role(role)
    with Load(pw.port, "new", "keep") as load:
        load.wait_more(50)
        kill(victim)
        load.wait_more(100)
        if role == "template":
            wait_until(lambda: pw.app()["workers"]["ready"] == 2, LONG, "the app as it was")
        else:
            wait_until(lambda: pw.status() and pw.role(role) not in (0, victim), LONG, f"another {role}")
        load.wait_more(100)
        app = pw.app()
        assert [worker["pid"] for worker in app["pool"]] == pids
        assert app["restarts"]["total"] == before["restarts"]["total"] == 0
        assert app["gen"] == 1
        # what is left can do all that the whole could
        pw.write("web.py", version(ASGI, "two"))
        pw.ok("reload", "api")
        assert pw.get().startswith("two")
        load.wait_more(50)
    assert load.lost == []
    pw.ok("stop", "api")
    assert pw.refuses()


def test_a_worker_dies_while_the_daemon_is_dead_and_is_replaced(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    first, second = pw.pids()
    os.kill(pw.role("daemon"), signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    app = pw.wait_steady()
    pids = [worker["pid"] for worker in app["pool"]]
    assert pids[1] == second
    assert pids[0] != first
    assert app["restarts"]["total"] == 1


def test_a_worker_dies_after_its_template_and_is_replaced(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    first, second = pw.pids()
    kill(pw.role("template"))
    kill(first)
    pids = [worker["pid"] for worker in pw.wait_steady()["pool"]]
    assert pids[1] == second
    assert pids[0] != first


def test_the_daemon_dies_again_and_again(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids = pw.pids()
    with Load(pw.port, "new") as load:
        for _ in range(4):
            victim = pw.role("daemon")
            kill(victim)
            wait_until(lambda: pw.run("ps").returncode == 0 and pw.role("daemon") != victim, LONG, "another daemon")  # noqa: B023
    assert load.lost == []
    assert pw.pids() == pids


def test_without_guardian_and_daemon_the_workers_end_and_the_port_is_closed(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    guardian, daemon, pids = pw.role("guardian"), pw.role("daemon"), pw.pids()
    for pid in (guardian, daemon):
        os.kill(pid, signal.SIGSTOP)  # neither may see the other die
    for pid in (guardian, daemon):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)), LONG, "the end of the workers")
    wait_until(pw.refuses, LONG, "a closed port")
    wait_until(lambda: not pw.processes(), LONG, f"the end of all: {pw.processes()}")
    # and a start begins anew in the same home
    pw.ok("start", "app.toml")
    assert pw.get().startswith("one")


def test_the_daemon_dies_in_the_middle_of_a_reload(pw: Pyworker) -> None:
    pw.api(ASGI, workers=3)
    pw.ok("start", "app.toml")
    # the new code starts slowly, so that the kill comes between template and commit
    pw.write("web.py", "import time\ntime.sleep(1)\n" + version(ASGI, "two"))
    with Load(pw.port, "new", "keep") as load:
        reload = pw.popen("reload", "api")
        wait_until(lambda: pw.app()["state"] == "reloading", LONG, "the reload to begin")
        kill(pw.role("daemon"))
        reload.communicate(timeout=60)
        app = pw.wait_steady()
        assert app["state"] == "running"
        load.wait_more(50)
        # whether it went on or was given up, the next one comes in
        pw.write("web.py", version(ASGI, "three"))
        pw.ok("reload", "api")
        assert pw.get().startswith("three")
        pw.wait_steady()
    assert load.lost == []


def test_a_command_that_was_just_started_is_ready_though_the_daemon_died(pw: Pyworker) -> None:
    pw.write("app.toml", '[app]\nname = "api"\ncommand = ["sh", "-c", "sleep 1000"]\n[app.reload]\nready_timeout = "20s"\n')
    pw.ok("start", "app.toml", "--no-wait")
    pid = wait_until(lambda: (pw.pids() or [0])[0], LONG, "the command to be started")
    kill(pw.role("daemon"))
    pw.wait_steady()
    assert pw.pids() == [pid]

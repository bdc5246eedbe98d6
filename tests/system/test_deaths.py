"""kill -9 of any one of our processes closes no port and loses no request."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.load import Load
from tests.support.pyworker import KERNEL, LONG, Pyworker, alive, has_zombies, kill
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
    kill(first)
    pw.wait_restarts(1)
    app = pw.wait_steady()
    pids = [worker["pid"] for worker in app["pool"]]
    assert pids[1] == second
    assert pids[0] != first
    assert app["pool"][0]["last_exit"]["signal"] == signal.SIGKILL  # the kernel has kept it


@pytest.mark.parametrize("role", ["daemon", "guardian"])
def test_the_next_one_knows_states_uptimes_and_restarts(pw: Pyworker, role: str) -> None:
    pw.api(ASGI, workers=3, tables='[app.restart]\nmin_uptime = "0s"')
    pw.ok("start", "app.toml")
    kill(pw.pids()[1])
    pw.wait_restarts(1)
    before, victim = pw.wait_steady(), pw.role(role)
    kill(victim)
    wait_until(lambda: pw.status() and pw.role(role) not in (0, victim), LONG, f"another {role}")
    after = pw.app()
    assert after["uptime_s"] >= before["uptime_s"]
    for old, new in zip(before["pool"], after["pool"], strict=True):
        assert new["uptime_s"] >= old["uptime_s"]
        assert [new[key] for key in ("pid", "state", "gen", "restarts", "last_exit")] == [
            old[key] for key in ("pid", "state", "gen", "restarts", "last_exit")
        ]
    assert [worker["restarts"] for worker in after["pool"]] == [0, 1, 0]
    assert after["restarts"] == before["restarts"]


def test_how_a_worker_ended_is_known_or_said_to_be_unknown_when_its_guardian_is_gone(pw: Pyworker) -> None:
    pw.api(ASGI, tables='[app.restart]\nmin_uptime = "0s"')
    pw.ok("start", "app.toml")
    first, victim = pw.pids()[0], pw.role("guardian")
    kill(victim)
    wait_until(lambda: pw.status() and pw.role("guardian") not in (0, victim), LONG, "another guardian")
    kill(first)
    last = wait_until(lambda: pw.wait_steady()["pool"][0]["last_exit"], LONG, "its end")
    if KERNEL >= (6, 15):  # PIDFD_GET_INFO tells how it ended, whoever has reaped it
        assert last["signal"] == signal.SIGKILL
    assert last["signal"] == signal.SIGKILL or (last["signal"] is last["code"] is None and "unknown" in last["reason"])


def test_a_worker_dies_after_its_template_and_is_replaced(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    first, second = pw.pids()
    kill(pw.role("template"))
    kill(first)
    pids = [worker["pid"] for worker in pw.wait_steady()["pool"]]
    assert pids[1] == second
    assert pids[0] != first


def test_code_that_has_changed_since_is_named_when_a_template_had_to_be_started_again(pw: Pyworker) -> None:
    """A generation never mixes code of two moments without saying so."""
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    (first, second), old = pw.pids(), pw.role("template")
    pw.write("web.py", version(ASGI, "two"))
    kill(old)
    wait_until(lambda: pw.describe_template() not in (0, old), LONG, "another template")
    wait_until(lambda: "its files were changed since" in pw.ok("describe", "api").stdout, LONG, "a note")
    assert "web.py" in pw.ok("events", "api").stdout
    assert pw.pids() == [first, second]
    kill(first)
    pw.wait_steady()
    assert {pw.get().split()[0] for _ in range(4)} == {"one", "two"}
    pw.ok("reload", "api")
    pw.wait_steady()  # the old ones have left
    assert {pw.get().split()[0] for _ in range(4)} == {"two"}
    assert pw.app()["notes"] == [], "a reload has made them one"


def test_what_kept_the_code_before_from_being_forked_is_not_said_of_the_next(pw: Pyworker) -> None:
    threads = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    pw.api(threads + ASGI, tables='[app.reload]\nsoak = "300s"')  # in which it can be given up, however busy the machine
    pw.ok("start", "app.toml")
    (why,) = pw.app()["notes"]
    assert "thread" in why
    pw.write("web.py", "# still\n" + threads + ASGI)
    pw.ok("reload", "api")
    assert pw.app()["notes"] == [why]
    pw.write("web.py", ASGI)
    pw.ok("reload", "api")
    assert pw.app()["notes"] == []
    pw.write("web.py", threads + ASGI)
    pw.ok("reload", "api")
    pw.ok("reload", "--abort", "api")
    wait_until(lambda: why not in pw.app()["notes"], LONG, "the end of the note on what was given up")


def test_a_killed_spare_is_noticed_by_nobody_and_replaced(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    before, pids, first = pw.app(), pw.pids(), pw.spare()
    with Load(pw.port, "new", "keep") as load:
        load.wait_more(20)
        kill(first)
        second = pw.spare(first)
        load.wait_more(20)
    assert load.lost == []
    assert pw.pids() == pids
    assert pw.app()["restarts"] == before["restarts"]
    guardian = pw.role("guardian")
    wait_until(lambda: not has_zombies(guardian), LONG, "the killed spare to be collected")
    kill(pids[0])
    assert pw.wait_steady()["pool"][0]["pid"] == second


def test_the_spare_outlives_the_daemon_and_is_who_comes_next(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, spare, old = pw.pids(), pw.spare(), pw.role("daemon")
    kill(old)
    wait_until(lambda: pw.status() and pw.role("daemon") != old, LONG, "another daemon")
    assert pw.spares() == [spare]
    kill(pids[0])
    assert pw.wait_steady()["pool"][0]["pid"] == spare


def test_a_spare_that_dies_with_its_order_in_its_hands_is_a_worker_that_is_replaced(pw: Pyworker) -> None:
    pw.api(ASGI, tables='[app.restart]\nmin_uptime = "0s"')
    pw.ok("start", "app.toml")
    first, second = pw.pids()
    spare = pw.spare()
    os.kill(spare, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)  # noticed by all at once; what the template sees first is chance
    os.kill(spare, signal.SIGKILL)
    wait_until(lambda: not alive(first), LONG, "its death")
    pids = [worker["pid"] for worker in pw.wait_steady()["pool"]]
    assert pids[1] == second
    assert pids[0] not in (first, spare)
    pw.spare()


def test_what_is_stopped_leaves_no_spare(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")
    os.kill(pw.spare(), signal.SIGSTOP)  # not even one that can do nothing by itself
    pw.ok("stop", "api")
    wait_until(lambda: not pw.spares(), LONG, "the end of the spare")
    pw.ok("restart", "api")
    first = pw.spare()
    pw.ok("reload", "api")
    os.kill(pw.spare(first), signal.SIGSTOP)
    pw.ok("daemon", "stop", "-y")
    assert not pw.spares()


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
    wait_until(lambda: not pw.processes(), LONG, lambda: f"the end of all: {pw.processes()}")
    # and a start begins anew in the same home
    pw.ok("start", "app.toml")
    assert pw.get().startswith("one")


def test_a_command_that_was_just_started_is_ready_though_the_daemon_died(pw: Pyworker) -> None:
    pw.write("app.toml", '[app]\nname = "api"\ncommand = ["sh", "-c", "sleep 1000"]\n[app.reload]\nready_timeout = "20s"\n')
    pw.ok("start", "app.toml", "--no-wait")
    pid = wait_until(lambda: (pw.pids() or [0])[0], LONG, "the command to be started")
    kill(pw.role("daemon"))
    pw.wait_steady()
    assert pw.pids() == [pid]

"""Faults from below: no crash, no spin, and all is as it was when the fault is gone."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal

import psutil
import pytest

from tests.support.control import ask
from tests.support.pyworker import LONG, Pyworker, alive, kill
from tests.support.sources import ASGI, version
from tests.support.wait import wait_until
from tests.support.words import TOO_MANY_OPEN_FILES

SPIN = 0.05  # of a core; what the issue allows


def started(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.api(ASGI)
    pw.ok("start", "app.toml")


def assert_no_spin(pid: int) -> None:
    """Its CPU time over a window of its own life: a spin would be about 1, however busy the machine is shared."""
    process = psutil.Process(pid)
    before, began = sum(process.cpu_times()[:2]), os.times().elapsed
    wait_until(lambda: os.times().elapsed - began > 2.0, LONG)
    used = sum(process.cpu_times()[:2]) - before
    assert used / (os.times().elapsed - began) < SPIN


def at_rest(pw: Pyworker) -> None:
    """Wait until each that hears of the worker ahead of need has: what is kept of it counts."""
    pw.wait_rest(*(pw.role(role) for role in ("template", "daemon", "guardian")))


@pytest.mark.parametrize("role", ["daemon", "guardian", "logger"])
def test_process_without_a_free_descriptor_neither_dies_nor_spins_and_recovers(pw: Pyworker, role: str) -> None:
    started(pw)
    at_rest(pw)
    pid, pids = pw.role(role), pw.pids()
    (used,) = pw.fds(pid)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for _ in range(3):
        ask(pw.home, {"type": "status"}, timeout=5)
    kill(pids[0])  # somebody has to be replaced: pipes, channels and a pidfd are wanted
    if role == "logger":  # which makes room for one that is given every pipe: some would have no reader
        wait_until(lambda: not alive(pid), LONG, "the logger to begin again")
        pid = pw.role("guardian")
    assert_no_spin(pid)
    assert alive(pid)
    assert pw.get().startswith("one")
    if role != "logger":
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    wait_until(lambda: ask(pw.home, {"type": "status"}) is not None, LONG, "an answer")
    assert pw.wait_steady()["state"] == "running"
    assert pw.pids()[1] == pids[1]
    if role != "logger":  # nothing of the trouble stays
        wait_until(lambda: pw.fds(pid) == [used], LONG, "the descriptors of before")


def test_daemon_that_cannot_fork_is_started_again_when_that_has_passed(pw: Pyworker) -> None:
    started(pw)
    pids, guardian = pw.pids(), pw.role("guardian")
    path = pw.arm("guardian.start_daemon", "raise:EAGAIN always")
    os.kill(pw.role("daemon"), signal.SIGKILL)
    wait_until(lambda: "Resource temporarily unavailable" in pw.daemon_log(), LONG, "the fault")
    assert_no_spin(guardian)
    assert pw.get().startswith("one")
    os.unlink(path)
    wait_until(lambda: ask(pw.home, {"type": "status"}) is not None, LONG, "another daemon")
    assert pw.pids() == pids


def test_reload_that_cannot_write_down_what_is_wanted_does_not_happen(pw: Pyworker) -> None:
    started(pw)
    pids = pw.pids()
    path = pw.arm("save.before_rename", "raise:ENOSPC always")
    pw.write("web.py", version(ASGI, "two"))
    done = pw.run("reload", "api")
    assert done.returncode == 1, done.stderr
    assert "apps.json" in done.stderr
    assert pw.get().startswith("one")
    wait_until(lambda: pw.app()["workers"]["total"] == 2, LONG, "the end of the new ones")
    assert pw.pids() == pids
    os.unlink(path)
    pw.ok("reload", "api")
    assert pw.get().startswith("two")


@pytest.mark.parametrize("fault", ["EAGAIN", "EMFILE"])
def test_worker_that_cannot_be_made_is_tried_again_without_a_spin(pw: Pyworker, fault: str) -> None:
    started(pw)
    first, second = pw.pids()
    path = pw.arm("spawn.worker", f"raise:{fault} always")
    kill(first)
    wait_until(lambda: pw.app()["backoff"] is not None, LONG, "a backoff")
    assert_no_spin(pw.role("daemon"))
    assert pw.pids() == [second]
    os.unlink(path)
    assert [w["pid"] for w in pw.wait_steady()["pool"]][1] == second


@pytest.mark.parametrize("kind", ["template", "worker", "command"])
def test_what_a_boot_cannot_start_for_want_of_processes_is_tried_again(pw: Pyworker, kind: str) -> None:
    pw.make_failpoints()
    pw.api(ASGI)
    if kind == "command":
        pw.write("app.toml", '[app]\nname = "api"\ncommand = "sleep 1000"\nworkers = 2\n')
    pw.ok("start", "app.toml")
    pw.ok("daemon", "stop", "-y")
    path = pw.arm("spawn.template" if kind == "template" else "spawn.worker", "raise:EAGAIN always")
    pw.ok("daemon", "start")
    wait_until(lambda: pw.app()["backoff"] is not None, LONG, "a backoff")
    assert kind == "command" or not pw.refuses()
    os.unlink(path)
    assert pw.wait_steady()["state"] == "running"


def test_what_a_boot_has_no_descriptors_for_is_tried_again(pw: Pyworker) -> None:
    started(pw)
    pw.ok("daemon", "stop", "-y")
    path = pw.arm("start.listening", "raise:EMFILE always")
    pw.ok("daemon", "start")
    wait_until(lambda: f"api: cannot be restored yet: {TOO_MANY_OPEN_FILES}" in pw.daemon_log(), LONG, "the fault")
    assert pw.refuses(), "a port that nobody serves"
    found = pw.app()  # it is alive, and has not given up: what is wanted is still written down, and shown
    assert (found["state"], found["last_failure"]["message"]) == (
        "failed",
        f"cannot be restored yet: {TOO_MANY_OPEN_FILES}; it is tried again",
    )
    assert f"api failed: cannot be restored yet: {TOO_MANY_OPEN_FILES}" in pw.ok("ps").stderr
    done = pw.run("describe", "api")
    assert (done.returncode, "prlimit --pid" in done.stderr) == (75, True)
    os.unlink(path)
    wait_until(lambda: not pw.refuses(), LONG, "the port")
    assert pw.wait_steady()["state"] == "running"
    assert "restored api" in pw.daemon_log()


def test_what_a_boot_tries_again_does_not_keep_a_daemon_that_stops(pw: Pyworker) -> None:
    started(pw)
    command = "trap ': > told' TERM; : > up; while :; do sleep 0.05; done"
    pw.write("slow.toml", f'[app]\nname = "slow"\ncommand = ["sh", "-c", "{command}"]\n[app.stop]\nkill_timeout = "7s"\n')
    pw.ok("start", "slow.toml")
    pw.ok("daemon", "stop", "-y")
    up, told = os.path.join(pw.folder, "up"), os.path.join(pw.folder, "told")
    os.unlink(up)
    os.unlink(told)
    pw.arm("start.listening", "raise:EMFILE")
    starting = pw.popen("daemon", "start")
    wait_until(lambda: "api: cannot be restored yet" in pw.daemon_log(), LONG, "the fault")
    path = pw.arm("start.listening", "raise:EMFILE always")  # of the tries that follow, of which the first is in 5 s
    starting.communicate(timeout=LONG)
    wait_until(lambda: os.path.exists(up), LONG, "the slow one")
    stopping = pw.popen("daemon", "stop", "-y")
    wait_until(lambda: os.path.exists(told), LONG, "the stop to begin")
    os.unlink(path)
    stopping.communicate(timeout=LONG)
    assert "restored api" not in pw.daemon_log()


def test_a_start_without_descriptors_is_refused_with_the_next_step_and_leaves_nothing(pw: Pyworker) -> None:
    started(pw)
    at_rest(pw)
    before = fds(pw)
    pw.write("two.toml", f'[app]\nname = "two"\ntarget = "web:app"\nbind = "127.0.0.1:{pw.another_port()}"\n')
    path = pw.arm("start.listening", "raise:EMFILE always")
    done = pw.run("start", "two.toml")
    assert done.returncode == 75, done.stderr
    assert TOO_MANY_OPEN_FILES in done.stderr
    assert f"prlimit --pid {pw.role('daemon')}" in done.stderr
    os.unlink(path)
    assert [app["name"] for app in pw.ps()["apps"]] == ["api"]
    wait_until(lambda: fds(pw) == before, LONG, "the descriptors of before")


def test_what_runs_goes_on_when_apps_json_was_removed_and_the_daemon_dies(pw: Pyworker) -> None:
    started(pw)
    pw.ok("scale", "api=3")
    pids, file = pw.pids(), os.path.join(pw.home, "apps.json")
    os.unlink(file)
    kill(pw.role("daemon"))
    wait_until(lambda: ask(pw.home, {"type": "status"}) is not None, LONG, "another daemon")
    assert pw.pids() == pids
    with open(file) as written:
        assert json.load(written)["apps"][0]["scale"] == 3


def test_a_start_that_finds_an_apps_json_cut_short_says_that_nothing_is_restored(pw: Pyworker) -> None:
    started(pw)
    pw.ok("daemon", "stop", "-y")
    file = os.path.join(pw.home, "apps.json")
    os.truncate(file, 20)  # a power cut
    for done in (pw.ok("daemon", "start"), pw.ok("ps")):
        assert f"apps.json could not be read, and is kept as {file}.bad-" in done.stdout + done.stderr
    pw.ok("start", "app.toml")
    assert "could not be read" not in pw.ok("ps").stderr
    pw.ok("delete", "api")
    assert "No apps yet" in pw.ok("ps").stderr


def test_what_could_not_be_written_down_is_once_there_is_room(pw: Pyworker) -> None:
    started(pw)
    path = pw.arm("save.before_rename", "raise:ENOSPC always")
    assert "apps.json cannot be written: No space left" in pw.ok("scale", "api=3").stderr
    os.unlink(path)
    wait_until(lambda: not pw.app()["notes"], LONG, "the note to go")
    with open(os.path.join(pw.home, "apps.json")) as file:
        assert json.load(file)["apps"][0]["scale"] == 3


def test_pidfd_that_cannot_be_opened_is_a_worker_that_is_replaced(pw: Pyworker) -> None:
    started(pw)
    first, second = pw.pids()
    pw.arm("spawn.claim", "raise:ESRCH")
    kill(first)
    assert [w["pid"] for w in pw.wait_steady()["pool"]][1] == second


def fds(pw: Pyworker) -> list[int]:
    return pw.fds(pw.role("guardian"), pw.role("daemon"))


def test_a_template_that_cannot_be_started_leaves_no_descriptor(pw: Pyworker) -> None:
    started(pw)
    at_rest(pw)
    before = fds(pw)
    for _ in range(3):
        pw.arm("spawn.template", "raise:EMFILE")
        assert pw.run("reload", "api").returncode == 1
    wait_until(lambda: fds(pw) == before, LONG, "the descriptors of before")
    assert pw.get().startswith("one")


def test_a_command_that_waits_for_a_guardian_to_take_over_says_why(pw: Pyworker) -> None:
    started(pw)
    armed = pw.arm("guardian.adopted", "raise:EACCES always")
    kill(pw.role("guardian"))
    reload = pw.popen("reload", "api")
    assert reload.stderr is not None
    said = "".join(itertools.takewhile(lambda line: "= help: " not in line, reload.stderr))
    os.unlink(armed)
    assert "cannot take over yet, trying again: [Errno 13] Permission denied" in said
    reload.communicate()
    assert reload.returncode == 0
    pw.wait_steady()

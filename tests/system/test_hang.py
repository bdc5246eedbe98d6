"""What hangs is found and cured; what only stood still with the whole machine is left alone. Ticks are short here."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, kill
from tests.support.silent_disk import silent_disk
from tests.support.sources import ASGI, WAITS, version
from tests.support.wait import wait_until

TICK = "1"


@pytest.mark.parametrize("role", ["guardian", "daemon", "logger", "template"])
def test_stopped_process_of_ours_is_replaced_and_nobody_notices(pw: Pyworker, role: str) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids = pw.pids()
    victim = pw.role(role)
    with Load(pw.port, "new", "keep") as load:
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: not alive(victim), LONG, lambda: f"the stopped {role} to be ended\n{pw.daemon_log()}")
        if role == "template":
            wait_until(lambda: (pw.describe_template() or victim) != victim, LONG, "another template")
        else:
            wait_until(lambda: pw.status() and pw.role(role) not in (0, victim), LONG, f"another {role}")
        load.wait_more(20)
    assert load.lost == []
    assert pw.pids() == pids
    assert pw.app()["state"] == "running"


@pytest.mark.parametrize(("stopped", "killed"), [("guardian", "daemon"), ("daemon", "guardian")])
def test_of_guardian_and_daemon_one_that_is_stopped_when_the_other_dies_goes_on(pw: Pyworker, stopped: str, killed: str) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, daemon = pw.pids(), pw.role("daemon")
    goes_on, victim = pw.role(stopped), pw.role(killed)
    os.kill(goes_on, signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: pw.status().get("pid", daemon) != daemon, LONG, "the next daemon")
    assert pw.role("guardian") == goes_on
    assert pw.pids() == pids


def test_a_process_of_ours_in_a_busy_loop_is_replaced_and_nobody_notices(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.make_failpoints()
    pw.api(ASGI.replace('    elif path == "/block":', '    elif path == "/print":\n        print("x")\n    elif path == "/block":'))
    pw.ok("start", "app.toml")
    pids = pw.pids()
    with Load(pw.port, "new", "keep") as load:
        for role, point, wake in (
            ("logger", "logger.write", lambda: pw.get("/print")),
            ("daemon", "reload.target", lambda: pw.run("reload", "api")),
            ("guardian", "guardian.exited", lambda: kill(pw.spare())),
        ):
            victim = pw.role(role)
            passed = pw.arm(point, "spin") + ".hit"
            wake()
            wait_until(lambda p=passed: os.path.exists(p), LONG, f"{point} to be passed")  # type: ignore[misc]
            wait_until(lambda v=victim: not alive(v), LONG, lambda r=role: f"the busy {r} to be ended\n{pw.daemon_log()}")  # type: ignore[misc]
            wait_until(lambda r=role, v=victim: pw.status() and pw.role(r) not in (0, v), LONG, f"another {role}")  # type: ignore[misc]
            load.wait_more(20)
    assert load.lost == []
    assert pw.pids() == pids


def test_a_template_that_hangs_over_an_order_is_replaced_and_the_order_carried_out(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.make_failpoints()
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    victim, worker = pw.role("template"), pw.pids()[0]
    passed = pw.arm("template.fork", "spin") + ".hit"
    kill(worker)
    wait_until(lambda: os.path.exists(passed), LONG, "the order to be taken")
    wait_until(lambda: not alive(victim), LONG, lambda: f"the busy template to be ended\n{pw.daemon_log()}")
    wait_until(lambda: pw.app()["state"] == "running" and worker not in pw.pids(), LONG, "another worker")


def test_a_stopped_spare_is_replaced_before_anybody_needs_it(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, first = pw.pids(), pw.spare()
    os.kill(first, signal.SIGSTOP)
    second = pw.spare(first)
    assert not alive(first)
    assert pw.pids() == pids
    kill(pids[0])
    assert pw.wait_steady()["pool"][0]["pid"] == second


def test_worker_that_was_stopped_is_replaced(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.api(ASGI, tables='[app.stop]\ndrain_timeout = "1s"')
    pw.ok("start", "app.toml")
    first, second = pw.pids()
    os.kill(first, signal.SIGSTOP)
    wait_until(lambda: not alive(first), LONG, "the stopped worker to be ended")
    pids = [worker["pid"] for worker in pw.wait_steady()["pool"]]
    assert pids[1] == second
    assert "stopped (SIGSTOP), and nobody continued it" in pw.ok("events").stdout


SPINS = version(ASGI, "spins").replace(
    "async def app(", "def spin():\n    while True:\n        pass\n\nasync def app("
).replace('    elif path == "/block":', '    elif path == "/spin":\n        asyncio.get_running_loop().call_later(0.1, spin)\n    elif path == "/block":')  # fmt: skip


def test_worker_whose_loop_spins_without_a_request_is_replaced(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.api(SPINS, tables='[app.stop]\ndrain_timeout = "1s"')
    pw.ok("start", "app.toml")
    before = pw.pids()
    spinning = int(pw.get("/spin").split()[1])
    wait_until(lambda: not alive(spinning), LONG, "the spinning worker to be ended")
    after = [worker["pid"] for worker in pw.wait_steady()["pool"]]
    assert set(before) - {spinning} <= set(after)
    assert "its event loop stands still" in pw.ok("events").stdout


def test_machine_that_was_frozen_and_thawed_is_not_taken_for_one_that_hangs(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.api(ASGI, top="limits = { request_timeout = \"3s\" }")
    pw.ok("start", "app.toml")
    roles = [pw.role(role) for role in ("guardian", "daemon", "logger", "template")]
    workers = pw.pids()
    everybody = [psutil.Process(pid) for pid in (*roles, *workers)]
    for order in (everybody, everybody[::-1]):
        for process in everybody:
            process.suspend()
        began = os.times().elapsed
        wait_until(lambda: os.times().elapsed - began > 4.5, LONG)  # noqa: B023  more than any of their deadlines
        for process in order:
            process.resume()
        assert pw.get().startswith("one")
    for _ in range(3):  # a look of everybody at everybody
        seen = pw.status()["uptime_s"]
        wait_until(lambda: pw.status()["uptime_s"] > seen + 0.6, LONG)  # noqa: B023
    assert [pw.role(role) for role in ("guardian", "daemon", "logger", "template")] == roles
    assert pw.pids() == workers


def test_frozen_request_is_not_counted_as_a_slow_one(pw: Pyworker) -> None:
    pw.api(ASGI.replace("asyncio.sleep(1)", "asyncio.sleep(0.3)"), top="limits = { request_timeout = \"2s\" }")
    pw.ok("start", "app.toml")
    workers = pw.pids()
    everybody = [psutil.Process(pid) for pid in (pw.role("daemon"), *workers)]
    with Load(pw.port, "new", path="/slow", pause=0.0) as load:  # one is always under way
        load.wait_more(1)
        for process in everybody:
            process.suspend()
        began = os.times().elapsed
        wait_until(lambda: os.times().elapsed - began > 3.0, LONG)
        for process in everybody:
            process.resume()
        load.wait_more(3)
    assert load.lost == []
    assert pw.pids() == workers


def test_control_socket_that_was_removed_is_made_again(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids = pw.pids()
    path = os.path.join(pw.home, "control.sock")
    for _ in range(2):  # and after the next daemon, too
        os.unlink(path)
        wait_until(lambda: os.path.exists(path), LONG, "control.sock")
        assert pw.pids() == pids
        victim = pw.role("daemon")
        kill(victim)
        wait_until(lambda: pw.status() and pw.role("daemon") != victim, LONG, "the next daemon")  # noqa: B023


def remove(home: str) -> None:
    """Remove a folder in which others still make files."""
    wait_until(lambda: shutil.rmtree(home, ignore_errors=True) or not os.path.exists(home), what="it to be gone")


def test_while_the_files_of_a_home_are_gone_no_second_daemon_starts_and_nobody_says_that_none_runs(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = "60"  # nor is it found hung meanwhile
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    guardian, daemon = pw.role("guardian"), pw.role("daemon")
    os.kill(daemon, signal.SIGSTOP)  # or it makes control.sock again between two commands
    for name in os.listdir(pw.home):
        path = os.path.join(pw.home, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    for command in (("ps",), ("start", "app.toml"), ("daemon", "start"), ("daemon", "stop", "-y")):
        done = pw.run(*command)
        assert done.returncode == 69, (command, done)
        assert "its files were removed" in done.stderr, (command, done)
    another = [sys.executable, "-I", "-m", "pyworker.guardian", "--home", pw.home]
    assert subprocess.run(another, env=pw.environ, capture_output=True).returncode == 75
    assert [pid for pid, title in pw.titles().items() if title.startswith("pyworker guardian")] == [guardian]
    os.kill(daemon, signal.SIGKILL)  # the next one makes it at once
    wait_until(lambda: pw.status(), LONG, "control.sock")
    wait_until(lambda: "pyworker daemon started" in pw.ok("logs").stdout, LONG, "what happened, where nothing was printed")
    assert pw.pids()
    notify = os.path.join(pw.home, "notify.sock")  # the next one has made this, too
    os.unlink(notify)
    wait_until(lambda: os.path.exists(notify), LONG, "notify.sock made again")
    says = "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET']); time.sleep(1000)"
    pw.write("says.py", says)
    pw.write("says.toml", f'[app]\nname = "says"\ncommand = "{sys.executable} says.py"\nready = "notify"\n')
    pw.ok("start", "says.toml")


def test_a_home_that_is_removed_ends_who_runs_nothing_and_nobody_else(pw: Pyworker) -> None:
    pw.api(ASGI, workers=1)
    pw.ok("start", "app.toml")
    pw.ok("start", "--name", "tick", "--", "sleep", "1000")
    pw.ok("stop", "tick")
    guardian, (worker,) = pw.role("guardian"), pw.pids()
    remove(pw.home)
    kill(worker)
    wait_until(lambda: any("pyworker worker api" in title for title in pw.titles().values()), LONG, "its successor")
    assert pw.get()
    os.kill(guardian, signal.SIGTERM)
    wait_until(lambda: not pw.processes(), LONG, "the end of all, told by hand")
    pw.ok("start", "app.toml")
    pw.ok("stop", "api")
    remove(pw.home)
    wait_until(lambda: not pw.processes(), LONG, "the end of all")


def test_a_home_that_is_removed_is_made_again_by_the_next_daemon(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    guardian, pids = pw.role("guardian"), pw.pids()
    remove(pw.home)
    for _ in range(2):
        kill(next(pid for pid, title in pw.titles().items() if title.startswith("pyworker daemon")))
        wait_until(lambda: pw.status(), LONG, "the next daemon")
        assert pw.pids() == pids
        another = [sys.executable, "-I", "-m", "pyworker.guardian", "--home", pw.home]
        assert subprocess.run(another, env=pw.environ, capture_output=True).returncode == 75
    assert pw.role("guardian") == guardian
    pw.ok("reload", "api")


def test_a_home_that_is_moved_with_a_link_left_in_its_place_has_a_next_daemon_and_a_next_guardian(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, moved = pw.pids(), f"{pw.home}-moved"
    os.rename(pw.home, moved)
    os.symlink(moved, pw.home)
    pw.environ["PYWORKER_HOME"] = moved
    kill(pw.role("daemon"))
    wait_until(lambda: pw.status(), LONG, "the next daemon")
    daemon = pw.role("daemon")
    kill(pw.role("guardian"))
    wait_until(lambda: pw.status().get("guardian_pid") == daemon, LONG, "the next guardian")
    assert pw.pids() == pids


def test_in_a_removed_home_that_another_daemon_has_made_again_no_daemon_takes_its_apps_or_ends_ours(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    guardian, pids = pw.role("guardian"), pw.pids()
    (daemon,) = (pid for pid, title in pw.titles().items() if title.startswith("pyworker daemon"))
    log = os.path.join(pw.home, "logs", "pyworker.log")
    with open(log) as theirs:  # it is removed with the home
        remove(pw.home)
        pw.ok("start", "--name", "tick", "--", "sleep", "1000")
        kill(daemon)
        wait_until(lambda: "is another daemon's now" in theirs.read(), LONG, "the next daemon")
    assert [app["name"] for app in pw.ps()["apps"]] == ["tick"]
    assert all(alive(pid) for pid in pids)
    assert pw.get()
    assert pw.role("guardian") != guardian
    os.kill(guardian, signal.SIGTERM)
    wait_until(lambda: not any(alive(pid) for pid in (guardian, *pids)), LONG, "the end of the first, told by hand")
    assert pw.app("tick")["state"] == "running"


def test_a_home_that_was_opened_to_others_is_named_when_the_next_daemon_may_not_use_it(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    os.chmod(pw.home, 0o777)
    kill(pw.role("daemon"))
    wait_until(lambda: "cannot use its home" in pw.daemon_log(), LONG, "the next daemon")
    said = pw.run("ps", "--timeout", "1s").stderr
    assert f"{pw.home} is open to other users (mode 0777)" in said
    assert f"chmod 700 {pw.home}" in said
    assert "mend that: the daemon is started by itself then" in said
    assert "Traceback" not in pw.daemon_log()
    assert pw.get()
    os.chmod(pw.home, 0o700)
    wait_until(lambda: pw.status(), LONG, "the next daemon")


@pytest.mark.parametrize("alone", [True, False])
def test_a_logger_that_dies_over_a_stop_by_hand_is_started_again(pw: Pyworker, alone: bool) -> None:
    """What workers print as they leave was lost, and with the daemon dead as well nobody ended them."""
    pw.write("ends.sh", "trap 'echo asked; sleep 2; echo bye; exit' TERM\nwhile :; do sleep 0.1; done\n")
    pw.ok("start", "--name", "tick", "--", "/bin/sh", "ends.sh")
    guardian, daemon, logger, (worker,) = pw.role("guardian"), pw.role("daemon"), pw.role("logger"), pw.pids("tick")
    log = pathlib.Path(pw.home, "logs", "tick.log")
    os.kill(guardian, signal.SIGSTOP)
    for victim in (logger,) if alone else (logger, daemon):
        os.kill(victim, signal.SIGKILL)
    os.kill(guardian, signal.SIGTERM)
    os.kill(guardian, signal.SIGCONT)
    wait_until(lambda: not alive(worker) and not alive(guardian), LONG, "the end of all")
    assert "asked" in log.read_text()
    assert "bye" in log.read_text()


@pytest.mark.parametrize("dies_again", [False, True])
def test_a_stop_by_hand_while_the_next_daemon_comes_up_leaves_no_command_behind(pw: Pyworker, dies_again: bool) -> None:
    """It was ended by that signal itself, and what it was to stop ran on, with nobody who knew of it."""
    pw.make_failpoints()
    pw.write("ends.sh", "trap 'echo asked > asked; exit' TERM\nwhile :; do sleep 0.1; done\n")
    pw.ok("start", "--name", "tick", "--", "/bin/sh", "ends.sh")
    guardian, (worker,) = pw.role("guardian"), pw.pids("tick")
    held_up = pw.arm("daemon.serving", "hold") + ".hit"
    kill(pw.role("daemon"))
    wait_until(lambda: os.path.exists(held_up), LONG, "the next daemon")
    os.kill(guardian, signal.SIGTERM)
    if dies_again:
        kill(next(pid for pid, title in pw.titles().items() if title.startswith("pyworker daemon")))
    os.unlink(held_up)
    wait_until(lambda: not alive(worker) and not alive(guardian), LONG, "the end of all")
    assert os.path.exists(os.path.join(pw.folder, "asked")), "it was killed"


def test_a_home_that_cannot_be_opened_for_whatever_reason_is_named(pw: Pyworker) -> None:
    """A disk that does not answer, say, or as here a link on the way to it that leads nowhere."""
    disk, moved = os.path.join(pw.folder, "disk"), os.path.join(pw.folder, "moved")
    pw.home = pw.environ["PYWORKER_HOME"] = os.path.join(disk, "home")
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    daemon = pw.role("daemon")
    os.rename(disk, moved)
    os.symlink(disk, disk)
    kill(daemon)
    log = pathlib.Path(moved, "home", "logs", "pyworker.log")
    try:
        wait_until(lambda: "cannot use its home" in log.read_text(), LONG, "the next daemon")
    finally:
        os.unlink(disk)
        os.rename(moved, disk)
    wait_until(lambda: pw.status(), LONG, "the one after it")
    assert f"{pw.home}: {os.strerror(errno.ELOOP)}" in pw.daemon_log()
    assert "Traceback" not in pw.daemon_log()
    assert pw.get()


def test_command_that_is_killed_in_the_middle_changes_nothing_of_what_it_asked(pw: Pyworker) -> None:
    pw.api(WAITS + ASGI)
    start = pw.popen("start", "app.toml")
    wait_until(lambda: pw.status() and pw.ps()["apps"], LONG, "the start to have reached the daemon")
    start.kill()
    start.communicate()
    go = pw.write("go", "")
    pw.wait_steady()
    os.unlink(go)
    pw.write("web.py", WAITS + version(ASGI, "two"))
    reload = pw.popen("reload", "api")
    wait_until(lambda: pw.app()["state"] == "reloading", LONG, "the reload to begin")
    reload.kill()
    reload.communicate()
    pw.write("go", "")
    wait_until(lambda: pw.get().startswith("two"), LONG, "the reload to be done all the same")
    assert pw.wait_steady()["gen"] == 2


def test_a_slow_import_is_not_taken_for_a_hang(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = "0.5"  # found hung after three seconds; less is what a busy machine may take
    pw.api("import time\ntime.sleep(5)\n" + ASGI)
    pw.ok("start", "app.toml")
    template = pw.role("template")
    pw.write("web.py", "import time\ntime.sleep(5)\n" + version(ASGI, "two"))
    with Load(pw.port, "new") as load:
        pw.ok("reload", "api")
        load.wait_more(20)
    assert load.lost == []
    assert pw.role("template") != template
    events = [json.loads(line)["type"] for line in pw.ok("events", "--json").stdout.splitlines()]
    assert events.count("template_starting") == events.count("template_ready") == 2
    assert "does not answer" not in pw.daemon_log()


def test_a_stop_that_a_stopped_guardian_keeps_from_its_end_says_so(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    guardian = pw.role("guardian")
    os.kill(guardian, signal.SIGSTOP)
    try:
        done = pw.run("daemon", "stop", "-y", "--timeout", "10s")
    finally:
        os.kill(guardian, signal.SIGCONT)
    assert done.returncode == 75, done.stderr
    note = f"The apps have ended; its guardian (pid {guardian}) is stopped (SIGSTOP): kill -CONT {guardian} lets it end.\n"
    assert note in done.stderr  # long before the end of its time
    assert f"and its apps have ended, but its guardian (pid {guardian}) is stopped (SIGSTOP)" in done.stderr
    wait_until(lambda: not alive(guardian), LONG, "the guardian to end")


PRINTS = "import time\nwhile True:\n    print('here', flush=True)\n    time.sleep(0.05)\n"


def test_a_log_whose_disk_does_not_answer_holds_up_no_other_app_s_log(pw: Pyworker) -> None:
    pw.environ["PYWORKER_TICK"] = TICK
    pw.write("prints.py", PRINTS)
    far, command = os.path.join(pw.folder, "far"), [sys.executable, os.path.join(pw.folder, "prints.py")]
    os.mkdir(far)
    pw.write(
        "app.toml",
        f"[apps.near]\ncommand = {json.dumps(command)}\n[apps.far]\ncommand = {json.dumps(command)}\nlogs = {{ file = \"far/far.log\" }}\n",
    )
    pw.ok("start", "app.toml")
    near, first = os.path.join(pw.home, "logs", "near.log"), pw.role("logger")
    with silent_disk(far):
        # the logger, which knows the disk as the machine's own, hangs over it; the one after it does not
        wait_until(lambda: pw.role("logger") not in (0, first), LONG, "another logger")
        wait_until(lambda: "does not answer" in "".join(pw.app("far")["notes"]), LONG, lambda: pw.daemon_log())
        second, size = pw.role("logger"), os.path.getsize(near)
        wait_until(lambda: os.path.getsize(near) > size, LONG, "the other app's log to go on")
        assert "far" in pw.ok("describe", "far").stdout
        refused = pw.run("reload", "far")
        assert (refused.returncode != 0, "its disk does not answer" in refused.stderr) == (True, True)
        daemon, guardian = pw.role("daemon"), pw.role("guardian")
        kill(guardian)  # the daemon, of which a thread waits for the disk, cannot become one by exec
        wait_until(lambda: pw.status().get("guardian_pid", guardian) not in (0, guardian, daemon), LONG, lambda: pw.daemon_log())
        wait_until(lambda: pw.status().get("logger_version"), LONG, lambda: pw.daemon_log())
        second = pw.role("logger")
    wait_until(lambda: not pw.app("far")["notes"], LONG, lambda: "the log to go on: " + str(pw.app("far")["notes"]))
    assert pw.role("logger") == second
    assert pw.app("far")["state"] == pw.app("near")["state"] == "running"

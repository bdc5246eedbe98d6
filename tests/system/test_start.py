"""`pyworker start`: what it starts, what it refuses, what it says."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys

import psutil
import pytest

from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.sources import ASGI, WAITS, WSGI
from tests.support.wait import wait_until


def test_a_module_app_is_started_from_the_command_line(pw: Pyworker) -> None:
    pw.write("shop.py", ASGI)
    done = pw.ok("start", "shop:app", "-w", "2", "-b", f"127.0.0.1:{pw.port}", "--name", "shop")
    assert done.stdout.startswith("shop running 2/2")
    assert int(pw.get().split()[1]) in pw.pids("shop")


def test_a_file_is_started_and_a_second_start_changes_nothing(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    before = pw.pids()
    assert len(before) == 2
    again = pw.ok("start", "app.toml")
    assert "running" in again.stdout + again.stderr
    assert pw.pids() == before


def test_a_second_start_with_another_file_shows_what_a_reload_would_change_and_changes_nothing(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    before = pw.pids()
    pw.api(ASGI, workers=3, top='env = { TOKEN = "a", MODE = "b" }')
    again = pw.ok("start", "app.toml")
    said = [" ".join(line.split()) for line in again.stderr.splitlines()]
    assert said[0] == "api: app.toml changed on disk since it was started"
    assert {"workers 2 → 3 live", "env.MODE (none) → b needs reload"} <= {*said}, said
    assert said[-1] == "pyworker reload api applies new code and settings"
    changes = json.loads(pw.ok("start", "app.toml", "--json").stdout)["changes"]
    assert {(c["key"], c["new"]) for c in changes} == {("workers", 3), ("env.MODE", "b"), ("env.TOKEN", "***")}
    assert (pw.pids(), pw.app()["gen"]) == (before, 1)
    pw.write("app.toml", "[app")
    assert "shows what is wrong" in pw.ok("start", "api").stderr


def test_what_runs_and_is_in_its_file_no_more_is_named_by_a_start_of_the_file(pw: Pyworker) -> None:
    text = '[apps.one]\ncommand = "sleep 1000"\n[apps.two]\ncommand = "sleep 1000"\n'
    pw.write("app.toml", text)
    pw.ok("start")
    pw.write("app.toml", text.replace("two", "three"))
    told = "two: app.toml has no such app any more; is it to go? pyworker delete two"
    assert told in pw.ok("start").stderr
    assert pw.app("two")["state"] == "running"
    assert told not in pw.ok("start", "--only", "one").stderr
    pw.ok("stop", "two")
    assert told not in pw.ok("start").stderr


def test_what_another_folder_has_by_the_same_name_is_not_taken_for_what_runs(pw: Pyworker) -> None:
    """Two projects with a main.py: the second was said to run already."""
    pw.write("main.py", ASGI)
    os.mkdir(os.path.join(pw.folder, "other"))
    pw.write("other/main.py", ASGI)
    os.symlink(pw.folder, os.path.join(pw.folder, "link"))
    start = ("start", "main:app", "--bind", f"127.0.0.1:{pw.port}")
    pw.ok(*start)
    assert pw.ok(*start).stdout.startswith("main running already")
    assert pw.ok(*start, "--cwd", "link").stdout.startswith("main running already")
    done = pw.run(*start, "--cwd", "other")
    assert done.returncode == 1
    assert f"there is an app named main already, from the command line in {pw.folder}\n" in done.stderr
    assert "choose another name (--name), or: pyworker delete main" in done.stderr


def test_a_second_start_shows_what_the_first_one_has_begun(pw: Pyworker) -> None:
    go = os.path.join(pw.folder, "go")
    os.mkfifo(go)
    pw.api("open('go').read()\n" + ASGI)  # until somebody has opened and closed it
    pw.ok("start", "app.toml", "--no-wait")
    again = pw.popen("start", "app.toml")
    assert again.stderr is not None
    assert again.stderr.readline().startswith("starting api: web:app, 2 workers")
    os.close(os.open(go, os.O_WRONLY))
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0
    assert out.startswith("api running already 2/2")
    assert "api imported" in err
    pw.ok("daemon", "stop", "-y")
    again = pw.popen("start", "app.toml")  # which has the daemon start it
    assert again.stderr is not None
    assert any(line.startswith("starting api: web:app, 2 workers") for line in again.stderr)
    os.close(os.open(go, os.O_WRONLY))
    out, err = again.communicate(timeout=60)
    assert out.startswith("api running 2/2"), err


def test_one_file_starts_several_apps(pw: Pyworker) -> None:
    other = pw.another_port()
    pw.write("web.py", ASGI)
    pw.write("old.py", WSGI)
    pw.write(
        "app.toml",
        f'[defaults]\nworkers = 2\n[apps.web]\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\n'
        f'[apps.old]\ntarget = "old:app"\nbind = "127.0.0.1:{other}"\nworkers = 1\n',
    )
    pw.ok("start", "app.toml")
    assert int(pw.get().split()[1]) in pw.pids("web")
    assert [int(pw.get(port=other).split()[1])] == pw.pids("old")


@pytest.mark.parametrize("heals", [False, True])
def test_what_dies_while_others_still_start_is_not_told_as_started(pw: Pyworker, heals: bool) -> None:
    fails = ASGI.replace("VERSION =", 'if os.path.exists("broken"):\n    raise SystemExit("no database")\nVERSION =')
    pw.write("fails.py", fails)
    pw.write("late.py", WAITS + ASGI)
    pw.write(
        "app.toml",
        '[defaults]\nworkers = 1\npreload = false\n[defaults.restart]\nmax_restarts = 1000\n'
        f'[apps.fails]\ntarget = "fails:app"\nbind = "127.0.0.1:{pw.port}"\n'
        + ("" if heals else "[apps.fails.restart]\nmax_restarts = 1\n")
        + f'[apps.late]\ntarget = "late:app"\nbind = "127.0.0.1:{pw.another_port()}"\n',
    )
    start = pw.popen("start", "app.toml")
    wait_until(lambda: pw.status() and "fails" in {a["name"] for a in pw.ps()["apps"]}, LONG, "the daemon")
    wait_until(lambda: pw.app("fails")["state"] == "running", LONG, "the first app")
    pw.write("broken", "")
    kill(pw.pids("fails")[0])
    wait_until(lambda: pw.app("fails")["state"] == ("degraded" if heals else "failed"), LONG, "its failure")
    pw.write("go", "")
    wait_until(lambda: pw.app("late")["state"] == "running", LONG, "the other app")
    if heals:
        os.unlink(os.path.join(pw.folder, "broken"))
    out, err = start.communicate(timeout=60)
    assert (start.returncode, "late running 1/1" in out, "fails running 1/1" in out) == (0 if heals else 1, True, heals), out + err
    assert ("fails did not start: gave up" in err) is not heals, err


def test_a_bad_config_starts_nothing_the_daemon_included(pw: Pyworker) -> None:
    pw.write("app.toml", '[app]\nname = "api"\ntarget = "web:app"\nworkrs = 4\nbalance = "fair"\n')
    done = pw.run("start", "app.toml")
    assert done.returncode == 78
    assert "did you mean `workers`?" in done.stderr
    assert "app.balance" in done.stderr
    assert pw.status() == {}
    assert not pw.processes()


def test_an_import_that_hangs_is_said_with_its_place(pw: Pyworker) -> None:
    hangs = "import socket\n\ndef connect():\n    socket.create_server(('127.0.0.1', 0)).accept()\n\nconnect()\n"
    pw.api(hangs + ASGI, tables='[app.reload]\nready_timeout = "3s"')
    done = pw.run("start", "app.toml")
    assert done.returncode == 1
    assert f"the import took more than 3 s: it is in {pw.folder}/web.py:4 in connect" in done.stderr
    assert "does the import wait for something?" in done.stderr


def test_an_import_that_crashes_is_said_with_its_place(pw: Pyworker) -> None:
    pw.api("import ctypes\n\ndef load():\n    ctypes.string_at(0)\n\nload()\n" + ASGI)
    done = pw.run("start", "app.toml")
    assert done.returncode == 1
    assert "killed by signal 11 (SEGV): it was in " in done.stderr
    assert f"{pw.folder}/web.py:4 in load" in done.stderr


def test_an_import_that_is_stopped_by_a_signal_is_not_said_to_be_slow(pw: Pyworker) -> None:
    stops = "import os, signal\n\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    pw.api(stops + ASGI, tables='[app.reload]\nready_timeout = "4s"')
    done = pw.run("start", "app.toml")
    assert done.returncode == 1
    assert "the import took more than 4 s: it was stopped by a signal\n  = help: who has sent it SIGSTOP?" in done.stderr


def test_a_port_in_use_by_an_app_of_ours_is_no_reason_to_kill_its_daemon(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    for address in (f":{pw.port}", f"localhost:{pw.port}"):
        done = pw.run("start", "--name", "other", "-b", address, "--", "sleep", "60")
        assert done.returncode == 1
        assert "by your app api" in done.stderr
        assert "pyworker stop api" in done.stderr


def test_a_port_in_use_by_a_program_of_ours_is_no_reason_to_kill_that(pw: Pyworker) -> None:
    serve = f"import socket, time; s = socket.create_server(('127.0.0.1', {pw.port})); time.sleep(600)"
    pw.ok("start", "--name", "own", "--", "sh", "-c", '"$@"; true', "sh", sys.executable, "-c", serve)  # a child of the worker
    with socket.socket() as client:
        wait_until(lambda: client.connect_ex(("127.0.0.1", pw.port)) == 0, LONG, "the program listens")
    done = pw.run("start", "--name", "other", "-b", f":{pw.port}", "--", "sleep", "60")
    assert done.returncode == 1
    assert "by your app own" in done.stderr
    assert "pyworker stop own" in done.stderr


def test_an_address_that_bind_has_twice_under_two_names_is_refused(pw: Pyworker) -> None:
    pw.write("web.py", ASGI)
    bind = [f"localhost:{pw.port}", f"127.0.0.1:{pw.port}"]
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "web:app"\nbind = {bind}\n')
    done = pw.run("start", "app.toml")
    assert done.returncode == 1
    assert f"cannot listen on {bind[1]}: that is {bind[0]}, which `bind` names, too" in done.stderr
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "web:app"\nbind = "{bind[0]}"\n')
    pw.ok("start", "app.toml")


def test_a_port_that_the_kernel_has_chosen_is_shown(pw: Pyworker) -> None:
    pw.write("web.py", ASGI)
    pw.write("app.toml", '[app]\nname = "api"\ntarget = "web:app"\nbind = "127.0.0.1:0"\n')
    said = pw.ok("start", "app.toml").stdout.split()[-1]
    (shown,) = pw.app()["listen"]
    assert said == shown
    port = int(shown.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_only_start_starts_a_daemon(pw: Pyworker) -> None:
    for command in (["ps"], ["stop", "api"], ["reload", "api"], ["describe", "api"]):
        done = pw.run(*command)
        assert done.returncode == 69, (command, done.stdout, done.stderr)
    pw.ok("events")  # of the past, of which there is none
    assert not pw.processes()


def test_twenty_first_starts_at_once_make_one_daemon(pw: Pyworker) -> None:
    pw.api(ASGI)
    starts = [pw.popen("start", "app.toml") for _ in range(20)]
    ends = [(*start.communicate(timeout=90), start.returncode) for start in starts]
    assert [code for _, _, code in ends] == [0] * 20, ends
    titles = list(pw.titles().values())
    assert sum("guardian" in title for title in titles) == 1, titles
    assert sum("daemon" in title for title in titles) == 1, titles
    assert len(pw.pids()) == 2


def test_who_ignores_the_end_of_children_may_start_a_daemon(pw: Pyworker) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        command = pw.popen("daemon", "start")
    finally:
        signal.signal(signal.SIGCHLD, before)
    said = command.communicate()[1]
    assert command.returncode == 0, said


def test_an_unknown_app_names_the_daemon_that_was_asked(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    for command in ("stop", "reload", "restart", "describe"):
        done = pw.run(command, "nobody")
        assert done.returncode == 4, (command, done.stderr)
        assert "nobody" in done.stderr
        assert pw.home in done.stderr


def test_the_home_is_private_and_the_daemon_is_detached(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    assert stat.S_IMODE(os.stat(pw.home).st_mode) == 0o700
    for name in ("control.sock", "apps.json", "events.jsonl"):
        assert stat.S_IMODE(os.stat(os.path.join(pw.home, name)).st_mode) == 0o600, name
    ours = os.getsid(0)
    for role in ("guardian", "daemon", "logger"):
        pid = pw.role(role)
        assert os.getsid(pid) != ours, role
        assert psutil.Process(pid).terminal() is None, role
        if os.geteuid() == 0:  # nobody else may look: our processes are not dumpable
            assert os.readlink(f"/proc/{pid}/cwd") == "/", role


def test_top_and_the_kernels_log_name_each_process_of_ours(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    for role in ("guardian", "daemon", "logger"):
        with open(f"/proc/{pw.role(role)}/comm") as name:
            assert name.read() == f"pyworker {role}"[:15] + "\n"


def test_a_daemon_that_stopped_leaves_no_process_and_no_port(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.ok("daemon", "stop", "-y")
    wait_until(lambda: not pw.processes(), LONG, "the end")
    assert pw.refuses()
    assert pw.run("ps").returncode == 69


@pytest.mark.parametrize("again", ["start", "restart"])
def test_a_start_of_a_stopped_app_that_its_daemon_did_not_live_to_write_down_leaves_no_port_open(pw: Pyworker, again: str) -> None:
    pw.make_failpoints()
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pw.ok("stop", "api")
    daemon = pw.role("daemon")
    pw.arm("start.pinned", "kill")
    assert pw.run(again, "api").returncode == 69
    wait_until(lambda: pw.status().get("pid", daemon) != daemon, LONG, "the next daemon")
    assert pw.app()["state"] == "stopped"
    assert pw.refuses()
    pw.ok("start", "api")
    assert pw.get()

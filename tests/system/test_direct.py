"""Commands that are started directly: whoever dies before their pid is told, none runs twice and none is forgotten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

from tests.support.pyworker import LONG, Pyworker, alive
from tests.support.wait import wait_until

PLAIN = "echo $$ >> born; exec sleep 600"
REDIRECTED = "exec > own.log 2>&1; echo $$ >> born; exec sleep 600"
OWN_ENVIRONMENT = "echo $$ >> born; exec env -i sleep 600"

READY = """
import os, socket, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(600)
"""


def born(pw: Pyworker) -> list[int]:
    try:
        with open(os.path.join(pw.folder, "born")) as file:
            return [int(line) for line in file.read().split()]
    except FileNotFoundError:
        return []


def start(pw: Pyworker, script: str) -> None:
    pw.write("app.toml", f"[apps.job]\ncommand = ['sh', '-c', '{script}']\n")
    pw.run("start", "app.toml")  # it may lose the daemon that it asked


@pytest.mark.parametrize(("point", "script"), [("launch.started", REDIRECTED), ("spawn.claim", OWN_ENVIRONMENT)])
def test_a_command_whose_pid_could_not_be_told_is_found_and_not_started_twice(pw: Pyworker, point: str, script: str) -> None:
    pw.make_failpoints()
    passed = pw.arm(point, "kill") + ".hit"
    start(pw, script)
    wait_until(lambda: os.path.exists(passed), LONG, f"{point} to be passed")
    pw.wait_steady("job")
    wait_until(lambda: born(pw), LONG, "it to say so")  # it counts as ready after a second, whatever it has done in that
    assert born(pw) == pw.pids("job")
    pw.ok("stop", "job")
    wait_until(lambda: not alive(born(pw)[0]), LONG, "its end")


def test_a_command_that_is_stopped_before_its_pid_is_told_does_not_stay(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.ok("daemon", "start")
    passed = pw.arm("launch.started", "sleep:2") + ".hit"
    pw.write("app.toml", f"[apps.job]\ncommand = ['sh', '-c', '{PLAIN}']\n")
    starting = pw.popen("start", "app.toml")
    wait_until(lambda: os.path.exists(passed) and born(pw), LONG, "it to run")
    pw.ok("stop", "job")
    wait_until(lambda: not alive(born(pw)[0]), LONG, "its end")
    starting.communicate(timeout=LONG)
    assert len(born(pw)) == 1


def test_a_command_that_ends_at_once_is_known_by_its_exit_code(pw: Pyworker) -> None:
    pw.write("app.toml", "[apps.job]\ncommand = ['sh', '-c', 'exit 7']\n[apps.job.restart]\npolicy = 'never'\n")
    assert pw.run("start", "app.toml").returncode
    wait_until(lambda: pw.app("job")["pool"] == [] or pw.app("job")["state"] == "failed", LONG, "its end")
    assert "7" in pw.run("describe", "job").stdout


def start_proxied(pw: Pyworker) -> None:
    serves = "echo $$ >> born; exec python3 -m http.server $PORT"
    pw.make_failpoints()
    pw.write(
        "app.toml",
        f"[apps.job]\ncommand = ['sh', '-c', '{serves}']\nbalance = 'proxy'\nbind = '127.0.0.1:{pw.port}'\n"
        "[apps.job.reload]\nsoak = '0s'\n[apps.job.restart]\nmin_uptime = '0s'\n",
    )
    pw.ok("start", "app.toml")


@pytest.mark.parametrize("point", ["launch.started", "spawn.claim"])
def test_a_command_of_a_reload_that_the_next_daemon_gives_up_does_not_stay(pw: Pyworker, point: str) -> None:
    start_proxied(pw)
    passed = pw.arm(point, "kill") + ".hit"
    pw.run("reload", "job")  # it may lose the daemon that it asked
    assert os.path.exists(passed)
    pw.wait_steady("job")
    wait_until(lambda: [pid for pid in born(pw) if alive(pid)] == pw.pids("job"), LONG, "the end of the one too many")


def test_a_command_whose_port_died_with_the_daemon_is_replaced_at_once(pw: Pyworker) -> None:
    start_proxied(pw)
    passed = pw.arm("ledger.half", "kill") + ".hit"
    os.kill(pw.pids("job")[0], signal.SIGKILL)
    wait_until(lambda: os.path.exists(passed), LONG, "the daemon to die before it has noted the port")
    pw.wait_steady("job")
    wait_until(lambda: [pid for pid in born(pw) if alive(pid)] == pw.pids("job"), LONG, "the end of the one too many")


@pytest.mark.parametrize("kind", ["script = 'job.py'", "command = ['sleep', '600']\nbind = '127.0.0.1:{port}'"])
def test_how_one_ended_that_had_not_said_a_word_is_known_all_the_same(pw: Pyworker, kind: str) -> None:
    pw.make_failpoints()
    pw.arm("launch.born", "kill")
    pw.write("job.py", "import time\ntime.sleep(600)\n")
    pw.write("app.toml", f"[apps.job]\n{kind.format(port=pw.port)}\n")
    assert "job.1 exited killed by signal 9 (KILL)" in pw.run("start", "app.toml").stderr


def test_a_first_start_goes_on_when_the_launcher_dies_over_it(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.arm("launch.started", "kill")
    pw.write("app.toml", f"[apps.job]\nworkers = 5\ncommand = ['sh', '-c', '{PLAIN}']\n")
    pw.ok("start", "app.toml")
    wait_until(lambda: sorted(pid for pid in born(pw) if alive(pid)) == sorted(pw.pids("job")), LONG, "five, and no other")


@pytest.mark.parametrize("bind", [False, True])
def test_a_command_that_cannot_be_watched_for_want_of_descriptors_is_not_left_running(pw: Pyworker, bind: bool) -> None:
    pw.make_failpoints()
    pw.arm("spawn.claim", "raise:EMFILE")
    pw.write("app.toml", f"[apps.job]\ncommand = ['sh', '-c', '{PLAIN}']\n" + f"bind = '127.0.0.1:{pw.port}'\n" * bind)
    assert pw.run("start", "app.toml").returncode == 1
    pw.ok("start", "job")
    wait_until(lambda: [pid for pid in born(pw) if alive(pid)] == pw.pids("job"), LONG, "one, and no other")


def test_a_command_that_is_ready_before_its_pid_is_told_counts_as_ready(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.arm("launch.started", "sleep:0.5")
    pw.write("ready.py", READY)
    pw.write("app.toml", f"[apps.job]\nready = 'notify'\ncommand = ['{pw.python}', '-I', 'ready.py']\n")
    pw.ok("start", "app.toml", timeout=LONG)


@pytest.mark.parametrize("kind", ["proxied", "node"])
def test_one_that_serves_before_its_pid_is_told_is_ready_when_it_is(pw: Pyworker, kind: str) -> None:
    pw.make_failpoints()
    pw.arm("launch.started", "sleep:2")
    if kind == "node":
        if not shutil.which("node"):
            pytest.skip("there is no node here")
        pw.write("serve.js", f"require('http').createServer((_, answer) => answer.end('hi')).listen({pw.port}, '127.0.0.1')\n")
        how = "command = ['node', 'serve.js']"
    else:
        how = f"command = ['sh', '-c', 'exec {pw.python} -m http.server $PORT']\nbalance = 'proxy'"
    pw.write("app.toml", f"[apps.job]\n{how}\nbind = '127.0.0.1:{pw.port}'\n")
    pw.ok("start", "app.toml", timeout=LONG)
    (pid,) = pw.pids("job")
    told = [json.loads(line) for line in pw.ok("events", "--type", "worker_starting,worker_ready", "--json").stdout.splitlines()]
    assert [(event["type"], event["data"]["pid"]) for event in told] == [("worker_starting", pid), ("worker_ready", pid)]


def test_a_daemon_that_is_told_to_stop_first_hears_what_the_launcher_has_started(pw: Pyworker) -> None:
    pw.make_failpoints()
    passed = pw.arm("launch.started", "sleep:1") + ".hit"
    pw.write("app.toml", f"[apps.job]\ncommand = ['sh', '-c', '{PLAIN}']\n")
    starting = pw.popen("start", "app.toml")
    wait_until(lambda: os.path.exists(passed) and born(pw), LONG, "it to run")
    pw.ok("daemon", "stop", "-y")
    starting.communicate(timeout=LONG)
    assert not alive(born(pw)[0])


def test_a_command_that_was_given_up_does_not_begin_while_the_guardian_holds_its_channel(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.ok("daemon", "start")
    guardian = pw.role("guardian")
    passed = pw.arm("launch.started", "sleep:8") + ".hit"  # the launcher is busy with the other one
    pw.write("other.toml", "[apps.other]\ncommand = ['sleep', '600']\n")
    pw.write("app.toml", f"[apps.job]\nbind = '127.0.0.1:{pw.port}'\ncommand = ['sh', '-c', '{PLAIN}']\n")
    starting = [pw.popen("start", "other.toml")]
    wait_until(lambda: os.path.exists(passed), LONG, "the launcher to be busy")
    starting.append(pw.popen("start", "app.toml"))
    wait_until(lambda: any(app["name"] == "job" and app["pool"] for app in pw.ps()["apps"]), LONG, "it to be asked for")
    os.kill(guardian, signal.SIGSTOP)
    try:
        pw.ok("stop", "job")
        late = time.time() - os.stat(passed).st_ctime > 8
        starting[0].communicate(timeout=LONG)
    finally:
        os.kill(guardian, signal.SIGCONT)
    starting[1].communicate(timeout=LONG)
    assert not any(map(alive, born(pw)))
    assert born(pw) == [] or late  # on a machine so busy that the launcher was free before the stop came, it was stopped


def test_killed_in_its_first_moment_it_is_replaced(pw: Pyworker) -> None:
    start(pw, PLAIN)
    first = pw.wait_steady("job")["pool"][0]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pw.wait_steady("job")["pool"][0]["pid"] != first, LONG, "another one")
    wait_until(lambda: born(pw)[-1:] == pw.pids("job"), LONG, "it to say so")

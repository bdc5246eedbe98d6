"""`daemon run` under a service manager (a datagram socket that plays its part), and the service files."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.wait import wait_until

APP = """
VERSION = "one"
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": VERSION.encode()})
"""


class Manager:
    """Starts `pyworker daemon run` as systemd would, and keeps what it is told."""

    def __init__(self, pw: Pyworker) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = os.path.join(pw.folder, "notify")
        self.sock.bind(path)
        self.said: list[str] = []
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", "daemon", "run"],
            env={**pw.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "600000"},
            stdin=subprocess.DEVNULL,
        )

    def _read(self) -> None:
        """All the time: the kernel keeps ten words for who does not, and the daemon says none of them twice."""
        while words := self.sock.recv(4096):
            self.said += words.decode().splitlines()

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.said, LONG, lambda: f"{line} in {self.said}")

    def close(self) -> None:
        self.process.kill() if self.process.poll() is None else None
        self.process.wait()
        self.sock.shutdown(socket.SHUT_RD)
        self.reading.join()
        self.sock.close()


@pytest.fixture
def manager(pw: Pyworker) -> Iterator[Manager]:
    pw.make_failpoints()
    pw.api(APP, workers=1)
    pw.ok("start")
    pw.ok("daemon", "stop", "-y")
    found = Manager(pw)
    yield found
    pw.run("daemon", "stop", "-y", "--now")
    found.close()


def test_it_is_ready_when_what_ran_before_runs_again(pw: Pyworker, manager: Manager) -> None:
    manager.wait_for("READY=1")
    assert pw.get() == "one"
    assert pw.status()["guardian_pid"] == manager.process.pid
    manager.wait_for("STATUS=1 app, 1/1 workers ready")
    manager.wait_for("WATCHDOG=1")


def test_a_hangup_reloads_every_app_and_the_end_says_so(pw: Pyworker, manager: Manager) -> None:
    manager.wait_for("READY=1")
    manager.said.clear()
    pw.write("web.py", APP.replace("one", "two"))
    manager.process.send_signal(signal.SIGHUP)
    manager.wait_for("READY=1")
    order = [line.partition("=")[0] for line in manager.said]
    assert order.index("RELOADING") < order.index("MONOTONIC_USEC") < order.index("READY")
    assert pw.get().startswith("two")
    manager.process.send_signal(signal.SIGTERM)
    manager.wait_for("STOPPING=1")
    assert manager.process.wait(LONG) == 0
    assert pw.refuses()


def test_a_hangup_while_the_next_daemon_comes_up_is_not_forgotten(pw: Pyworker, manager: Manager) -> None:
    """`systemctl reload` waited in vain for the word that it begins."""
    manager.wait_for("READY=1")
    pw.write("web.py", APP.replace("one", "two"))
    held_up = pw.arm("daemon.serving", "hold") + ".hit"
    kill(pw.role("daemon"))
    wait_until(lambda: os.path.exists(held_up), LONG, "the next daemon")
    manager.said.clear()
    manager.process.send_signal(signal.SIGHUP)
    os.unlink(held_up)
    manager.wait_for("RELOADING=1")
    del manager.said[: manager.said.index("RELOADING=1")]  # what is ready before is the start, told again
    manager.wait_for("READY=1")
    assert pw.get() == "two"


def test_a_stop_that_somebody_has_typed_is_told_too(pw: Pyworker, manager: Manager) -> None:
    manager.wait_for("READY=1")
    pw.ok("daemon", "stop", "-y")
    manager.wait_for("STOPPING=1")
    assert manager.process.wait(LONG) == 0


def test_a_stop_asks_for_the_time_that_the_apps_may_take_one_after_another(pw: Pyworker, manager: Manager) -> None:
    manager.wait_for("READY=1")
    text = '[apps.db]\ncommand = "sleep 1000"\nstop.kill_timeout = "2m"\n[apps.job]\ncommand = "sleep 1000"\ndepends_on = "db"\n'
    pw.write("two.toml", text + 'stop.kill_timeout = "5m"\n')
    pw.ok("start", "two.toml")
    needed = 30 + 120 + 30 + 300
    assert pw.status()["stop_s"] >= needed
    manager.process.send_signal(signal.SIGTERM)
    manager.wait_for("STOPPING=1")
    asked = [int(line.partition("=")[2]) for line in manager.said if line.startswith("EXTEND_TIMEOUT_USEC=")]
    assert asked[-1] >= needed * 1_000_000


def test_a_start_that_takes_long_is_not_cut_off_and_has_its_end_under_the_next_daemon_too(pw: Pyworker) -> None:
    migrate = '[apps.migrate]\ncommand = ["sh", "-c", "until [ -e go ]; do sleep 0.1; done"]\nrestart = "never"\n'
    pw.write("app.toml", migrate + '[apps.api]\ncommand = "sleep 1000"\ndepends_on = "migrate"\n')
    go = pw.write("go", "")
    pw.ok("start")
    pw.ok("daemon", "stop", "-y")
    os.unlink(go)
    manager = Manager(pw)
    try:
        wait_until(lambda: any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.said), LONG, "more time to be asked for")
        assert "READY=1" not in manager.said
        daemon = pw.role("daemon")
        kill(daemon)
        wait_until(lambda: pw.status().get("pid", daemon) != daemon, LONG, "the next daemon")
        pw.write("go", "")
        manager.wait_for("READY=1")
    finally:
        pw.run("daemon", "stop", "-y", "--now")
        manager.close()


def test_a_successor_of_the_main_process_is_named(pw: Pyworker, manager: Manager) -> None:
    manager.wait_for("READY=1")
    daemon = pw.role("daemon")
    kill_main = manager.process
    kill_main.send_signal(signal.SIGKILL)
    kill_main.wait(LONG)
    manager.wait_for(f"MAINPID={daemon}")
    assert pw.get() == "one"


def test_a_successor_is_named_before_it_is_ready_to_take_a_hangup_and_then_takes_it(pw: Pyworker, manager: Manager) -> None:
    manager.wait_for("READY=1")
    daemon, before = pw.role("daemon"), pw.pids()
    held_up = pw.arm("guardian.adopted", "hold") + ".hit"
    manager.process.kill()
    wait_until(lambda: os.path.exists(held_up), LONG, "the daemon to become the guardian")
    os.kill(daemon, signal.SIGHUP)
    manager.wait_for(f"MAINPID={daemon}")
    os.unlink(held_up)
    manager.wait_for("RELOADING=1")
    wait_until(lambda: not set(pw.pids()) & set(before), LONG, "the reload")
    assert pw.get() == "one"


def test_a_second_one_for_the_same_home_says_who_has_it(pw: Pyworker, manager: Manager) -> None:
    manager.wait_for("READY=1")
    second = pw.run("daemon", "run")
    assert second.returncode == 75
    assert "already" in second.stderr


def test_a_second_one_that_waits_takes_the_place_of_the_first_when_nothing_is_left_of_it(pw: Pyworker, manager: Manager) -> None:
    """A manager that has lost the guardian started one every two seconds, which ended at once, for as long as the daemon ran."""
    manager.wait_for("READY=1")
    waiting = pw.popen("daemon", "run", "--wait")
    wait_until(lambda: re.search(rf"-> FLOCK .* {waiting.pid} ", pathlib.Path("/proc/locks").read_text()), LONG, "the wait")
    daemon = pw.role("daemon")
    for process in (manager.process.pid, daemon):
        os.kill(process, signal.SIGSTOP)  # neither becomes what the other was
    for process in (manager.process.pid, daemon):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: "pyworker guardian" in pw.titles().get(waiting.pid, ""), LONG, "the next")
    pw.wait_steady()
    assert pw.get() == "one"
    pw.ok("daemon", "stop", "-y", "--now")
    waiting.communicate(timeout=LONG)
    assert waiting.returncode == 0

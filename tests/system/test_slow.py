"""A machine on which one process is slow for a moment: then all takes longer, and nothing else is different."""

from __future__ import annotations

import os
import re

import psutil
import pytest

from tests.support.pyworker import LONG, Pyworker
from tests.support.wait import wait_until

SERVER = """
import os, socket, sys
{first}
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", {port}))
    listener.listen()
    while True:
        with listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\none")
"""
# a helper says that it is ready, and is gone before anybody has heard it
NOTIFIES = """
import os, socket, subprocess, sys, time
while not os.path.exists("go"):
    time.sleep(0.01)
says = "import os, socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
subprocess.run([sys.executable, "-c", says], check=True)
open("gone", "w").close()
time.sleep(600)
"""


def there_is(pw: Pyworker, name: str) -> bool:
    return os.path.exists(os.path.join(pw.folder, name))


def test_a_stop_waits_for_a_logger_that_is_slow_to_write_the_last_lines(pw: Pyworker) -> None:
    pw.make_failpoints()
    script = "trap 'echo heard; exit' TERM; echo begun; while :; do sleep 0.1; done"
    pw.ok("start", "--name", "api", "--", "sh", "-c", script)
    wait_until(lambda: "begun" in pw.ok("logs", "api").stdout, LONG, "its first line")
    pw.arm("logger.write", "sleep:6")
    pw.ok("daemon", "stop", "-y", timeout=90)
    assert "heard" in pw.ok("logs", "api").stdout


@pytest.mark.parametrize(
    ("slow", "program"),
    [
        ("logger.write sleep:4", "echo no disk >&2; exit 3"),
        ("logger.write sleep:1.5", "sleep 600 & echo no disk >&2; exit 3"),  # a child of it holds its output open
        ("spawn.claim sleep:0.8", "echo no disk >&2; exit 3"),  # it has ended before its pid is known
        ("launch.leave sleep:2", "echo no disk >&2; exit 3"),
    ],
)
def test_a_failed_start_names_its_cause_whatever_is_slow(pw: Pyworker, slow: str, program: str) -> None:
    pw.make_failpoints()
    pw.arm(*slow.split())
    done = pw.run("start", "--name", "api", "--", "sh", "-c", program)
    assert "no disk (exit code 3)" in done.stderr, done.stderr


def test_a_script_that_is_born_after_it_was_given_up_does_not_run(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.ok("daemon", "start")
    held_up = pw.arm("launch.born", "hold") + ".hit"
    pw.write("job.py", "import time\nopen('ran', 'w').close()\ntime.sleep(600)\n")
    pw.write("app.toml", '[app]\nname = "job"\nscript = "job.py"\nreload = { ready_timeout = "1s" }\n')
    assert "not ready within 1 s" in pw.run("start", "app.toml").stderr
    os.unlink(held_up)
    wait_until(lambda: len(pw.titles()) == 3, LONG, "the launch to end: guardian, daemon and logger are left")
    assert not there_is(pw, "ran")


def test_a_reload_waits_for_the_port_of_a_script_that_is_slow_to_bind_it(pw: Pyworker) -> None:
    port = pw.another_port()
    pw.write("server.py", SERVER.format(first="", port=port))
    pw.ok_listening("start", "--name", "api", "server.py")
    old = pw.pids()
    pw.write("server.py", SERVER.format(first="import time; time.sleep(4); sys.exit('no disk')", port=port))
    done = pw.run("reload", "api")
    assert done.returncode == 1
    assert "no disk" in done.stderr
    assert pw.pids() == old
    assert pw.get(port=port) == "one"


def test_a_script_that_binds_no_port_any_more_is_not_reloaded_and_told_the_way(pw: Pyworker) -> None:
    port = pw.another_port()
    pw.write("server.py", SERVER.format(first="", port=port))
    pw.write("app.toml", '[app]\nname = "api"\nscript = "server.py"\nreload = { ready_timeout = "4s" }\n')
    pw.ok_listening("start")
    old = pw.pids()
    pw.write("server.py", "import time\ntime.sleep(600)\n")
    done = pw.run("reload")
    assert done.returncode == 1
    assert "not ready within 4 s: it has bound no port" in done.stderr
    assert pw.pids() == old
    pw.ok("restart", "api")
    assert pw.app()["state"] == "running"


def test_ready_is_heard_from_a_helper_that_has_ended_before_the_daemon_reads_it(pw: Pyworker) -> None:
    pw.write("notifies.py", NOTIFIES)
    pw.write("app.toml", '[app]\nname = "api"\ncommand = ["python3", "notifies.py"]\nready = "notify"\n')
    starting = pw.popen("start", "app.toml")
    wait_until(lambda: pw.status().get("apps") and pw.pids(), LONG, "it to begin")
    daemon = psutil.Process(pw.role("daemon"))
    daemon.suspend()
    pw.write("go", "")
    wait_until(lambda: there_is(pw, "gone"), LONG, "its helper to end")
    daemon.resume()
    out, err = starting.communicate(timeout=LONG)
    assert starting.returncode == 0, out + err


def test_a_lifespan_that_waits_for_ever_is_told_with_its_place_and_what_it_has_printed(pw: Pyworker) -> None:
    waits = (
        "import asyncio, contextlib\n"
        "@contextlib.asynccontextmanager\n"
        "async def lifespan():\n"
        "    while True:\n"
        "        print('the broker does not answer, trying again', flush=True)\n"
        "        await asyncio.sleep(0.1)\n"
        "    yield\n"
        "async def app(scope, receive, send):\n"
        "    async with lifespan(): pass\n"
    )
    pw.api(waits, tables='[app.reload]\nready_timeout = "3s"')
    said = pw.run("start", "app.toml").stderr
    assert re.search(r"error: api did not start: not ready within 3 s: it is in \S+/web\.py:6 in lifespan\n", said), said
    assert "\n\nthe broker does not answer, trying again\n" in said
    assert "longer reload.ready_timeout?" in said

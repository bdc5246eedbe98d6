"""A worker that the kernel ended: memory, CPU time and limits are named, a kill by hand is not taken for one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pyworker import LONG, Pyworker
from tests.support.sources import ASGI, WSGI
from tests.support.wait import wait_until

HUNGRY = ASGI.replace(
    'elif path == "/crash":',
    'elif path == "/burn":\n        while True: pass\n    elif path == "/much":\n        hoard.append(b"x" * (1 << 28))\n'
    '    elif path == "/end":\n        os.write(2, b"MemoryError\\n"), os._exit(1)\n    elif path == "/crash":',
)
RESTART = '[app.restart]\nmin_uptime = "0s"\n'


def last_exit(pw: Pyworker) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(lambda: next((w["last_exit"] for w in pw.app()["pool"]), None), LONG, "a death")
    return found


def ask(pw: Pyworker, path: str) -> None:
    """The answer may be cut off by the death that it causes."""
    with contextlib.suppress(OSError, AssertionError):
        pw.get(path, timeout=LONG)


@pytest.fixture
def small_cgroup() -> Iterator[str]:
    """A memory cgroup of 96 MB, for whatever is started after `join`."""
    folder = None
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        if not os.path.exists(os.path.join(root, "cgroup.procs")):
            continue
        with contextlib.suppress(OSError):
            made = os.path.join(root, f"pyworker-test-{uuid.uuid4().hex[:8]}")
            os.mkdir(made)
            try:
                Path(made, limit).write_text(str(96 << 20))
                folder = made
                break
            except OSError:
                os.rmdir(made)
    if folder is None:
        pytest.skip("memory cgroups cannot be made here (that takes root and a writable /sys/fs/cgroup)")
    yield folder
    wait_until(lambda: not Path(folder, "cgroup.procs").read_text().split(), LONG, "the group to be empty")
    os.rmdir(folder)


def test_the_out_of_memory_killer_is_named_with_the_limit(small_cgroup: str, pw: Pyworker) -> None:
    pw.api(HUNGRY, workers=1, tables=RESTART)
    join = f"echo $$ > {small_cgroup}/cgroup.procs && exec {sys.executable} -m pyworker start app.toml"
    subprocess.run(["/bin/sh", "-c", join], env=pw.environ, cwd=pw.folder, check=True, capture_output=True, timeout=60)
    ask(pw, "/much")
    reason = last_exit(pw)["reason"]
    assert "out of memory" in reason
    assert "96 MB" in reason
    assert "out of memory" in pw.ok("events", "api").stdout


def test_an_import_that_the_out_of_memory_killer_ends_is_told_so(small_cgroup: str, pw: Pyworker) -> None:
    pw.api("hoard = b'x' * (1 << 28)\n" + ASGI, workers=1)
    join = f"echo $$ > {small_cgroup}/cgroup.procs && exec {sys.executable} -m pyworker start app.toml"
    refused = subprocess.run(["/bin/sh", "-c", join], env=pw.environ, cwd=pw.folder, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "its import was killed by the kernel: out of memory (limit of its cgroup: 96 MB)" in refused.stderr
    assert "loaded at import" in refused.stderr
    assert "Traceback" not in Path(pw.home, "logs", "pyworker.log").read_text()


def test_a_pre_start_that_the_out_of_memory_killer_ends_is_told_so(small_cgroup: str, pw: Pyworker) -> None:
    pw.write("hungry.py", "hoard = b'x' * (1 << 28)\n")
    pw.api(ASGI, workers=1, tables=f'[app.hooks]\npre_start = ["{sys.executable}", "hungry.py"]\n')
    join = f"echo $$ > {small_cgroup}/cgroup.procs && exec {sys.executable} -m pyworker start app.toml"
    refused = subprocess.run(["/bin/sh", "-c", join], env=pw.environ, cwd=pw.folder, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "killed by the kernel: out of memory (limit of its cgroup: 96 MB)" in refused.stderr


def test_a_kill_by_hand_is_not_taken_for_the_kernels(pw: Pyworker) -> None:
    pw.api(HUNGRY, workers=1, tables=RESTART)
    pw.ok("start", "app.toml")
    os.kill(pw.pids()[0], signal.SIGKILL)
    assert last_exit(pw)["reason"] == "killed by SIGKILL from outside"


def start_limited(pw: Pyworker, limit: str) -> None:
    """Start from a shell with a limit; it goes on to all that is started there. Never a limit of this process: it may have used more already."""
    command = ["/bin/sh", "-c", f"ulimit -S {limit} && exec {sys.executable} -m pyworker start app.toml"]
    subprocess.run(command, env=pw.environ, cwd=pw.folder, check=True, capture_output=True, timeout=60)


def test_the_limit_of_cpu_time_is_named(pw: Pyworker) -> None:
    pw.api(HUNGRY, workers=1, tables=RESTART)
    start_limited(pw, "-t 2")
    ask(pw, "/burn")
    assert "2 s of CPU time (RLIMIT_CPU)" in last_exit(pw)["reason"]


def test_the_limit_of_memory_is_named_beside_a_memory_error(pw: Pyworker) -> None:
    pw.api(HUNGRY, workers=1, tables=RESTART)
    start_limited(pw, f"-v {6 << 20}")
    ask(pw, "/end")
    assert last_exit(pw)["reason"] == "MemoryError (its memory is limited to 6144 MB (RLIMIT_AS, ulimit -v))"
    assert json.loads(pw.ok("ps", "--json").stdout)["apps"][0]["state"] in ("running", "degraded")


def test_a_worker_that_cannot_be_forked_is_said_with_the_cause(pw: Pyworker) -> None:
    pw.api(ASGI + "\n\ndef no():\n    raise BlockingIOError(11, 'no')\n\n\nos.fork = no\n", workers=1)
    refused = pw.run("start", "app.toml")
    assert refused.returncode == 1
    assert "api.1 not born: cannot fork: Resource temporarily unavailable" in refused.stderr
    assert "pids.max" in refused.stderr


def test_a_worker_whose_template_ends_before_it_is_forked_is_said_with_the_cause(pw: Pyworker) -> None:
    pw.make_failpoints()
    pw.api(ASGI, workers=1, tables="[app.restart]\nmax_restarts = 1")  # else it is tried on
    pw.arm("template.fork", "kill")
    refused = pw.run("start", "app.toml")
    assert refused.returncode == 1
    assert "did not start: its template ended: the template killed by signal 9 (KILL)" in refused.stderr


def test_a_worker_that_gets_no_threads_is_said_without_our_own_frames(pw: Pyworker) -> None:
    no = "import threading\n\n\ndef no(*_, **__):\n    raise RuntimeError(\"can't start new thread\")\n\n\n"
    no += "threading._start_new_thread = threading._start_joinable_thread = no\n"
    pw.api(no + WSGI, workers=1, top="threads = 2")
    refused = pw.run("start", "app.toml")
    assert refused.returncode == 1
    assert "api did not start: no thread for its requests: can't start new thread" in refused.stderr
    assert "ulimit -u" in refused.stderr
    assert "Traceback" not in refused.stderr + pw.run("logs").stdout

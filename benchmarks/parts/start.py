"""`start` of a tiny app until it is ready (pm2: until it is forked), with the daemon up and not up."""

import os
import shutil
import subprocess
import tempfile
import time

from benchmarks.harness import peers, procs
from benchmarks.harness.bench import Bench
from benchmarks.harness.servers import PYWORKER, pyworker_env


def run(bench: Bench) -> None:
    up = bench.book.measure("start", "start of a tiny app, daemon up", "ms", lower_is_better=True)
    not_up = bench.book.measure("start", "start of a tiny app, daemon not up", "ms", lower_is_better=True)

    def ours(_: str) -> None:
        folder = tempfile.mkdtemp(prefix="pyworker-bench-")
        env = pyworker_env(os.path.join(folder, "home"))
        try:
            for name, measure in (("first", not_up), ("second", up)):
                command = [PYWORKER, "start", "-q", "hello:asgi", "--name", name, "-w", "1", "-b", f"127.0.0.1:{procs.free_port()}"]
                began = time.perf_counter()
                subprocess.run(command, env=env, cwd=peers.APPS, check=True, capture_output=True, timeout=60)
                measure.add("pyworker", (time.perf_counter() - began) * 1000)
        finally:
            subprocess.run([PYWORKER, "daemon", "stop", "-y"], env=env, capture_output=True, timeout=60, check=False)
            shutil.rmtree(folder, ignore_errors=True)

    def pm2(_: str) -> None:
        folder = tempfile.mkdtemp(prefix="pyworker-bench-")
        env = {**peers.environment(), "PM2_HOME": folder, "PM2_DISCRETE_MODE": "1"}
        try:
            for name, measure in (("first", not_up), ("second", up)):
                command = [peers.PM2, "start", os.path.join(peers.APPS, "server.js"), "--name", name]
                began = time.perf_counter()
                subprocess.run(command, env={**env, "PORT": str(procs.free_port())}, check=True, capture_output=True, timeout=60)
                measure.add("pm2 (forked, not ready)", (time.perf_counter() - began) * 1000)
        finally:
            subprocess.run([peers.PM2, "kill"], env=env, capture_output=True, timeout=60, check=False)
            shutil.rmtree(folder, ignore_errors=True)

    bench.in_turns(["pyworker", "pm2"], bench.rounds(6), lambda name: (ours if name == "pyworker" else pm2)(name))
    up.goal("at most 250 ms", lambda m: m("pyworker") <= 250)
    not_up.goal("at most 450 ms", lambda m: m("pyworker") <= 450)

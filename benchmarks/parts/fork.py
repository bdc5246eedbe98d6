"""From the daemon's Fork message to a worker that accepts, beside a bare double fork of as big a process."""

import os
import subprocess
import sys
import time

from benchmarks.harness import peers
from benchmarks.harness.bench import Bench
from benchmarks.parts.limits import _FORKS

ROOT = os.path.dirname(peers.HERE)


def run(bench: Bench) -> None:
    for app, size in (("hello", 12), ("heavy", 61)):
        measure = bench.book.measure("fork", f"Fork from the template until the worker accepts, {app} app", "ms", lower_is_better=True)
        for _ in range(bench.rounds(3)):
            with bench.attempt(app):
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.parts.fork", app], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
                )
                if done.returncode:
                    raise RuntimeError(done.stderr[-300:])
                for line in done.stdout.split():
                    measure.add("pyworker", float(line))
            raw = subprocess.run([peers.PYTHON, "-c", _FORKS, str(size)], capture_output=True, text=True, check=True)
            measure.add("bare double fork", float(raw.stdout.split()[1]))
        measure.goal("at most 2 x the bare double fork", lambda m: m("pyworker") <= 2 * m("bare double fork"))


def main(app: str) -> None:
    """Play the daemon of one template, as the tests do; print the milliseconds of each fork."""
    from pyworker.config.schema import AppConfig
    from pyworker.protocol.worker import Hello, Ready
    from tests.support.fake_daemon import FakeDaemon, tcp_listener

    heavy = app == "heavy"
    folder = os.path.join(peers.APPS, "heavy") if heavy else peers.APPS
    os.chdir(folder)
    config = AppConfig(name="bench", cwd=folder, target="heavyapp:asgi" if heavy else "hello:asgi")
    with FakeDaemon(config, [tcp_listener()], python=peers.PYTHON, env={"HOME": folder}) as daemon:
        template = daemon.load()
        for slot in range(1, 16):
            began = time.perf_counter()
            worker = daemon.fork(template, slot)
            worker.expect(Hello)
            worker.expect(Ready)
            if slot > 4:
                print((time.perf_counter() - began) * 1000)


if __name__ == "__main__":
    sys.path.insert(0, ROOT)
    main(sys.argv[1])

"""From the daemon's Fork message to a worker that accepts, beside a bare double fork of as big a process.

Twice: of workers that are asked for in a row, as at a start or a reload, and of single ones, as after a crash: those were
forked ahead of need.
"""

import os
import subprocess
import sys
import time

from benchmarks.harness import peers
from benchmarks.harness.bench import Bench
from benchmarks.parts.limits import _FORKS

ROOT = os.path.dirname(peers.HERE)
LEFT_ALONE = 0.6  # seconds until the worker ahead of need has looked twice at what it will need


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
                for line in done.stdout.splitlines():
                    name, _, took = line.rpartition(" ")
                    measure.add(name, float(took))
            raw = subprocess.run([peers.PYTHON, "-c", _FORKS, str(size)], capture_output=True, text=True, check=True)
            measure.add("bare double fork", float(raw.stdout.split()[1]))
        measure.goal("at most 2 x the bare double fork", lambda m: m("pyworker") <= 2 * m("bare double fork"))
        measure.goal("one at a time: at most 2 x the bare double fork", lambda m: m("pyworker one at a time") <= 2 * m("bare double fork"))


def main(app: str) -> None:
    """Play the daemon of one template, as the tests do; print the milliseconds of each fork."""
    from pyworker.config.schema import AppConfig
    from pyworker.protocol.template import Parked
    from pyworker.protocol.worker import Hello, Ready
    from tests.support.fake_daemon import FakeDaemon, Peer, tcp_listener

    heavy = app == "heavy"
    folder = os.path.join(peers.APPS, "heavy") if heavy else peers.APPS
    os.chdir(folder)
    config = AppConfig(name="bench", cwd=folder, target="heavyapp:asgi" if heavy else "hello:asgi")

    def fork(template: Peer, slot: int) -> float:
        began = time.perf_counter()
        worker = daemon.fork(template, slot)
        worker.expect(Hello)
        worker.expect(Ready)
        return (time.perf_counter() - began) * 1000

    with FakeDaemon(config, [tcp_listener()], python=peers.PYTHON, env={"HOME": folder}) as daemon:
        template = daemon.load()
        for slot in range(1, 16):
            took = fork(template, slot)
            if slot > 4:
                print("pyworker", took)
        for slot in range(16, 26):
            template.expect(Parked)
            time.sleep(LEFT_ALONE)
            print("pyworker one at a time", fork(template, slot))


if __name__ == "__main__":
    sys.path.insert(0, ROOT)
    main(sys.argv[1])

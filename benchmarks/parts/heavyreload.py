"""Reloads of the heavy app under load: p99, p99.9 and the longest stall beside those with an equal CPU hog; seconds each."""

import subprocess
import time

from benchmarks.harness import peers
from benchmarks.harness.bench import Bench
from benchmarks.harness.load import Client, percentile
from benchmarks.harness.procs import wait_for
from benchmarks.harness.servers import Spec, start
from benchmarks.parts.reload import all_new, current

IMPORT = "import time; began = time.perf_counter(); import heavyapp; print(time.perf_counter() - began)"


def run(bench: Bench) -> None:
    heavy, folder = Spec(app="heavy"), Spec(app="heavy").cwd
    took = bench.book.measure("heavyreload", "A reload under load, heavy app, 2 workers", "s", lower_is_better=True)
    p99 = bench.book.measure("heavyreload", "p99 during reloads, heavy app", "ms", lower_is_better=True)
    stall = bench.book.measure("heavyreload", "p99.9 during reloads, heavy app", "ms", lower_is_better=True)
    worst = bench.book.measure("heavyreload", "Longest stall during reloads, heavy app", "ms", lower_is_better=True)
    failed = bench.book.measure("heavyreload", "Failed requests per reload, heavy app", "requests", lower_is_better=True)
    contenders = {"pyworker": heavy, "gunicorn": Spec(app="heavy", kind="wsgi", threads=8), "uvicorn": heavy}
    imports = []
    for name, spec in contenders.items():
        times = bench.rounds(10 if name == "pyworker" else 5)
        bench.say(f"{name}: {times} reloads")
        with bench.attempt(name):
            running = start(name, spec)
            try:
                current(running, 2)
                with Client(running.port, "rate", 60) as client:
                    for _ in range(times):
                        old = current(running, 2)
                        began = time.perf_counter()
                        running.reload()
                        wait_for(lambda old=old, running=running: all_new(running, old, 2), 60, f"{name} reloads")
                        took.add(name, time.perf_counter() - began)
                waits = [ms for _, ms in client.report["latencies"]]
                p99.add(name, percentile(waits, 0.99))
                stall.add(name, percentile(waits, 0.999))
                worst.add(name, max(waits))
                failed.add(name, len(client.report["failed"]) / times, "; ".join(sorted(set(client.report["failed"])))[:100])
                if name == "pyworker":  # the same load beside a process that imports the app again and again
                    hog = subprocess.Popen(["/bin/sh", "-c", f"while :; do {peers.PYTHON} -c 'import heavyapp'; done"], cwd=folder, start_new_session=True)
                    try:
                        with Client(running.port, "rate", 60) as client:
                            for _ in range(bench.rounds(5)):
                                done = subprocess.run([peers.PYTHON, "-c", IMPORT], cwd=folder, capture_output=True, text=True, check=True)
                                imports.append(float(done.stdout))
                    finally:
                        import os
                        import signal

                        os.killpg(hog.pid, signal.SIGKILL)
                        hog.wait()
                    waits = [ms for _, ms in client.report["latencies"]]
                    p99.add("beside a CPU hog, no reload", percentile(waits, 0.99))
                    stall.add("beside a CPU hog, no reload", percentile(waits, 0.999))
                    worst.add("beside a CPU hog, no reload", max(waits))
                    for each in imports:
                        took.add("import of the app alone, beside the load", each)
            finally:
                running.stop()
    failed.goal("none fails", lambda m: m("pyworker") == 0)
    stall.goal("at most twice that beside an equal CPU hog", lambda m: m("pyworker") <= 2 * m("beside a CPU hog, no reload"))
    took.goal("at most 1.2 x the import and 0.3 s", lambda m: m("pyworker") <= 1.2 * m("import of the app alone, beside the load") + 0.3)

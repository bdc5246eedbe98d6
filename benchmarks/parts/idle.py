"""Idle: CPU and wake-ups of two workers and of what manages them."""

import time

from benchmarks.harness import procs
from benchmarks.harness.bench import Bench
from benchmarks.harness.servers import Spec


def run(bench: Bench) -> None:
    cpu = bench.book.measure("idle", "Idle with 2 workers: CPU of the managers", "ms/s", lower_is_better=True)
    wakeups = bench.book.measure("idle", "Idle with 2 workers: wake-ups of the managers", "a second", lower_is_better=True)
    each_worker = bench.book.measure("idle", "Idle: wake-ups of one worker", "a second", lower_is_better=True)
    asgi = Spec()
    contenders = {
        "pyworker": asgi, "granian": asgi, "uvicorn": asgi, "gunicorn": Spec(kind="wsgi"), "nginx": asgi, "pm2": asgi, "circus": asgi,
        "supervisor": asgi,
    }  # fmt: skip
    with bench.running(contenders) as running:
        workers = {name: each.workers_seen(2, tries=60) if name != "nginx" else set() for name, each in running.items()}
        time.sleep(2.0 if bench.quick else 12.0)  # connections of the start are closed, soaks and first samples over
        managers = {name: [pid for pid in each.pids() if pid not in workers[name]] for name, each in running.items()}
        before = {name: (procs.usage(managers[name]), procs.usage(workers[name])) for name in running}
        span = 10.0 if bench.quick else 60.0
        time.sleep(span)
        for name in running:
            was, was_workers = before[name]
            now, now_workers = procs.usage(managers[name]), procs.usage(workers[name])
            cpu.add(name, (now.cpu - was.cpu) * 1000 / span)
            wakeups.add(name, (now.wakeups - was.wakeups) / span)
            if workers[name]:
                each_worker.add(name, (now_workers.wakeups - was_workers.wakeups) / span / len(workers[name]))
    cpu.goal("at most 0.3 ms/s", lambda m: m("pyworker") <= 0.3)
    wakeups.goal("at most 1 a second", lambda m: m("pyworker") <= 1)
    each_worker.goal("at most 1 a second", lambda m: m("pyworker") <= 1.05)

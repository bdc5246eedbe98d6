"""Reloads of the light app under load: seconds each, what fails, what is cut, the longest wait."""

import time

from benchmarks.harness.bench import Bench
from benchmarks.harness.load import Client
from benchmarks.harness.procs import wait_for
from benchmarks.harness.servers import Running, Spec, start


def current(running: Running, count: int) -> set[int]:
    return running.workers_seen(count, tries=300)


def all_new(running: Running, old: set[int], workers: int) -> bool:
    """True when none of 4 x workers new connections in a row is answered by an old one."""
    from benchmarks.harness.load import Refused, ask

    try:
        return all(int(ask(running.port, "/pid")) not in old for _ in range(4 * workers))
    except (OSError, Refused, ValueError):
        return False


def run(bench: Bench) -> None:
    took = bench.book.measure("reload", "A reload under load until only new workers answer, light app, 2 workers", "s", lower_is_better=True)
    failed = bench.book.measure("reload", "Failed requests per reload, light app", "requests", lower_is_better=True)
    cut = bench.book.measure("reload", "Keep-alive connections cut unannounced per reload", "connections", lower_is_better=True)
    longest = bench.book.measure("reload", "Longest wait of a request during the reloads, light app", "ms", lower_is_better=True)
    asgi = Spec()
    contenders = {"pyworker": asgi, "gunicorn": Spec(kind="wsgi", threads=8), "uvicorn": asgi, "pm2": asgi, "granian": asgi}
    for name, spec in contenders.items():
        times = bench.rounds(20 if name in ("pyworker", "gunicorn", "uvicorn") else 6)
        bench.say(f"{name}: {times} reloads")
        with bench.attempt(name):
            running = start(name, spec)
            try:
                current(running, 2)
                with Client(running.port, "keep", 8) as lasting, Client(running.port, "rate", 100) as new:
                    for _ in range(times):
                        old = current(running, 2)
                        began = time.perf_counter()
                        running.reload()
                        wait_for(lambda old=old, running=running: all_new(running, old, 2), 30, f"{name} reloads")
                        took.add(name, time.perf_counter() - began)
                        time.sleep(0.2)
                both = (lasting.report, new.report)
                failed.add(name, sum(len(r["failed"]) for r in both) / times, "; ".join(sorted({f for r in both for f in r["failed"]}))[:120])
                cut.add(name, lasting.report["cut"] / times)
                longest.add(name, max(ms for r in both for _, ms in r["latencies"]))
            finally:
                running.stop()
    took.goal("at most 0.25 s", lambda m: m("pyworker") <= 0.25)
    failed.goal("none fails", lambda m: m("pyworker") == 0)
    cut.goal("none is cut unannounced", lambda m: m("pyworker") == 0)
    longest.goal("not longer than gunicorn's", lambda m: m("pyworker") <= m("gunicorn"))

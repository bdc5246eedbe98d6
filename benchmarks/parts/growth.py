"""Cost as work grows: throughput by workers, memory and latency by idle connections, log rate, reload by workers."""

import time

from benchmarks.harness import procs
from benchmarks.harness.bench import Bench
from benchmarks.harness.load import ask, many_files, open_many, percentile, wrk
from benchmarks.harness.servers import Spec, start
from benchmarks.parts import logs

MB = 1024 * 1024


def run(bench: Bench) -> None:
    with bench.attempt("workers"):
        workers(bench)
    with bench.attempt("connections"):
        connections(bench)
    with bench.attempt("log rate"):
        log_rate(bench)


def workers(bench: Bench) -> None:
    requests = bench.book.plot("workers-requests", "ASGI keep-alive, 64 connections", "workers", "requests/s")
    conns = bench.book.plot("workers-connections", "A new connection for each request", "workers", "connections/s")
    reloads = bench.book.plot("workers-reload", "A reload, light app, no load", "workers", "s")
    for count in (1, 2, 4, 8, 16, 32):
        bench.say(f"{count} workers")
        for name in ("pyworker", "uvicorn"):
            if name == "uvicorn" and count > 16:
                continue
            running = start(name, Spec(workers=count))
            try:
                running.workers_seen(min(count, 4), tries=200)
                requests.add(name, count, wrk(running.port, 64, bench.seconds(2)))
                conns.add(name, count, wrk(running.port, 64, bench.seconds(2), close=True))
                if name == "pyworker":
                    began = time.perf_counter()
                    running.reload()
                    reloads.add(name, count, time.perf_counter() - began)
            finally:
                running.stop()


def connections(bench: Bench) -> None:
    memory = bench.book.plot("connections-memory", "Memory for idle connections, 4 workers", "idle connections", "PSS, MB")
    latency = bench.book.plot("connections-latency", "p99 of new requests beside idle connections", "idle connections", "ms")
    rate = bench.book.plot("connections-rate", "New connections/s beside idle ones", "idle connections", "connections/s")
    many_files()
    for name in ("pyworker", "uvicorn"):
        extra = '[app.http]\nkeepalive_timeout = "300s"\n' if name == "pyworker" else ""
        running = start(name, Spec(workers=4, extra=extra))
        opened = []
        try:
            running.workers_seen(4, tries=400)
            for count in (0, 1000, 5000, 10000):
                bench.say(f"{name}, {count} idle connections")
                opened += open_many(running.port, count - len(opened))
                memory.add(name, count, sum(pss for pss, _ in procs.pss(running.pids()).values()) / MB)
                waits = []
                for _ in range(300):
                    began = time.perf_counter()
                    ask(running.port, "/")
                    waits.append((time.perf_counter() - began) * 1000)
                latency.add(name, count, percentile(waits, 0.99))
                rate.add(name, count, wrk(running.port, 32, bench.seconds(2), close=True))
        finally:
            for conn in opened:
                conn.close()
            running.stop()


def log_rate(bench: Bench) -> None:
    plot = bench.book.plot("log-rate", "CPU of the logger and daemon by lines printed", "lines printed", "CPU, s", log_x=True)
    for lines in (10_000, 100_000, 300_000, 1_000_000):
        bench.say(f"{lines} lines")
        for name in ("pyworker", "pm2"):
            with bench.attempt(name):
                plot.add(name, lines, logs.to_manager(name, lines)[1])

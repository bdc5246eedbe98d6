"""ASGI hello on keep-alive connections: requests a second."""

from benchmarks.harness.bench import Bench
from benchmarks.harness.load import wrk
from benchmarks.harness.servers import Spec


def run(bench: Bench) -> None:
    hello = Spec()
    contenders = dict.fromkeys(("pyworker", "pyworker shared", "uvicorn", "granian", "gunicorn", "node (none)", "bare protocol", "nginx"), hello)
    with bench.running(contenders) as running:
        measures = {
            c: bench.book.measure("keepalive", f"ASGI keep-alive, 2 workers, {c} connections", "requests/s", lower_is_better=False)
            for c in (32, 128)
        }

        def one(name: str) -> None:
            for connections, measure in measures.items():
                measure.add(name, wrk(running[name].port, connections, bench.seconds(2)))

        for each in running.values():
            wrk(each.port, 32, 1)
        bench.in_turns(list(running), bench.rounds(5), one)
    for measure in measures.values():
        measure.goal("at least 1.05 of uvicorn", lambda m: m("pyworker") >= 1.05 * m("uvicorn"))
        measure.goal("at least 1.0 of granian", lambda m: m("pyworker") >= m("granian"))

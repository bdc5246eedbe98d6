"""WSGI hello on keep-alive connections, one thread and eight: requests a second."""

from benchmarks.harness.bench import Bench
from benchmarks.harness.load import wrk
from benchmarks.harness.servers import Spec


def run(bench: Bench) -> None:
    one_thread, eight = Spec(kind="wsgi"), Spec(kind="wsgi", threads=8)
    contenders = {
        "pyworker": one_thread, "granian": one_thread, "gunicorn gthread": Spec(kind="wsgi", threads=1),
        "pyworker 8 threads": eight, "granian 8 threads": eight, "gunicorn gthread 8 threads": eight,
    }  # fmt: skip
    with bench.running(contenders) as running:
        measures = {
            c: bench.book.measure("wsgi", f"WSGI keep-alive, 2 workers, {c} connections", "requests/s", lower_is_better=False)
            for c in (32, 128)
        }

        def one(name: str) -> None:
            for connections, measure in measures.items():
                measure.add(name, wrk(running[name].port, connections, bench.seconds(2)))

        bench.in_turns(list(running), bench.rounds(4), one)
    for measure in measures.values():
        measure.goal("one thread: at least 4 x gthread", lambda m: m("pyworker") >= 4 * m("gunicorn gthread"))
        measure.goal("8 threads: at least 4 x gthread", lambda m: m("pyworker 8 threads") >= 4 * m("gunicorn gthread 8 threads"))
        measure.goal("one thread: at least 1.0 of granian", lambda m: m("pyworker") >= m("granian"))

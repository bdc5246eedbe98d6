"""`balance = "least-connections"` and `"proxy"`: what a process in between costs."""

from benchmarks.harness.bench import Bench
from benchmarks.harness.load import wrk
from benchmarks.harness.servers import Spec


def run(bench: Bench) -> None:
    asgi = Spec()
    contenders = dict.fromkeys(("pyworker", "pyworker least-connections", "pyworker shared", "node (round robin)", "pm2"), asgi)
    with bench.running(contenders) as running:
        measure = bench.book.measure("dispatcher", "New connections/s through a dispatcher, 2 workers, 32 clients", "connections/s", lower_is_better=False)

        def one(name: str) -> None:
            measure.add(name, wrk(running[name].port, 32, bench.seconds(2), close=True))

        bench.in_turns(list(running), bench.rounds(4), one)
    measure.goal("least-connections at least 1.9 of node's round robin", lambda m: m("pyworker least-connections") >= 1.9 * m("node (round robin)"))
    measure.goal("least-connections at least 0.9 of shared", lambda m: m("pyworker least-connections") >= 0.9 * m("pyworker shared"))

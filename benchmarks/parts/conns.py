"""A new connection for each request: connections a second."""

from benchmarks.harness.bench import Bench
from benchmarks.harness.load import wrk
from benchmarks.harness.servers import Spec


def run(bench: Bench) -> None:
    asgi, wsgi = Spec(), Spec(kind="wsgi")
    contenders = {
        "pyworker": asgi, "pyworker shared": asgi, "pyworker wsgi": wsgi, "uvicorn": asgi, "granian": asgi, "granian wsgi": wsgi,
        "gunicorn gthread": wsgi, "gunicorn sync": wsgi, "uwsgi": wsgi, "node (none)": asgi, "node (round robin)": asgi, "pm2": asgi,
        "bare protocol": asgi, "bare protocol in turns": asgi, "nginx": asgi,
    }  # fmt: skip
    with bench.running(contenders) as running:
        measure = bench.book.measure("conns", "A new connection for each request, 2 workers, 32 clients", "connections/s", lower_is_better=False)

        def one(name: str) -> None:
            measure.add(name, wrk(running[name].port, 32, bench.seconds(2), close=True))

        bench.in_turns(list(running), bench.rounds(5), one)
    measure.goal("ASGI at least 1.0 of uvicorn, in strict turns", lambda m: m("pyworker") >= m("uvicorn"))
    measure.goal("ASGI at least 0.9 of the bare protocol, in strict turns", lambda m: m("pyworker") >= 0.9 * m("bare protocol in turns"))
    measure.goal("one-thread WSGI at least 1.0 of granian", lambda m: m("pyworker wsgi") >= m("granian wsgi"))

"""50 kills of a random worker at 300 requests/s: what is lost, what hangs."""

import time

from benchmarks.harness.bench import Bench
from benchmarks.harness.load import Client
from benchmarks.harness.servers import OFTEN, Spec, start


def run(bench: Bench) -> None:
    lost = bench.book.measure("kills", "Failed requests in 50 kills at 300 requests/s", "requests", lower_is_better=True)
    hangs = bench.book.measure("kills", "Requests longer than 1 s in 50 kills", "requests", lower_is_better=True)
    asgi = Spec(workers=4)
    contenders = {
        "pyworker": asgi, "gunicorn": Spec(kind="wsgi", workers=4), "uvicorn": asgi, "node (round robin)": asgi, "pm2": asgi,
        "uwsgi": Spec(kind="wsgi", workers=4), "circus": asgi,
    }  # fmt: skip  # supervisor gives programs up that are killed this often (FATAL after `startretries`)
    for name, spec in contenders.items():
        bench.say(name)
        extra = OFTEN if name == "pyworker" else ""
        with bench.attempt(name):
            running = start(name, Spec(**{**spec.__dict__, "extra": extra}))
            try:
                running.workers_seen(4, tries=100)
                with Client(running.port, "kills", 300) as client:
                    time.sleep(0.25 * 50 / (3 if bench.quick else 1) + 0.2)
                report = client.report
                share = 50 / max(1, report.get("kills", 0))
                note = f"{report.get('kills')} kills, {report['answered']} answered"
                lost.add(name, len(report["failed"]) * share, note)
                hangs.add(name, report.get("hangs", 0) * share)
            finally:
                running.stop()
    hangs.goal("none hangs", lambda m: m("pyworker") == 0)
    lost.goal("only those inside the killed worker: at most 10 (some 7 are in flight on the victims)", lambda m: m("pyworker") <= 10)

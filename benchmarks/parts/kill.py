"""kill -9 of a worker until its replacement answers, heavy and light app. Each is left alone for a moment between kills."""

import time

from benchmarks.harness.bench import Bench
from benchmarks.harness.book import Measure
from benchmarks.harness.load import ask
from benchmarks.harness.servers import OFTEN, Running, Spec, kill_and_wait


def run(bench: Bench) -> None:
    for app in ("heavy", "hello"):
        one, wsgi = Spec(app=app, workers=1), Spec(app=app, kind="wsgi", workers=1)
        contenders = {
            "pyworker": Spec(app=app, workers=1, extra=OFTEN),
            "pyworker wsgi": Spec(app=app, kind="wsgi", workers=1, extra=OFTEN),
            "gunicorn --preload": Spec(app=app, kind="wsgi", workers=1, preload=True),
            "gunicorn --preload asgi": Spec(app=app, workers=1, preload=True),
            "gunicorn": wsgi,
            "granian": one,
            "uvicorn": Spec(app=app, workers=2),  # one worker would have no supervisor: both are killed at once
            "supervisor": one,
            "circus": one,
        }
        if app == "hello":
            contenders |= {"node (none)": one, "pm2": one}
        title = "heavy app" if app == "heavy" else "light app"
        with bench.running(contenders) as running:
            measure = bench.book.measure("kill", f"kill -9 of a worker until its replacement answers, {title}", "ms", lower_is_better=True)

            def one_kill(name: str, running: dict[str, Running] = running, measure: Measure = measure) -> None:
                each = running[name]
                pids = each.workers_seen(each.spec.workers, tries=200)
                time.sleep(0.7 if name == "granian" else 0.3)  # what its supervisor may still be doing
                measure.add(name, kill_and_wait(each, pids))
                ask(each.port, "/pid")

            fast = [name for name in running if name.startswith(("pyworker", "gunicorn --preload"))]
            bench.in_turns(list(running), bench.rounds(5), one_kill)
            bench.in_turns(fast, bench.rounds(10), one_kill)
        if app == "heavy":
            measure.goal("at most 10 ms", lambda m: m("pyworker") <= 10)
            # like with like: Django's first request does more as ASGI, under whichever server
            measure.goal("WSGI: at most 0.7 of gunicorn --preload", lambda m: m("pyworker wsgi") <= 0.7 * m("gunicorn --preload"))
            measure.goal("ASGI: at most 0.7 of gunicorn --preload", lambda m: m("pyworker") <= 0.7 * m("gunicorn --preload asgi"))
        else:
            measure.goal("at most 8 ms", lambda m: m("pyworker") <= 8)

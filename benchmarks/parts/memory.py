"""PSS of everything with 8 and 32 heavy workers, after traffic and a full collection in each worker."""

from benchmarks.harness import procs
from benchmarks.harness.bench import Bench
from benchmarks.harness.servers import Spec, start

MB = 1024 * 1024


def run(bench: Bench) -> None:
    private = bench.book.measure("memory", "Private memory of one more heavy worker (median)", "MB", lower_is_better=True)
    for count in (8, 32):
        wsgi = Spec(app="heavy", kind="wsgi", workers=count)
        measure = bench.book.measure("memory", f"Memory (PSS) of {count} heavy workers and all that runs them", "MB", lower_is_better=True)
        contenders = {
            "pyworker": Spec(app="heavy", workers=count), "pyworker wsgi": wsgi,
            "gunicorn --preload": Spec(app="heavy", kind="wsgi", workers=count, preload=True),
            "gunicorn": wsgi, "uvicorn": Spec(app="heavy", workers=count), "uwsgi": wsgi,
        }  # fmt: skip
        for name, spec in contenders.items():
            if count == 32 and name == "uvicorn" and bench.quick:
                continue
            bench.say(f"{name}, {count} workers")
            with bench.attempt(f"{name}, {count} workers"):
                running = start(name, spec)
                try:
                    seen = running.workers_seen(count, tries=6000)
                    collected = running.workers_seen(count, "/gc", tries=6000)
                    if len(collected) < count:
                        bench.say(f"{name}: only {len(collected)} of {count} workers have collected")
                    sizes = procs.pss(running.pids())
                    measure.add(name, sum(pss for pss, _ in sizes.values()) / MB)
                    for pid in seen:
                        if pid in sizes and count == 32:
                            private.add(name, sizes[pid][1] / MB)
                finally:
                    running.stop()
        share = 1.0 if count == 8 else 0.75
        measure.goal(f"at most {share} of gunicorn --preload", lambda m, share=share: m("pyworker") <= share * m("gunicorn --preload"))
    private.goal("less than 3 MB", lambda m: m("pyworker") < 3)

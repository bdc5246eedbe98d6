"""Many apps of one process: all started, managers' memory, `ps` in a pipe and on a terminal, idle CPU."""

import contextlib
import os
import pty
import subprocess
import time

from benchmarks.harness import procs
from benchmarks.harness.bench import Bench
from benchmarks.harness.managers import NAMES, Manager

MB = 1024 * 1024
STARTED = (200, 500)
LISTED = (1, 50, 500)


def in_pipe(argv: list[str], env: dict[str, str]) -> None:
    subprocess.run(argv, env=env, capture_output=True, check=False, timeout=60, cwd="/")


def on_terminal(argv: list[str], env: dict[str, str]) -> None:
    """Run a command on a terminal of its own, read to its end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd="/"):
        os.close(theirs)
        with contextlib.suppress(OSError):  # EIO: the last one on the other side has left
            while os.read(ours, 65536):
                pass
        os.close(ours)


def timed(what: object, *arguments: object) -> float:
    began = time.perf_counter()
    what(*arguments)  # type: ignore[operator]
    return (time.perf_counter() - began) * 1000


def run(bench: Bench) -> None:
    book = bench.book
    for count in (1, 50, 200, 500):
        started = book.measure("apps", f"{count} apps of one process: all started", "s", lower_is_better=True) if count in STARTED else None
        for _ in range(bench.rounds(2) if count == 200 else 1):
            for name in NAMES:
                bench.say(f"{name}, {count} apps")
                with bench.attempt(f"{name}, {count} apps"), Manager(name, count) as manager:
                    if started is not None:
                        started.add(name, manager.started)
                    figures(bench, manager)
        if started is not None:
            started.goal("at most 1.0 of circus's", lambda m: m("pyworker") <= m("circus"))
    for count, pipe, terminal in ((1, 55, 80), (50, 60, 85), (500, 100, 150)):
        book.measures[f"ps with {count} apps, in a pipe"].goal(f"at most {pipe} ms", lambda m, goal=pipe: m("pyworker") <= goal)
        book.measures[f"ps with {count} apps, on a terminal"].goal(f"at most {terminal} ms", lambda m, goal=terminal: m("pyworker") <= goal)
    for count in (1, 50, 500):
        limit = 40 if count == 1 else None
        measure = book.measures[f"Managers' memory (PSS) with {count} apps"]
        if limit:
            measure.goal("at most 40 MB", lambda m: m("pyworker") <= 40)
        else:
            one = book.measures["Managers' memory (PSS) with 1 apps"].median("pyworker")
            if one is not None:
                measure.goal("less than 0.1 MB more an app", lambda m, c=count, one=one: m("pyworker") - one < 0.1 * c)
    idle = book.measures["Idle with 200 apps: CPU of the managers"]
    idle.goal("at most 1 ms/s", lambda m: m("pyworker") <= 1)


def figures(bench: Bench, manager: Manager) -> None:
    book, count, name = bench.book, manager.count, manager.name
    if count in LISTED:
        own = manager.own()
        memory = sum(pss for pss, _ in procs.pss(own).values())
        book.measure("apps", f"Managers' memory (PSS) with {count} apps", "MB", lower_is_better=True).add(name, memory / MB)
        book.measure("apps", f"Managers' memory (RSS) with {count} apps", "MB", lower_is_better=True).add(name, procs.rss(own) / MB)
        book.plot("apps-memory", "Managers' memory", "apps", "PSS, MB").add(name, count, memory / MB)
        pipe = book.measure("apps", f"ps with {count} apps, in a pipe", "ms", lower_is_better=True)
        terminal = book.measure("apps", f"ps with {count} apps, on a terminal", "ms", lower_is_better=True)
        if count == 1 and name == "pyworker":
            for _ in range(bench.rounds(9)):
                pipe.add("python -c pass", timed(in_pipe, [os.path.realpath("/proc/self/exe"), "-c", "pass"], manager.env))
        for _ in range(bench.rounds(9 if name == "pyworker" else 5)):
            pipe.add(name, timed(in_pipe, manager.listing, manager.env))
            terminal.add(name, timed(on_terminal, manager.listing, manager.env))
        median = pipe.median(name)
        if median is not None:
            book.plot("apps-ps", "ps in a pipe", "apps", "ms").add(name, count, median)
    if count == 200:
        time.sleep(1 if bench.quick else 6)
        own = manager.own()
        before = procs.usage(own)
        span = 5 if bench.quick else 15
        time.sleep(span)
        after = procs.usage(own)
        book.measure("apps", "Idle with 200 apps: CPU of the managers", "ms/s", lower_is_better=True).add(name, (after.cpu - before.cpu) * 1000 / span)
        book.measure("apps", "Idle with 200 apps: wake-ups of the managers", "a second", lower_is_better=True).add(name, (after.wakeups - before.wakeups) / span)

"""What must not grow: fds, threads, zombies and memory over thousands of restarts, commands and reloads.

python -m tests.leaks.leaks --restarts 10000 --commands 1000 --reloads 1000
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from typing import NamedTuple

import psutil

from tests.support.pyworker import LONG, Pyworker, open_fds, running
from tests.support.wait import wait_until

EMPTY = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
ROLES = ("guardian", "daemon", "logger")
GROWTH = 5.0  # MB a process


class Figures(NamedTuple):
    """Of guardian, daemon and logger: fds, threads, MB; and the zombies of the whole tree."""

    fds: tuple[int, ...]
    threads: tuple[int, ...]
    zombies: int
    memory: tuple[float, ...]


def measure(pw: Pyworker) -> Figures:
    """Wait until nothing changes any more, then look."""
    pw.wait_steady()
    status = pw.status()
    pids = [status["pid" if role == "daemon" else f"{role}_pid"] for role in ROLES]
    processes = [psutil.Process(pid) for pid in pids]
    seen: list[tuple[tuple[int, ...], int]] = []

    def steady() -> bool:
        seen.append((tuple(map(open_fds, pids)), _zombies(pids[0])))
        return len(seen) > 50 and len(set(seen[-50:])) == 1

    wait_until(steady, LONG, "the tree to be still")
    fds, zombies = seen[-1]
    memory = tuple(p.memory_info().rss / 2**20 for p in processes)
    return Figures(fds, tuple(p.num_threads() for p in processes), zombies, memory)


def _zombies(guardian: int) -> int:
    """Return how many of the guardian's children (all processes of ours come to be that) are dead and not reaped."""
    count = 0
    with open(f"/proc/{guardian}/task/{guardian}/children") as file:
        children = file.read().split()
    for pid in children:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            count += file.read().rpartition(")")[2].split()[0] == "Z"
    return count


def begin(pw: Pyworker) -> None:
    pw.api(EMPTY, workers=4, tables='[app.restart]\nmin_uptime = "0s"\n[app.reload]\nsoak = "0s"\nmax_surge = 4')
    pw.ok("start", "app.toml")


def restarts(pw: Pyworker, count: int) -> None:
    """Kill every worker, and again when all are back."""
    goal = before = pw.app()["restarts"]["total"]
    while goal < before + count:
        for pid in pw.pids():
            os.kill(pid, signal.SIGKILL)
            goal += 1

        def back(goal: int = goal) -> bool:
            app = pw.app()
            return app["restarts"]["total"] >= goal and app["workers"]["ready"] == 4

        wait_until(back, LONG, f"{goal} restarts")


def commands(pw: Pyworker, count: int) -> None:
    for number in range(count):
        pw.ok(*(("ps",), ("describe", "api"), ("ps", "--json"), ("daemon", "status"))[number % 4])


def reloads(pw: Pyworker, count: int) -> None:
    for _ in range(count):
        pw.ok("reload", "api")


def run(pw: Pyworker, plan: dict[str, int]) -> list[str]:
    """Do it all once in small, measure, do it in full, measure; return what has grown."""
    steps = {"restarts": restarts, "commands": commands, "reloads": reloads}
    begin(pw)
    for name, step in steps.items():
        step(pw, max(4, min(100, plan[name] // 5)))  # caches and the log of events fill up
    before = measure(pw)
    wrong = []
    for name, step in steps.items():
        began = time.monotonic()
        step(pw, plan[name])
        after = measure(pw)
        grown = [b - a for a, b in zip(before.memory, after.memory, strict=True)]
        shown = ", ".join(f"{role} {mb:+.1f}" for role, mb in zip(ROLES, grown, strict=True))
        print(
            f"leaks: {plan[name]} {name} in {time.monotonic() - began:.0f} s: fds {after.fds}, threads {after.threads}, "
            f"zombies {after.zombies}; MB: {shown}",
            flush=True,
        )
        if before[:3] != after[:3]:
            wrong.append(f"after {plan[name]} {name}: {before} became {after}")
        if max(grown) > GROWTH:
            wrong.append(f"after {plan[name]} {name} the memory has grown: {shown}")
    return wrong


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--restarts", type=int, default=10_000)
    parser.add_argument("--commands", type=int, default=1000)
    parser.add_argument("--reloads", type=int, default=1000)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended so it leaves nothing running, too
    with running() as pw:
        wrong = run(pw, vars(options))
    for text in wrong:
        print(f"  {text}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

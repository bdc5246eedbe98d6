"""A worker prints a million lines of 100 bytes: its own time, the manager's CPU, lines lost or torn; how fast `logs -f` follows."""

import os
import subprocess
import tempfile
import time

from benchmarks.harness import peers, procs
from benchmarks.harness.bench import Bench
from benchmarks.harness.managers import Manager
from benchmarks.harness.servers import PYWORKER

LINES = 1_000_000


def run(bench: Bench) -> None:
    own = bench.book.measure("logs", "Printing 1,000,000 lines of 100 bytes: the program's own time", "s", lower_is_better=True)
    cpu = bench.book.measure("logs", "The same: CPU of the manager", "s", lower_is_better=True)
    lost = bench.book.measure("logs", "The same: lines lost or torn", "lines", lower_is_better=True)
    lines = LINES // 5 if bench.quick else LINES
    scale = LINES / lines

    def one(name: str) -> None:
        if name == "a file":
            own.add(name, to_file(lines) * scale)
            return
        took, used, gone = to_manager(name, lines)
        own.add(name, took * scale)
        cpu.add(name, used * scale)
        lost.add(name, gone)

    bench.in_turns(["a file", "pyworker", "circus", "pm2", "supervisor"], bench.rounds(3), one)
    own.goal("at most 0.66 s, or 1.14 of a file's time", lambda m: m("pyworker") <= max(0.66, 1.14 * m("a file")))
    cpu.goal("at most 0.5 of pm2's", lambda m: m("pyworker") <= 0.5 * m("pm2"))
    lost.goal("none", lambda m: m("pyworker") == 0)
    follow(bench, lines)


def to_file(lines: int) -> float:
    """Return how long the program takes to print so much into a file, s."""
    with tempfile.TemporaryDirectory(prefix="pyworker-bench-") as folder:
        done = os.path.join(folder, "done")
        with open(os.path.join(folder, "log"), "wb") as log:
            process = subprocess.Popen(program(done, lines), stdout=log)
        go(done)
        procs.wait_for(lambda: os.path.exists(done), 120, "a file")
        process.kill()
        process.wait()
        return read(done)


def to_manager(name: str, lines: int) -> tuple[float, float, int]:
    """Return how long it takes under a manager, s; that one's CPU without its start, s; lines lost or torn."""
    with tempfile.TemporaryDirectory(prefix="pyworker-bench-") as folder:
        done = os.path.join(folder, "done")
        with Manager(name, 1, program(done, lines)) as manager:
            time.sleep(1.5)  # its start is over, then
            before = procs.usage(manager.own()).cpu
            go(done)
            procs.wait_for(lambda: os.path.exists(done), 120, name)
            procs.wait_for(lambda: count(manager) >= lines, 20, f"{name} has written {lines} lines", 0.1)
            return read(done), procs.usage(manager.own()).cpu - before, abs(lines - whole(manager))


def follow(bench: Bench, lines: int) -> None:
    """`logs -f` into a pipe from before the first line to the last."""
    measure = bench.book.measure("logs", "logs -f into a pipe", "lines/s", lower_is_better=False)
    with bench.attempt("logs -f"), tempfile.TemporaryDirectory(prefix="pyworker-bench-") as folder:
        done = f"{folder}/done"
        with Manager("pyworker", 1, program(done, lines)) as manager:
            following = [PYWORKER, "logs", "-f", "app000"]
            follower = subprocess.Popen(following, env=manager.env, stdout=subprocess.PIPE, cwd="/")
            assert follower.stdout is not None
            time.sleep(2)
            go(done)
            seen, began = 0, 0.0
            for line in follower.stdout:
                if b"x" * 50 in line:
                    seen += 1
                    if seen == 1:
                        began = time.perf_counter()
                    if seen >= lines:
                        break
            measure.add("pyworker", lines / (time.perf_counter() - began))
            follower.kill()
            follower.wait()
    measure.goal("at least 200,000 lines/s", lambda m: m("pyworker") >= 200_000)


def program(done: str, lines: int) -> list[str]:
    """Return the command that waits for `go` and prints so many lines."""
    return [peers.PYTHON, os.path.join(peers.APPS, "chatty.py"), done, str(lines)]


def go(done: str) -> None:
    """Let the program begin."""
    open(done + ".go", "w").close()


def read(path: str) -> float:
    with open(path) as file:
        return float(file.read())


def count(manager: Manager) -> int:
    total = 0
    for path in manager.log_files():
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                total += chunk.count(b"\n")
    return total


def whole(manager: Manager) -> int:
    """Count the lines that are complete: a number, a blank, 91 x at their end."""
    total = 0
    tail = b" " + b"x" * 91
    for path in manager.log_files():
        with open(path, "rb") as file:
            total += sum(line.rstrip(b"\n").endswith(tail) and line.rstrip(b"\n")[-99:-92].isdigit() for line in file)
    return total

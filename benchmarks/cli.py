"""How long `pyworker ps` takes: eight apps, into a pipe and onto a terminal, beside an interpreter that does nothing.

    python benchmarks/cli.py [--runs 20]

Starts a daemon of its own in a temporary home and stops it at the end. Times are from spawn to exit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

BIN = os.path.dirname(sys.executable)
PYWORKER = os.path.join(BIN, "pyworker")
APPS = 8
GOALS = {"ps, terminal": 80.0, "ps, pipe": 60.0}  # milliseconds


def in_pipe(argv: list[str], env: dict[str, str]) -> None:
    """Run a command as in `command | cat`."""
    subprocess.run(argv, env=env, capture_output=True, check=True, timeout=30)


def on_terminal(argv: list[str], env: dict[str, str]) -> None:
    """Run a command on a terminal of its own, read to its end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as child:
        os.close(theirs)
        with contextlib.suppress(OSError):  # EIO: the last one on the other side has left
            while os.read(ours, 65536):
                pass
        os.close(ours)
    if child.returncode != 0:
        raise SystemExit(f"{argv} exited with {child.returncode}")


def measure(what: Callable[[], None], runs: int) -> tuple[float, float]:
    """Return median and 95th percentile in milliseconds; the first two runs do not count."""
    times = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        what()
        times.append((time.perf_counter() - began) * 1000)
    counted = sorted(times[2:])
    return statistics.median(counted), counted[min(len(counted) - 1, int(len(counted) * 0.95))]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="pyworker-bench-") as folder:
        env = {**os.environ, "PYWORKER_HOME": os.path.join(folder, "home"), "TERM": "xterm-256color"}
        try:
            for number in range(1, APPS + 1):
                start = [PYWORKER, "start", "-q", "--name", f"app{number}", "--", "sleep", "1000"]
                subprocess.run(start, env=env, check=True, timeout=60, cwd=folder)
            table = {
                "python -c pass": measure(lambda: in_pipe([sys.executable, "-c", "pass"], env), runs),
                "python -I -c pass": measure(
                    lambda: in_pipe([sys.executable, "-I", "-c", "pass"], env), runs
                ),
                "ps, pipe": measure(lambda: in_pipe([PYWORKER, "ps"], env), runs),
                "ps, terminal": measure(lambda: on_terminal([PYWORKER, "ps"], env), runs),
            }
        finally:
            subprocess.run(
                [PYWORKER, "daemon", "stop", "-y"], env=env, check=False, timeout=60, capture_output=True
            )
    floor = table["python -c pass"][0]
    print(f"{APPS} apps, {runs} runs, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    print(f"{'':<20}{'median':>10}{'p95':>10}{'x floor':>10}{'goal':>10}")
    for name, (median, high) in table.items():
        goal = f"{GOALS[name]:.0f} ms" if name in GOALS else ""
        print(f"{name:<20}{median:>7.1f} ms{high:>7.1f} ms{median / floor:>10.1f}{goal:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

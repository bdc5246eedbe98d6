"""Reload after reload under every kind of client at once: nothing may be lost, and each reload must bring its code.

    python -m tests.chaos.reload_load --reloads 200 --requests 100000

The reloads are shared out over round-robin and shared, ASGI and WSGI, asyncio and uvloop.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import sys
import time
from typing import NamedTuple

from tests.support.fleet import ALL, HTTP, Fleet, Tally
from tests.support.pyworker import LONG, Pyworker, running
from tests.support.rawhttp import Client
from tests.support.wait import wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
KEEPALIVE = 1.0  # short, so that a generation has drained soon: two may drain, the third waits


class Cell(NamedTuple):
    """One cell of the matrix."""

    balance: str
    interface: str
    loop: str

    def __str__(self) -> str:
        return f"{self.balance} {self.interface} {self.loop}"


MATRIX = [Cell(*x) for x in itertools.product(("round-robin", "shared"), ("asgi", "wsgi"), ("asyncio", "uvloop"))]


def prepare(pw: Pyworker, cell: Cell, workers: int = 2) -> None:
    """Write the app and its config."""
    shutil.copy(os.path.join(HERE, "app.py"), os.path.join(pw.folder, "app.py"))
    pw.write("version.py", 'VERSION = "v0"\n')
    pw.write(
        "app.toml",
        f'[app]\nname = "api"\ntarget = "app:{"app" if cell.interface == "asgi" else "wsgi"}"\nworkers = {workers}\n'
        f'bind = "127.0.0.1:{pw.port}"\nbalance = "{cell.balance}"\nloop = "{cell.loop}"\n'
        + ("threads = 4\n" if cell.interface == "wsgi" else "")
        + f'[app.http]\nkeepalive_timeout = "{KEEPALIVE:g}s"\n[app.reload]\nsoak = "0s"\nmax_surge = 2\n',
    )


def reload_and_ask(pw: Pyworker, number: int) -> None:
    """Reload to version `number`; the first request after it must be answered by that."""
    pw.write("version.py", f'VERSION = "v{number}"\n')
    pw.ok("reload", "api")
    with Client(("127.0.0.1", pw.port), timeout=LONG) as client:
        answer = client.get("/", "Connection: close")
    assert answer is not None, "lost"
    assert answer.headers["x-version"] == f"v{number}", f"reload {number} returned before its code served: {answer}"


def run_cell(pw: Pyworker, cell: Cell, reloads: int, requests: int, seed: int = 1) -> Tally:
    """Start the app, reload it so often, and go on until so many requests were answered."""
    prepare(pw, cell)
    pw.ok("start", "app.toml")
    with Fleet(pw.port, ALL if cell.interface == "asgi" else HTTP, keepalive=KEEPALIVE, seed=seed) as fleet:
        for number in range(1, reloads + 1):
            before = fleet.tally.requests
            reload_and_ask(pw, number)
            goal = before + requests // reloads
            wait_until(lambda g=goal: fleet.tally.requests >= g, 2 * LONG, "requests")  # type: ignore[misc]
    pw.wait_steady()
    pw.ok("delete", "api", "-y")
    return fleet.tally


def verdict(tally: Tally) -> list[str]:
    """Return what is wrong; nothing was killed, so nothing may be missing."""
    wrong = [f"refused: {text}" for text in tally.refused]
    wrong += [f"lost: {loss.kind}, pid {loss.pid}: {loss.why}" for loss in tally.lost]
    wrong += [f"no answer to any {kind}" for kind, count in tally.answered.items() if not count]
    return wrong


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended so it leaves nothing running, too
    total = announced = 0
    failed = False
    for cell in MATRIX:
        began = time.monotonic()
        with running() as pw:
            tally = run_cell(
                pw, cell, max(1, options.reloads // len(MATRIX)), options.requests // len(MATRIX), options.seed
            )
        wrong = verdict(tally)
        failed = failed or bool(wrong)
        total += tally.requests
        announced += tally.announced.total()
        print(
            f"reload-load: {cell}: {options.reloads // len(MATRIX)} reloads, {tally.requests} answers in "
            f"{time.monotonic() - began:.0f} s, {tally.announced.total()} connections closed by announcement, "
            f"{len(tally.lost)} lost, {len(tally.refused)} refused; p50 {tally.percentile(0.5):.0f} ms, "
            f"p99.9 {tally.percentile(0.999):.0f} ms",
            flush=True,
        )
        for text in wrong[:10]:
            print(f"  {text}")
    print(f"reload-load: {total} answers, {announced} closed by announcement: {'FAILED' if failed else 'nothing lost'}")
    return int(failed or total < options.requests)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

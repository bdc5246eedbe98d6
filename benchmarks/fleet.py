"""A rolling update over many pods, simulated from start and drain times that are measured here.

    python benchmarks/fleet.py [--pods 1000] [--surge 25%] [--json]

Measured: `pyworker run` of a small app, from exec to ready, and from SIGTERM to its end with a request under way. Simulated:
everything else, with the numbers of the options. It says what it assumes; it is no cluster.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

APP = """
import asyncio
async def app(scope, receive, send):
    await asyncio.sleep(0.2)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def measure(runs: int) -> tuple[list[float], list[float]]:
    """Return seconds until ready and seconds of the stop, of `runs` runs."""
    starts, stops = [], []
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "web.py"), "w") as file:
            file.write(APP)
        for _ in range(runs):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            began = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "pyworker", "run", "web:app", "-w", "2", "-b", f"127.0.0.1:{port}"],
                cwd=folder, env={**os.environ, "PYWORKER_HOME": "/proc/nowhere/home"},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert process.stderr is not None
            for line in process.stderr:
                if "workers ready in" in line:
                    break
            starts.append(time.monotonic() - began)
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert b"200 OK" in client.recv(4096)
            process.stderr.read()
            process.wait(60)
            stops.append(time.monotonic() - began)
    return starts, stops


def update(
    pods: int, surge: int, soak: float, lame_duck: float, starts: list[float], stops: list[float], schedule: float
) -> tuple[float, int, int]:
    """Return seconds of the whole update, and the least and greatest number of pods in it. Never fewer ready than `pods`."""
    draw = random.Random(1)
    now = 0.0
    events: list[tuple[float, int, str]] = []
    waiting, old, number = pods, pods, 0
    ready = pods
    live = pods
    least, most = ready, live
    for _ in range(min(surge, waiting)):
        number += 1
        heapq.heappush(events, (schedule * draw.random() * 2 + draw.choice(starts) + soak, number, "new"))
        waiting -= 1
        live += 1
    most = live
    while events:
        now, _, what = heapq.heappop(events)
        number += 1
        if what == "new":
            ready += 1
            if old:
                old -= 1
                ready -= 1  # one of the old says not ready at once
                heapq.heappush(events, (now + lame_duck + draw.choice(stops), number, "gone"))
        else:
            live -= 1
            if waiting:
                waiting -= 1
                live += 1
                after = schedule * draw.random() * 2 + draw.choice(starts) + soak
                heapq.heappush(events, (now + after, number, "new"))
        least, most = min(least, ready), max(most, live)
    return now, least, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5, help="measured starts and stops")
    parser.add_argument("--soak", type=float, default=10.0, help="minReadySeconds")
    parser.add_argument("--lame-duck", type=float, default=5.0)
    parser.add_argument(
        "--schedule", type=float, default=2.0, help="assumed mean seconds until a new pod is on its node"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    starts, stops = measure(options.runs)
    rows = []
    for percent in (1, 5, 10, 25, 50):
        surge = max(1, math.ceil(options.pods * percent / 100))
        took, least, most = update(
            options.pods, surge, options.soak, options.lame_duck, starts, stops, options.schedule
        )
        rows.append(
            {"max_surge": f"{percent}%", "seconds": round(took, 1), "ready_at_least": least, "pods_at_most": most}
        )
    result = {
        "pods": options.pods,
        "measured": {"start_s": round(statistics.median(starts), 3), "stop_s": round(statistics.median(stops), 3)},
        "assumed": {"soak_s": options.soak, "lame_duck_s": options.lame_duck, "schedule_s": options.schedule},
        "updates": rows,
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"measured here ({options.runs} runs): ready {result['measured']['start_s']} s after exec, "
          f"ended {result['measured']['stop_s']} s after SIGTERM with a request of 0.2 s under way")  # fmt: skip
    print(
        f"assumed: {options.schedule:g} s to a node, minReadySeconds {options.soak:g}, lame duck {options.lame_duck:g} s\n"
    )
    print(f"{'maxSurge':>9} {'whole update':>13} {'ready at least':>15} {'pods at most':>13}")
    for row in rows:
        print(f"{row['max_surge']:>9} {row['seconds']:>11} s {row['ready_at_least']:>15} {row['pods_at_most']:>13}")


if __name__ == "__main__":
    main()

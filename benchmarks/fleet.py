"""A rolling update of many pods, and what an autoscaler looks at: simulated, from times that are measured here.

    python benchmarks/fleet.py [--pods 1000] [--runs 10] [--json]

Measured, of `pyworker run` with a small app: from exec to ready; from SIGTERM until the port refuses; from SIGTERM to the end
with a request under way. Simulated is everything else, and with the numbers that the options assume: it is no cluster. The
Deployment controller and the autoscaler are models of what Kubernetes documents of its own, the traffic is a model.
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
from collections.abc import Callable
from dataclasses import dataclass

APP = """
import asyncio
async def app(scope, receive, send):
    await asyncio.sleep(0.2)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
ASK = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass
class Measured:
    """Seconds, one of each per run."""

    starts: list[float]  # exec -> every worker ready
    accepts: list[float]  # SIGTERM -> the port refuses
    stops: list[float]  # SIGTERM -> ended, with a request of 0.2 s under way

    def medians(self) -> dict[str, float]:
        return {
            "start_s": round(statistics.median(self.starts), 3),
            "accepts_s": round(statistics.median(self.accepts), 3),
            "stop_s": round(statistics.median(self.stops), 3),
        }


def measure(runs: int) -> Measured:
    """Start and stop it `runs` times."""
    found = Measured([], [], [])
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
            found.starts.append(time.monotonic() - began)
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(ASK)
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                while accepts(port):
                    time.sleep(0.001)
                found.accepts.append(time.monotonic() - began)
                assert b"200 OK" in client.recv(4096)
            process.stderr.read()
            process.wait(60)
            found.stops.append(time.monotonic() - began)
    return found


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


# ---- the rolling update ----------------------------------------------------------------------------------
@dataclass
class World:
    """What is assumed. Times in seconds."""

    pods: int
    rate: float  # new connections a second and pod, each one request
    duration: float  # mean of a request (exponential)
    drain: float  # stop.drain_timeout
    soak: float  # minReadySeconds
    schedule: float  # mean until a new pod is on its node and its image there
    probe: float  # period of the readiness probe
    lag_median: float  # from the wish to end a pod until a node's proxy has forgotten its endpoint (log-normal)
    lag_p99: float
    nodes: int


@dataclass
class Outcome:
    """One update. Lost: [the process ends at SIGTERM, it drains, it drains after a lame duck of `ducks`...]."""

    seconds: float
    ready_at_least: int
    pods_at_most: int  # those that drain included
    requests: float
    lost: list[int]


def update(world: World, surge: int, unavailable: int, ducks: tuple[float, ...], measured: Measured) -> Outcome:
    """Replace every pod by the rules of a Deployment: at most `surge` more than wanted (those that end do not count), at most
    `unavailable` fewer available ones.
    """
    draw = random.Random(1)
    lag = _lag(draw, world)
    pods = world.pods
    old, made, available, draining = pods, 0, 0, 0
    now, number = 0.0, 0
    events: list[tuple[float, int, str]] = []
    least, most = pods, pods
    lost = [0.0, 0.0, *(0.0 for _ in ducks)]

    def later(seconds: float, what: str) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (now + seconds, number, what))

    while True:
        while old + made < pods + surge and made < pods:
            made += 1
            until_asked = world.probe * draw.random()
            ready = draw.expovariate(1 / world.schedule) + draw.choice(measured.starts) + until_asked
            later(ready + world.soak, "available")
        while old and old + available > pods - unavailable:
            # its share of the traffic at this moment
            rate = world.rate * pods / (old + available)
            old -= 1
            draining += 1
            lags = [lag() for _ in range(world.nodes)]
            accepting = draw.choice(measured.accepts)
            under_way = rate * world.duration
            lost[0] += under_way + rate * statistics.fmean(lags)
            too_long = under_way * math.exp(-world.drain / world.duration)
            for place, duck in enumerate((0.0, *ducks)):
                late = statistics.fmean(max(0.0, x - duck - accepting) for x in lags)
                lost[1 + place] += too_long + rate * late
            later(max(ducks) + draw.choice(measured.stops), "gone")
        least = min(least, old + available)
        most = max(most, old + made + draining)
        if not events:
            break
        now, _, what = heapq.heappop(events)
        if what == "available":
            available += 1
        else:
            draining -= 1
    return Outcome(now, least, most, world.rate * pods * now, [round(x) for x in lost])


def _lag(draw: random.Random, world: World) -> Callable[[], float]:
    mean = math.log(world.lag_median)
    spread = (math.log(world.lag_p99) - mean) / 2.326  # the 99th percentile of a normal distribution
    return lambda: draw.lognormvariate(mean, spread)


# ---- the autoscaler --------------------------------------------------------------------------------------
@dataclass
class Load:
    """A day in the life of an app: per moment its requests a second, and what one of them costs."""

    name: str
    rate: Callable[[float], float]
    cpu: Callable[[float], float]  # seconds of CPU of a request
    wait: Callable[[float], float]  # seconds that it waits for others


WORKERS = 4  # of a pod, one request each at a time; a CPU each
STEP = 0.1
EVERY = 15.0  # seconds between two looks of the autoscaler
PATIENCE = 1.0  # a request that waits longer than this for a worker is late
GIVEN_UP = 30.0  # nobody waits longer than this
LOOKS: dict[str, Callable[[float, float, float], float]] = {
    # what a pod shows (CPUs used, requests in flight, connections queued) -> that, as a share of what is wanted
    "cpu 70 %": lambda cpu, flying, queued: cpu / (0.7 * WORKERS),
    "in flight 70 %": lambda cpu, flying, queued: flying / (0.7 * WORKERS),
    "in flight 70 %, queue 1 a worker": lambda cpu, flying, queued: max(flying / (0.7 * WORKERS), queued / WORKERS),
}


def scale(load: Load, look: Callable[[float, float, float], float], start: float, seconds: float) -> dict[str, float]:
    """Return how many requests came late, and what it cost. A flow, not single requests: the queue is a level.

    The autoscaler's rules are those of a HorizontalPodAutoscaler that says nothing else: 10 % tolerance, at most twice as many
    or four more in one look, down only to the most that was wanted in five minutes.
    """
    pods, coming = 4, []
    queue = late = total = worst = pod_seconds = 0.0
    wanted: list[tuple[float, int]] = []
    next_look = EVERY
    used = flying = 0.0  # sums since the last look
    for tick in range(int(seconds / STEP)):
        now = tick * STEP
        pods += sum(1 for at in coming if at <= now)
        coming = [at for at in coming if at > now]
        rate, cost = load.rate(now), load.cpu(now) + load.wait(now)
        capacity = pods * WORKERS / cost
        served = min(capacity, rate + queue / STEP)
        queue = min(capacity * GIVEN_UP, max(0.0, queue + (rate - served) * STEP))
        waits = queue / capacity
        total += rate * STEP
        late += rate * STEP * (waits > PATIENCE)
        worst = max(worst, waits)
        pod_seconds += (pods + len(coming)) * STEP
        used += served * load.cpu(now) * STEP
        flying += served * cost * STEP
        if now >= next_look:
            next_look += EVERY
            ratio = look(used / EVERY / pods, flying / EVERY / pods, queue / pods)
            used = flying = 0.0
            have = pods + len(coming)
            want = have if abs(ratio - 1) <= 0.1 else max(2, min(64, math.ceil(pods * ratio)))
            wanted = [(at, n) for at, n in wanted if at > now - 300] + [(now, want)]
            if want > have:
                coming += [now + start] * (min(want, max(2 * have, have + 4)) - have)
            elif (down := max(n for _, n in wanted)) < pods:
                pods = down
    return {
        "late_percent": round(100 * late / total, 1),
        "worst_wait_s": round(worst, 1),
        "pods_mean": round(pod_seconds / seconds, 1),
    }


def _surge(low: float, high: float) -> Callable[[float], float]:
    return lambda now: high if 300 <= now < 1500 else low


LOADS = (
    Load("3 times the requests, 10 ms CPU + 90 ms waiting", _surge(80, 240), lambda _: 0.01, lambda _: 0.09),
    Load("the database takes 90 -> 400 ms, 10 ms CPU", lambda _: 80, lambda _: 0.01, _surge(0.09, 0.4)),
    Load("3 times the requests, 95 ms CPU + 5 ms waiting", _surge(80, 240), lambda _: 0.095, lambda _: 0.005),
)


# ---- the report ------------------------------------------------------------------------------------------
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=10, help="measured starts and stops")
    parser.add_argument("--rate", type=float, default=20.0, help="new connections a second and pod")
    parser.add_argument("--duration", type=float, default=0.2, help="mean seconds of a request")
    parser.add_argument("--drain", type=float, default=30.0, help="stop.drain_timeout")
    parser.add_argument("--soak", type=float, default=10.0, help="minReadySeconds")
    parser.add_argument("--schedule", type=float, default=2.0, help="mean seconds until a new pod is on its node")
    parser.add_argument("--probe", type=float, default=2.0, help="period of the readiness probe")
    parser.add_argument("--lag-median", type=float, default=0.5, help="of a node's proxy to forget an endpoint")
    parser.add_argument("--lag-p99", type=float, default=4.0)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    measured = measure(o.runs)
    world = World(
        o.pods, o.rate, o.duration, o.drain, o.soak, o.schedule, o.probe, o.lag_median, o.lag_p99, o.nodes
    )
    updates = []
    for surge, unavailable in ((1, 0), (10, 0), (25, 0), (25, 25), (0, 10)):
        counts = [math.ceil(o.pods * surge / 100), math.floor(o.pods * unavailable / 100)]
        out = update(world, *counts, (5.0,), measured)
        updates.append({
            "max_surge": f"{surge}%", "max_unavailable": f"{unavailable}%", "seconds": round(out.seconds, 1),
            "ready_at_least": out.ready_at_least, "pods_at_most": out.pods_at_most, "requests": round(out.requests),
            "lost": dict(zip(("ends at once", "drains", "lame duck 5 s"), out.lost, strict=True)),
        })  # fmt: skip
    ducks = (1.0, 2.0, 5.0, 10.0)
    by_duck = update(world, math.ceil(o.pods / 4), 0, ducks, measured).lost[1:]
    start = o.schedule + statistics.median(measured.starts) + o.probe
    scaling = [
        {"load": load.name, "looks_at": name, **scale(load, look, start, 1800)}
        for load in LOADS
        for name, look in LOOKS.items()
    ]
    result = {
        "measured": {**measured.medians(), "runs": o.runs},
        "assumed": {k: v for k, v in vars(world).items() if k != "pods"},
        "pods": o.pods,
        "updates": updates,
        "lost_by_lame_duck_s": dict(zip((0.0, *ducks), by_duck, strict=True)),
        "autoscaler": scaling,
    }
    print(json.dumps(result, indent=1) if o.json else _text(result))


def _text(result: dict) -> str:
    seen, a = result["measured"], result["assumed"]
    lines = [
        f"measured here, median of {seen['runs']} runs: ready {seen['start_s']} s after exec; after SIGTERM the port refuses in "
        f"{seen['accepts_s']} s, all has ended in {seen['stop_s']} s with a request of 0.2 s under way",
        f"assumed: {result['pods']} pods behind {a['nodes']} nodes, {a['rate']:g} new connections/s a pod, requests of "
        f"{a['duration']:g} s; {a['schedule']:g} s to a node, asked for readiness every {a['probe']:g} s, minReadySeconds "
        f"{a['soak']:g}; a node forgets an endpoint in {a['lag_median']:g} s (median), {a['lag_p99']:g} s (99 %)",
        "",
        "| maxSurge | maxUnavailable | whole update | ready at least | pods at most | requests | lost: ends at once | drains | lame duck 5 s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["updates"]:
        lost = " | ".join(f"{n:,}" for n in row["lost"].values())
        lines.append(
            f"| {row['max_surge']} | {row['max_unavailable']} | {row['seconds']:g} s | {row['ready_at_least']} | "
            f"{row['pods_at_most']} | {row['requests']:,} | {lost} |"
        )
    ducks = ", ".join(f"{duck:g} s: {n:,}" for duck, n in result["lost_by_lame_duck_s"].items())
    lines += [
        "",
        f"lost at maxSurge 25%, maxUnavailable 0, by lame duck: {ducks}",
        "",
        "| load | the autoscaler looks at | waited > 1 s for a worker | worst wait | pods (mean) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['load']} | {r['looks_at']} | {r['late_percent']} % | {r['worst_wait_s']:g} s | {r['pods_mean']:g} |"
        for r in result["autoscaler"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

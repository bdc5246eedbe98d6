"""kill -9 of random processes of ours under load, reloads in between; every lost request is attributed.

    python -m tests.chaos.chaos --seed 1 --seconds 40

A request may be lost only with the worker that had it: refused connections and losses on workers that were not killed
are failures. The harness is the subreaper of all it starts, so that zombies are ours to count. Latencies are
reported, never asserted.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import psutil

HERE = os.path.dirname(os.path.abspath(__file__))
ROLES = ("worker", "worker", "daemon", "guardian", "template", "logger")
WORKERS = 3
SETTLE = 15.0


@dataclasses.dataclass
class Tally:
    """What the clients saw."""

    ok: int = 0
    refused: list[str] = dataclasses.field(default_factory=list)
    lost: list[tuple[float, float, int]] = dataclasses.field(default_factory=list)  # sent, noticed, pid (0 unknown)
    announced: int = 0  # keep-alive connections that were closed by announcement
    latencies: list[float] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class Client(threading.Thread):
    """One client: a kind of behaviour, repeated until told to stop."""

    def __init__(self, kind: str, port: int, tally: Tally, stop: threading.Event, seed: int) -> None:
        super().__init__(daemon=True)
        self.kind, self.port, self.tally, self.stop, self.chance = kind, port, tally, stop, random.Random(seed)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
            except OSError as error:
                with self.tally.lock:
                    self.tally.refused.append(str(error))
                continue
            with connection:
                self.talk(connection)

    def talk(self, connection: socket.socket) -> None:
        pid = 0
        for _ in range(1 if self.kind in ("new", "post") else 20):
            if self.stop.is_set():
                return
            count = 3 if self.kind == "pipelined" else 1
            began = time.monotonic()
            try:
                self.send(connection, count)
                pid, keep = self.receive(connection, count, pid)
            except (OSError, EOFError):
                with self.tally.lock:
                    self.tally.lost.append((began, time.monotonic(), pid))
                return
            with self.tally.lock:
                self.tally.ok += count
                self.tally.latencies.append(time.monotonic() - began)
                self.tally.announced += not keep
            if not keep:
                return
            # gaps below the keep-alive time-out: the client knows when the server may close, as browsers do
            self.stop.wait(self.chance.choice([0.0, 0.0, 0.02, 0.5]))

    def send(self, connection: socket.socket, count: int) -> None:
        if self.kind == "post":
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")
            for _ in range(4):
                self.stop.wait(0.02)
                connection.sendall(b"01234")
        else:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * count)

    def receive(self, connection: socket.socket, count: int, pid: int) -> tuple[int, bool]:
        data = b""
        keep = True
        for _ in range(count):
            while b"\r\n\r\n" not in data:
                data += self.more(connection)
            head, _, data = data.partition(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise EOFError(head.decode("latin-1"))
            keep = b"connection: close" not in head.lower()
            while len(data) < 16:
                data += self.more(connection)
            pid, data = int(data[:7]), data[16:]
        return pid, keep

    def more(self, connection: socket.socket) -> bytes:
        part = connection.recv(65536)
        if not part:
            raise EOFError("closed")
        return part


class Tree:
    """pyworker as it runs, by pid."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.environ = {**os.environ, "PYWORKER_HOME": home, "CI": "1"}

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyworker", *arguments],
            env=self.environ, capture_output=True, text=True, timeout=timeout, check=False, cwd=HERE,
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "--json")
        return json.loads(result.stdout) if result.returncode == 0 else None

    def pids(self, role: str) -> list[int]:
        """Processes of a role, found below this harness (never by name on the machine)."""
        status = self.json("daemon", "status") or {}
        if role in ("daemon", "guardian", "logger"):
            pid = status.get({"daemon": "pid"}.get(role, f"{role}_pid"), 0)
            return [pid] if pid else []
        if role == "worker":
            found = self.json("ps") or {"apps": []}
            return [w["pid"] for a in found["apps"] for w in a["pool"] if w["pid"]]
        found = self.json("describe", "chaos") or {"apps": []}
        return [a["template"]["pid"] for a in found["apps"] if a.get("template") and a["template"]["pid"]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args(argv)
    print(
        f"chaos: seed {options.seed}; again: python -m tests.chaos.chaos --seed {options.seed} --seconds {options.seconds:g}",
        flush=True,
    )
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    with tempfile.TemporaryDirectory(prefix="pyworker-chaos-") as folder:
        return run(options.seed, options.seconds, folder)


def run(seed: int, seconds: float, folder: str) -> int:
    chance = random.Random(seed)
    port = free_port()
    config = os.path.join(folder, "app.toml")
    with open(config, "w") as file:
        file.write(
            f'[app]\nname = "chaos"\ntarget = "app:app"\ncwd = "{HERE}"\nworkers = {WORKERS}\nbind = "127.0.0.1:{port}"\n'
            '[app.restart]\nmax_restarts = 1000\n[app.reload]\nsoak = "1s"\n[app.stop]\ndrain_timeout = "8s"\n'
        )
    tree = Tree(os.path.join(folder, "home"))
    started = tree.run("start", config)
    if started.returncode:
        print(started.stderr)
        return 1
    tally, stop = Tally(), threading.Event()
    kinds = ["new", "new", "keep-alive", "keep-alive", "pipelined", "post"]
    clients = [Client(kind, port, tally, stop, seed + i) for i, kind in enumerate(kinds)]
    for client in clients:
        client.start()
    kills: list[tuple[float, str, int]] = []
    reloads = refused_reloads = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stop.wait(chance.uniform(0.3, 1.1))
        if chance.random() < 0.3:
            reloads += 1
            refused_reloads += tree.run("reload", "chaos").returncode != 0
            continue
        role = chance.choice(ROLES)
        pids = tree.pids(role)
        if pids:
            victim = chance.choice(pids)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            kills.append((time.monotonic(), role, victim))
    stop.set()
    for client in clients:
        client.join(40)
    healthy = settle(tree)
    zombies = [
        p.pid for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE and reap(p.pid)
    ]
    killed_workers = {pid: at for at, role, pid in kills if role == "worker"}
    unexplained = [loss for loss in tally.lost if not explained(loss, killed_workers)]
    latencies = sorted(tally.latencies)
    print(
        f"chaos: {len(kills)} kills {count_by_role(kills)}, {reloads} reloads ({refused_reloads} not done), {tally.ok} requests ok, "
        f"{tally.announced} closed by announcement, {len(tally.lost)} lost, {len(unexplained)} unexplained, {len(tally.refused)} refused; "
        f"p50 {latencies[len(latencies) // 2] * 1000:.0f} ms, p99.9 {latencies[int(len(latencies) * 0.999)] * 1000:.0f} ms, "
        f"max {latencies[-1] * 1000:.0f} ms; healthy at the end: {healthy}, zombies {len(zombies)}",
        flush=True,
    )
    for loss in unexplained[:10]:
        near = [(round(at - loss[0], 2), role, pid) for at, role, pid in kills if abs(at - loss[0]) < 3]
        print(f"  unexplained: pid {loss[2]}, noticed after {loss[1] - loss[0]:.2f} s; kills around it: {near}")
    for text in tally.refused[:5]:
        print(f"  refused: {text}")
    ended = tree.run("daemon", "stop", "-y")
    left = wait_gone(20)
    if unexplained or tally.refused or not healthy or left:
        print(f"chaos: FAILED (left over: {left}, stop: {ended.returncode})")
        with open(os.path.join(tree.home, "logs", "pyworker.log")) as file:
            print(file.read()[-4000:])
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return 1
    return 0


def explained(loss: tuple[float, float, int], killed: dict[int, float]) -> bool:
    """A request is lost rightly when its worker was killed; where no byte told which it was, when any was, meanwhile."""
    began, noticed, pid = loss
    if pid and pid in killed:
        return True
    return any(began - 1.0 <= at <= noticed + 0.5 for at in killed.values())


def settle(tree: Tree) -> bool:
    """Wait until all wanted workers are ready and nothing else is there."""
    until = time.monotonic() + SETTLE
    while time.monotonic() < until:
        found = tree.json("ps")
        if found and found["apps"]:
            app = found["apps"][0]
            if app["state"] == "running" and app["workers"] == {"want": WORKERS, "ready": WORKERS, "total": WORKERS}:
                return True
        time.sleep(0.2)
    return False


def reap(pid: int) -> bool:
    """Take what has come to us as subreaper; True when it was somebody else's zombie."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def wait_gone(seconds: float) -> list[int]:
    until = time.monotonic() + seconds
    left: list[int] = []
    while time.monotonic() < until:
        left = []
        for child in psutil.Process().children(recursive=True):
            try:
                if child.status() == psutil.STATUS_ZOMBIE:
                    reap(child.pid)
                else:
                    left.append(child.pid)
            except psutil.NoSuchProcess:
                continue
        if not left:
            break
        time.sleep(0.1)
    return left


def count_by_role(kills: list[tuple[float, str, int]]) -> dict[str, int]:
    return {role: sum(1 for _, r, _ in kills if r == role) for role in sorted(set(ROLES))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""kill -9 of random processes of ours under load, some only frozen, reloads in between; every lost request is attributed.

    python -m tests.chaos.chaos --seed 1 --seconds 40
    python -m tests.chaos.chaos --long                     an hour, with checks of processes, fds and memory in between

A request may be lost only with the worker that had it: refused connections and losses on workers that were not killed
are failures, and so is what a frozen one loses (who pauses a virtual machine freezes all of it). The harness is the
subreaper of all it starts, so that zombies are ours to count. Latencies are reported, never asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import psutil

from tests.support.fleet import ALL, Fleet, Loss
from tests.support.pyworker import free_port

HERE = os.path.dirname(os.path.abspath(__file__))
ROLES = ("worker", "worker", "daemon", "guardian", "template", "spare", "logger", "cli")
STATUS = {"daemon": "pid", "guardian": "guardian_pid", "logger": "logger_pid"}  # in the answer of `daemon status`
HOLDERS = ("daemon", "guardian")  # each has all that must not be lost
SERVES = ("worker", "spare")  # which may have become a worker in the moment before it was hit
FROZEN = 0.15  # of the faults
FREEZE = (0.3, 4.0)  # seconds: past the time-out of connections that were idle, not so long that it is killed as hung
WORKERS = 3
PROCESSES = WORKERS + 5  # guardian, daemon, logger, template, and the worker that it has forked ahead of need
SETTLE = 30.0
STILL = 5.0  # seconds with the same fds: what has ended is put away some seconds later
REPLACED = 60.0  # seconds within which who was hit has a successor; later its pid may be another's
KEEPALIVE = 3.0  # a client may be held up on a busy machine: its gaps stay 0.9 s below this
HOUR, LOOK_EVERY = 3600.0, 60.0
FAULTS_AN_HOUR = 4000
SLOPE = 1.0  # MB per 1000 faults


class Sample(NamedTuple):
    """What a settled tree has."""

    faults: int
    fds: dict[str, int]  # of the processes that stay: by role
    memory: float  # MB, of all: their shares of what is in no file (of files, other Pythons here take a share, too)
    what: dict[str, Counter[str]]  # the fds by what they are

    def __str__(self) -> str:
        return f"fds {self.fds}, {self.memory:.1f} MB"


class Tree:
    """pyworker as it runs, by pid."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.environ = {**os.environ, "PYWORKER_HOME": home, "CI": "1"}
        self._ours: set[int] = set()  # what we have started and wait for ourselves

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", *arguments],
            env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE,
        )  # fmt: skip
        self._ours.add(process.pid)
        return process

    def run(self, *arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        process = self.popen(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
            process.wait()
            self._ours.discard(process.pid)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def kill_in_the_middle(self, seconds: float, *arguments: str) -> None:
        """Start a command and kill it."""
        process = self.popen(*arguments)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        self._ours.discard(process.pid)

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "--json")
        return json.loads(result.stdout) if result.returncode == 0 else None

    def pids(self, role: str) -> list[int]:
        """Processes of a role, by what the daemon says (but for spares); none while there is no daemon."""
        if role == "spare":
            return [p.pid for p in self.below()[0] if title(p).startswith("pyworker spare ")]
        if role in STATUS:
            status = self.json("daemon", "status") or {}
            return [status[STATUS[role]]] if status.get(STATUS[role]) else []
        if role == "worker":
            found = self.json("ps") or {"apps": []}
            return [w["pid"] for a in found["apps"] for w in a["pool"] if w["pid"]]
        found = self.json("describe", "chaos") or {"apps": []}
        return [a["template"]["pid"] for a in found["apps"] if a.get("template") and a["template"]["pid"]]

    def holders(self) -> list[int]:
        """The daemon and the guardian, by one answer; none while there is no daemon."""
        status = self.json("daemon", "status")
        return [status[STATUS[role]] for role in HOLDERS] if status else []

    def below(self) -> tuple[list[psutil.Process], list[int]]:
        """Return what lives of the tree, and its zombies. What came to us as the subreaper is reaped: not theirs."""
        alive, zombies = [], []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid in self._ours:
                    continue
                if process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
                elif process.ppid() == os.getpid():
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
                else:
                    zombies.append(process.pid)
        return alive, zombies

    def settled(self) -> list[psutil.Process]:
        """Wait until exactly what is wanted is there; return it, or nothing when that does not come."""
        until = time.monotonic() + SETTLE
        while time.monotonic() < until:
            found = self.json("ps")
            app = found["apps"][0] if found and found["apps"] else None
            if (
                app
                and app["state"] == "running"
                and app["workers"] == dict.fromkeys(("want", "ready", "total"), WORKERS)
            ):
                alive, zombies = self.below()
                if len(alive) == PROCESSES and not zombies:
                    return alive
            time.sleep(0.1)
        return []

    def sample(self, faults: int) -> Sample | None:
        """Measure a settled tree."""
        alive = self.settled()
        if not alive:
            return None
        seen: tuple[set[int], dict[str, int]] = set(), {}
        what: dict[str, Counter[str]] = {}
        since = now = time.monotonic()
        until = now + SETTLE
        while now - since < STILL:  # what has ended is still put away
            if now > until:
                return None
            time.sleep(0.05)
            status = self.json("daemon", "status") or {}
            what = {role: open_files(status[key]) for role, key in STATUS.items() if status.get(key)}
            now = time.monotonic()
            alive, _ = self.below()  # one of those before may have been about to end
            before, seen = seen, ({p.pid for p in alive}, {role: found.total() for role, found in what.items()})
            if seen != before:
                since = now
        return Sample(faults, seen[1], sum(own_memory(p.pid) for p in alive) / 2**10, what)


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def open_files(pid: int) -> Counter[str]:
    """Count what a process has open, by what it is: "pipe", "memfd:pyworker-env-chaos", a path."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found[os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0]] += 1
    return found


def own_memory(pid: int) -> int:
    """Return the KB that a process has of anonymous and shared memory."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        fields = dict(line.split()[:2] for line in file if line.startswith("Pss_"))
    return int(fields["Pss_Anon:"]) + int(fields["Pss_Shmem:"])


class Reloads(threading.Thread):
    """Reloads in between, also while others die."""

    def __init__(self, tree: Tree, chance: random.Random) -> None:
        super().__init__(daemon=True)  # it keeps no run that was interrupted from its end
        self._tree, self._chance = tree, chance
        self._over = threading.Event()
        self._quiet = threading.Lock()
        self.done: Counter[int] = Counter()  # by exit code

    def run(self) -> None:
        while not self._over.wait(self._chance.uniform(0.8, 2.4)):
            with self._quiet:
                self.done[self._tree.run("reload", "chaos").returncode] += 1

    def paused(self) -> threading.Lock:
        """With this held no reload begins."""
        return self._quiet

    def stop(self) -> None:
        self._over.set()
        self.join()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--long", action="store_true", help="an hour unless --seconds says otherwise")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended so it leaves nothing running, too
    seconds = options.seconds or (HOUR if options.long else 40.0)
    again = (
        f"python -m tests.chaos.chaos --seed {options.seed} --seconds {seconds:g}{' --long' if options.long else ''}"
    )
    print(f"chaos: seed {options.seed}; again: {again}", flush=True)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    with tempfile.TemporaryDirectory(prefix="pyworker-chaos-", ignore_cleanup_errors=True) as folder:
        try:
            return run(options.seed, seconds, folder, long=options.long)
        except BaseException:  # Ctrl-C, too: nothing is left running, while there is a home to find it by
            Tree(os.path.join(folder, "home")).run("daemon", "stop", "-y")
            raise


def run(seed: int, seconds: float, folder: str, *, long: bool) -> int:
    port = free_port()
    config = os.path.join(folder, "app.toml")
    with open(config, "w") as file:
        file.write(
            f'[app]\nname = "chaos"\ntarget = "app:app"\ncwd = "{HERE}"\nworkers = {WORKERS}\nbind = "127.0.0.1:{port}"\n'
            f'[app.http]\nkeepalive_timeout = "{KEEPALIVE:g}s"\n[app.restart]\nmax_restarts = 1000\n'
            '[app.reload]\nsoak = "1s"\n[app.stop]\ndrain_timeout = "8s"\n'
        )
    tree = Tree(os.path.join(folder, "home"))
    started = tree.run("start", config)
    if started.returncode:
        print(started.stderr)
        return 1
    samples = [tree.sample(0)]
    kills: list[tuple[float, str, int]] = []
    chance = random.Random(seed)
    reloads = Reloads(tree, random.Random(seed + 1))
    reloads.start()
    wrong: list[str] = []
    with Fleet(port, ALL, keepalive=KEEPALIVE, seed=seed) as fleet:
        until = time.monotonic() + seconds
        look_at = time.monotonic() + LOOK_EVERY
        told = 0
        last = time.monotonic()
        while time.monotonic() < until:
            time.sleep(max(0.0, last + chance.uniform(0.3, 1.1) - time.monotonic()))  # to find a victim takes time, too
            last = time.monotonic()
            kill_one(tree, chance, kills)
            if len(kills) % 20 == 0:
                tree.below()
            if time.monotonic() > look_at:
                with reloads.paused():
                    samples.append(tree.sample(len(kills)))
                killed = [(pid, at) for at, role, pid in kills if role in SERVES]
                unexplained = fleet.tally.unexplained(killed)
                print(
                    f"chaos: {len(kills)} faults, {fleet.tally.requests} answers, {len(fleet.tally.refused)} refused, "
                    f"{len(unexplained)} unexplained; now {samples[-1]}",
                    flush=True,
                )
                for loss in unexplained[told:]:  # while its traces are fresh
                    print(f"  {describe(loss, kills)}", flush=True)
                told = len(unexplained)
                look_at = time.monotonic() + LOOK_EVERY
        reloads.stop()
    tally = fleet.tally
    samples.append(tree.sample(len(kills)))
    killed = [(pid, at) for at, role, pid in kills if role in SERVES]
    unexplained = tally.unexplained(killed)
    print(
        f"chaos: {len(kills)} kills {dict(sorted(Counter(role for _, role, _ in kills).items()))}, "
        f"{reloads.done.total()} reloads ({reloads.done.total() - reloads.done[0]} not done), "
        f"{tally.requests} answers {dict(sorted(tally.answered.items()))}, {tally.announced.total()} closed by announcement, "
        f"{len(tally.lost)} lost, {len(unexplained)} unexplained, {len(tally.refused)} refused; p50 {tally.percentile(0.5):.0f} ms, "
        f"p99.9 {tally.percentile(0.999):.0f} ms, max {tally.percentile(1.0):.0f} ms; at the end {samples[-1]}",
        flush=True,
    )
    wrong += [f"refused: {text}" for text in tally.refused]
    wrong += [describe(loss, kills) for loss in unexplained]
    is_hour = long and seconds >= HOUR
    wrong += judge(samples, is_hour=is_hour)
    if is_hour and len(kills) < FAULTS_AN_HOUR:
        wrong.append(f"{len(kills)} faults in an hour instead of {FAULTS_AN_HOUR}")
    ended = tree.run("daemon", "stop", "-y")
    left = wait_gone(tree, 20)
    if ended.returncode or left:
        wrong.append(f"the end: exit code {ended.returncode}, left over {left}")
    for text in wrong[:20]:
        print(f"  {text}")
    if wrong:
        print(f"chaos: FAILED, {len(wrong)} things are wrong")
        with open(os.path.join(tree.home, "logs", "pyworker.log")) as file:
            print(file.read()[-4000:])
        tell_events(tree, {loss.pid for loss in unexplained if loss.pid})
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return 1
    return 0


def describe(loss: Loss, kills: list[tuple[float, str, int]]) -> str:
    """Return what is known of a loss that no kill explains."""
    near = [(round(at - loss.began, 2), role, pid) for at, role, pid in kills if abs(at - loss.began) < 3]
    took = loss.noticed - loss.began
    when = time.strftime("%H:%M:%S", time.gmtime(time.time() - time.monotonic() + loss.began))
    return f"unexplained: {loss.kind} at {when}, pid {loss.pid}, noticed after {took:.2f} s: {loss.why}; kills around it: {near}"


def kill_one(tree: Tree, chance: random.Random, kills: list[tuple[float, str, int]]) -> None:
    role = chance.choice(ROLES)
    if role == "cli":
        kills.append((time.monotonic(), role, 0))
        tree.kill_in_the_middle(chance.uniform(0.0, 0.4), "reload", "chaos")
        return
    if role in HOLDERS:
        now = time.monotonic()
        both, hit = tree.holders(), {pid for at, _, pid in kills if now - at < REPLACED}
        # both at once end everything (docs/reliability.md): one that was hit has to be replaced first
        pids = [both[HOLDERS.index(role)]] if both and hit.isdisjoint(both) else []
    else:
        pids = tree.pids(role)
    if not pids:
        return
    victim = chance.choice(pids)
    if chance.random() < FROZEN:
        kills.append((time.monotonic(), f"frozen {role}", victim))
        freeze(victim, chance.uniform(*FREEZE))
        return
    kills.append((time.monotonic(), role, victim))  # before it happens: a client may notice at once
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        kills.pop()


def freeze(pid: int, seconds: float) -> None:
    """Stop a process for a while. One that is killed meanwhile is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(seconds, thaw, (pid,)).start()


def thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def tell_events(tree: Tree, pids: set[int]) -> None:
    """Print what the daemon knows of these workers, and of the reloads around them."""
    with open(os.path.join(tree.home, "events.jsonl")) as file:
        for line in file:
            event = json.loads(line)
            if event["data"].get("pid") in pids or event["type"].startswith(("reload", "daemon", "app_")):
                print("  event:", event["time"], event["type"], event["worker"], json.dumps(event["data"])[:200])


def judge(samples: list[Sample | None], *, is_hour: bool) -> list[str]:
    """Processes, fds and memory: what must not have changed.

    A sample may have 10 MB more than the one before, by what processes share just then: only an hour of them tells a growth.
    """
    found = [sample for sample in samples if sample is not None]
    if len(found) < len(samples):
        return [f"{len(samples) - len(found)} of {len(samples)} times it did not settle within {SETTLE:g} s"]
    wrong = []
    first, last = found[0], found[-1]
    if first.fds != last.fds:
        more = {role: dict(last.what[role] - first.what.get(role, Counter())) for role in last.what}
        less = {role: dict(first.what[role] - last.what.get(role, Counter())) for role in first.what}
        wrong.append(f"fds at the beginning {first.fds}, at the end {last.fds}; more: {more}; less: {less}")
    if len(found) > 10:  # the first minute is warming up
        slope = _slope([(s.faults / 1000, s.memory) for s in found[1:]])
        print(f"chaos: memory grows by {slope:.2f} MB per 1000 faults")
        if is_hour and slope > SLOPE:
            wrong.append(f"memory grows by {slope:.2f} MB per 1000 faults")
    return wrong


def _slope(points: list[tuple[float, float]]) -> float:
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / (sum((x - mean_x) ** 2 for x, _ in points) or 1.0)


def wait_gone(tree: Tree, seconds: float) -> list[int]:
    """Wait for the end of everything; return what is left."""
    until = time.monotonic() + seconds
    while True:
        alive, zombies = tree.below()
        if not alive and not zombies:
            return []
        if time.monotonic() > until:
            return [p.pid for p in alive] + zombies
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

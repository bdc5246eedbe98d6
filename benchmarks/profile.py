"""`make profile`: where the time goes on each hot path, sampled by py-spy (native frames too where it can).

    python -m benchmarks.profile [asgi wsgi conns daemon logger ps]      none = all

asgi, wsgi, conns: one worker under load; daemon: the daemon while `ps` is asked; logger: while an app prints;
ps: what `pyworker ps` imports. Flame graphs go into build/profile, the 25 longest functions to the terminal.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter

from benchmarks.harness import peers, procs
from benchmarks.harness.load import wrk
from benchmarks.harness.managers import Manager
from benchmarks.harness.servers import PYWORKER, Spec, start

OUT = os.path.join("build", "profile")
SECONDS = 6
PATHS = ("asgi", "wsgi", "conns", "daemon", "logger", "ps")


def record(pid: int, name: str) -> None:
    """Sample a process and print its longest functions, by own time and with what they call."""
    os.makedirs(OUT, exist_ok=True)
    with tempfile.NamedTemporaryFile() as raw:
        command = [peers.tool("py-spy"), "record", "-p", str(pid), "-d", str(SECONDS), "-r", "500", "-f", "raw", "-o", raw.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: py-spy could not look into {pid}: {done.stderr.strip()[-200:]}")
            return
        with open(raw.name) as file:
            stacks = [line.rpartition(" ") for line in file if line.strip()]
    with open(os.path.join(OUT, f"{name}.folded"), "w") as file:
        file.writelines(f"{stack} {count}" for stack, _, count in stacks)
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for stack, _, count in stacks:
        frames = [frame.rpartition(":")[0] for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    total = sum(own.values()) or 1
    print(f"\n{name}: {total} samples; own %, with what it calls %, function")
    for frame, count in own.most_common(25):
        print(f"{100 * count / total:6.1f} {100 * within[frame] / total:6.1f}  {frame}")


def served(name: str) -> None:
    close = name == "conns"
    running = start("pyworker", Spec(kind="wsgi" if name == "wsgi" else "asgi", workers=1))
    try:
        pid = next(iter(running.workers_seen(1)))
        load = threading.Thread(target=lambda: wrk(running.port, 32, SECONDS + 2, close=close))
        load.start()
        record(pid, name)
        load.join()
    finally:
        running.stop()


def daemon() -> None:
    with Manager("pyworker", 50) as manager:
        pid = next(p for p in manager.own() if "pyworker daemon" in procs.name(p))
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                subprocess.run([PYWORKER, "ps"], env=manager.env, capture_output=True, check=False)

        asking = threading.Thread(target=ask)
        asking.start()
        record(pid, "daemon")
        over.set()
        asking.join()


def logger() -> None:
    with tempfile.TemporaryDirectory() as folder:
        chatty = [sys.executable, os.path.join(peers.APPS, "chatty.py"), os.path.join(folder, "done"), "20000000"]
        open(os.path.join(folder, "done.go"), "w").close()
        with Manager("pyworker", 1, chatty) as manager:
            pid = next(p for p in manager.own() if "pyworker logger" in procs.name(p))
            record(pid, "logger")


def ps() -> None:
    with Manager("pyworker", 1) as manager:
        done = subprocess.run(
            [peers.PYTHON, "-X", "importtime", PYWORKER, "ps"], env=manager.env, capture_output=True, text=True, check=False
        )
    rows = []
    for line in done.stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdigit():
            rows.append((int(own), rest.partition("|")[2].strip()))
    print(f"\nps: {len(rows)} modules, {sum(own for own, _ in rows) / 1000:.1f} ms of imports (slowed by being measured)")
    for own, module in sorted(rows, reverse=True)[:25]:
        print(f"{own / 1000:6.2f} ms  {module}")


def main() -> int:
    wanted = sys.argv[1:] or list(PATHS)
    unknown = [path for path in wanted if path not in PATHS]
    if unknown:
        print(f"no such path: {unknown[0]} (there are {' '.join(PATHS)})", file=sys.stderr)
        return 2
    peers.install()
    for path in wanted:
        if path in ("asgi", "wsgi", "conns"):
            served(path)
        else:
            {"daemon": daemon, "logger": logger, "ps": ps}[path]()
    return 0


if __name__ == "__main__":
    sys.exit(main())

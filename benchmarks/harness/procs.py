"""Figures of processes, from /proc: memory, run time, wake-ups, descendants. Linux only, own processes only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What processes have used since they began."""

    cpu: float  # seconds on a CPU
    wakeups: int  # voluntary context switches: each is one end of a wait


def parents() -> dict[int, int]:
    """Return each process's parent."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat") as file:
                found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    return found


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    by_parent: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        by_parent.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += by_parent.get(pid, [])
    return found


def pss(pids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Return each process's (PSS, private) in bytes."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            fields = {line.split(":")[0]: line.split()[1] for line in file.readlines()[1:]}
            private = int(fields["Private_Clean"]) + int(fields["Private_Dirty"])
            found[pid] = int(fields["Pss"]) * 1024, private * 1024
    return found


def rss(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
            total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def usage(pids: Iterable[int]) -> Usage:
    """Add up run time and wake-ups of all threads of these processes."""
    cpu = 0.0
    wakeups = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                    cpu += int(file.read().split()[0]) / 1e9
                with open(f"/proc/{pid}/task/{thread}/status") as file:
                    for line in file:
                        if line.startswith("voluntary_ctxt_switches"):
                            wakeups += int(line.split()[1])
    return Usage(cpu, wakeups)


def name(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        return file.read().replace("\0", " ").strip()
    return ""


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(condition: Callable[[], object], seconds: float, what: str, every: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(every)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as conn:
        conn.settimeout(2)
        conn.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return conn.recv(12).startswith(b"HTTP/1.1 200")
    return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def end_tree(root: int) -> None:
    """TERM, then KILL, a process we started and its descendants."""
    pids = tree(root)
    with contextlib.suppress(ProcessLookupError):
        os.kill(root, signal.SIGTERM)
    end = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in {*pids, *tree(root)}:
        if alive(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

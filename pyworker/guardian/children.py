"""Guardian: the children that have ended. A child stays a zombie (the kernel keeps its status) until told to reap.

Reaps nothing by itself, and never waits.
"""

from __future__ import annotations

import os

from pyworker.unix.process import ExitStatus, status_of


class Children:
    """Finds ended children; `ended` holds those that are known and not reaped yet."""

    def __init__(self) -> None:
        self.ended: dict[int, ExitStatus] = {}

    def find(self) -> dict[int, ExitStatus]:
        """Return the children that ended since the last call."""
        new: dict[int, ExitStatus] = {}
        for pid in _children():
            if pid not in self.ended:
                status = _status(os.P_PID, pid)
                if status is not None:
                    new[pid] = status[1]
        self.ended |= new
        return new

    def reap(self, pid: int) -> None:
        """Let the kernel forget a child that was found ended; any other pid is ignored."""
        if self.ended.pop(pid, None) is not None:
            try:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return


def _status(kind: int, pid: int) -> tuple[int, ExitStatus] | None:
    try:
        found = os.waitid(kind, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else (found.si_pid, status_of(found))


def _children() -> list[int]:
    """Return the pids of all our children, or only the first ended one where the kernel has no such list.

    waitid(P_ALL, WNOWAIT) gives the same child again and again until it is reaped, so it cannot enumerate.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        first = _status(os.P_ALL, 0)
        return [] if first is None else [first[0]]

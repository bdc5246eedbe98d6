"""Guardian: the children that have ended. A child stays a zombie (the kernel keeps its status) until told to reap.

Reaps nothing by itself, and never waits.
"""

from __future__ import annotations

import contextlib
import os

from pyworker.unix.process import ExitStatus, stat_number, status_of


class Children:
    """Finds ended children; `ended` holds those that the caller has dealt with and that are not reaped yet."""

    def __init__(self) -> None:
        self.ended: dict[int, ExitStatus] = {}
        try:  # held open: without a descriptor left, the death of the one who could free some would go unseen
            self._listing = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without it
            self._listing = -1

    def find(self) -> dict[int, ExitStatus]:
        """Return the children that have ended and are not in `ended`."""
        new: dict[int, ExitStatus] = {}
        if not self.ended and _status(os.P_ALL, 0) is None:  # at most looks: one question, however many there are
            return new
        for pid in self._pids():
            if pid not in self.ended:
                status = _status(os.P_PID, pid)
                if status is not None:
                    new[pid] = status
        return new

    def reap(self, pid: int) -> None:
        """Let the kernel forget a child that is in `ended`; any other pid is ignored."""
        if self.ended.pop(pid, None) is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

    def close(self) -> None:
        if self._listing >= 0:
            os.close(self._listing)

    def _pids(self) -> list[int]:
        """Return the pids of all our children.

        waitid(P_ALL, WNOWAIT) gives the same child again and again until it is reaped, so it cannot enumerate.
        """
        if self._listing < 0:
            return _with_parent(os.getpid())
        text = b""
        while part := os.pread(self._listing, 65536, len(text)):
            text += part
        return [int(pid) for pid in text.split()]


def any_is_stopped() -> bool:
    """Whether a child was stopped by a signal and has not been continued; who it is, the kernel does not enumerate."""
    try:
        return os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _with_parent(parent: int) -> list[int]:
    """Return the children of a process by asking each that there is: slow, but no end goes unseen behind an unreaped one."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and stat_number(int(name), 4) == parent]


def _status(kind: int, pid: int) -> ExitStatus | None:
    try:
        found = os.waitid(kind, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else status_of(found)

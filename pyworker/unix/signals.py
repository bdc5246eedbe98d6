"""What /proc says about the signals of a process: handled, waiting, blocked. Readable for every user's process."""

from __future__ import annotations

import os


def is_handled(pid: int, signum: int) -> bool:
    """True when the process has a handler for the signal (it neither ignores it nor dies of it)."""
    return _has(_status(f"/proc/{pid}/status"), "SigCgt", signum)


def is_waiting(pid: int, signum: int) -> bool:
    """True when the signal was sent and no thread has taken it yet."""
    status = _status(f"/proc/{pid}/status")
    return _has(status, "ShdPnd", signum) or _has(status, "SigPnd", signum)


def blocked_by(pid: int, signum: int) -> frozenset[int]:
    """Return the threads that block the signal now; one that is inside its handler does."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return frozenset()
    return frozenset(int(t) for t in threads if _has(_status(f"/proc/{pid}/task/{t}/status"), "SigBlk", signum))


def _has(status: dict[str, str], field: str, signum: int) -> bool:
    return bool(int(status.get(field, "0"), 16) >> (signum - 1) & 1)


def _status(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return {k: v.strip() for k, _, v in (line.partition(":") for line in file)}
    except OSError:
        return {}

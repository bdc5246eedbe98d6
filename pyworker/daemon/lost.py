"""Daemon: processes that run and whose pid nobody has told: the launcher, or the daemon before this one, died over it.

Such a process is the guardian's child like any other. A template is known by its stdout; a command by its birth in its
environment, or by its stdout when it has written over that. The guardian before this one may have died meanwhile: then it
went to whoever this one went to. There it is among strangers, of another home maybe and born under the same name, so its
stdout must be ours as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from pyworker.daemon.loop import Loop
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.names import ENV_BIRTH
from pyworker.unix import process

LAUNCHER_LEAVES = 0.05  # seconds from the end of its channel until what it had started is the guardian's ...
AT_LAST = 0.4  # ... and of the last pause between two looks for it: it takes longer on a busy machine


def find(guardian: int, worker: WorkerId, pipe: int | None) -> int:
    """Return the pid of the guardian's child that is this worker, 0 when there is none. `pipe`: of its stdout, for reading."""
    for pid, parent in _candidates(guardian):
        born, writes = _was_born_as(worker, pid), pipe is not None and _writes_to(pipe, pid)
        # what another user's app has left here may say of itself what it likes; our pipe it cannot have
        if (born and writes) or (parent == guardian and (writes or (born and _is_ours(pid)))):
            return pid
    return 0


def end(pid: int, worker: WorkerId) -> bool:
    """Kill a command that nobody wants any more, with its group, if the process is that one; return whether it was."""
    found = _was_born_as(worker, pid)
    if found:
        process.kill_group(pid, signal.SIGKILL)
    return found


def end_template(guardian: int, pipe: int) -> bool:
    """Kill the template whose stdout has this end, for reading, and what its import has started; return whether one was there."""
    found = [pid for pid, _ in _candidates(guardian) if _writes_to(pipe, pid)]
    for pid in found:
        process.kill_group(pid, signal.SIGKILL)
    return bool(found)


def hunt(loop: Loop, pipe: int | None, end: Callable[[int | None], bool]) -> None:
    """Have one ended that may not have come to the guardian yet: now, or at one of some looks. `pipe` may be closed meanwhile."""
    ours = None
    if pipe is not None:
        with contextlib.suppress(OSError):  # no descriptor is left: a command is found if its guardian lives
            ours = os.dup(pipe)

    def look(pause: float) -> None:
        if not end(ours) and pause <= AT_LAST:
            loop.call_later(pause, lambda: look(pause * 2))
        elif ours is not None:
            os.close(ours)

    look(LAUNCHER_LEAVES)


def _candidates(guardian: int) -> Iterator[tuple[int, int]]:
    """Yield pid and parent of each that may be ours: who leads no session is the child of a worker."""
    of_orphans = process.stat_number(guardian, 4)
    for pid in process.all_pids():
        parent = process.stat_number(pid, 4)
        if parent in (guardian, of_orphans) and process.stat_number(pid, 6) == pid:
            yield pid, parent


def _was_born_as(worker: WorkerId, pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{ENV_BIRTH}={worker}".encode() in file.read().split(b"\0")
    except OSError:  # it is gone, or a program that runs with more rights than we; empty: its exec is not over
        return False


def _is_ours(pid: int) -> bool:
    """Whether its real user is ours: a program of root's that another user runs (setuid) has the environment that this one gave it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return f"\nUid:\t{os.getuid()}\t".encode() in file.read()
    except OSError:
        return False


def _writes_to(pipe: int, pid: int) -> bool:
    try:
        there, ours = os.stat(f"/proc/{pid}/fd/1"), os.fstat(pipe)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

"""Daemon: was it the kernel? What it counts and which limits it holds, asked at the moment of a death; and what to do
about an error that is a want of something.

The counters know how many were killed for want of memory, not who. They are looked at every few seconds, so that only a
kill of the last moments can be taken for the cause of a death.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys

from pyworker.daemon.loop import LAZY, Loop
from pyworker.errors import FULL_DISK
from pyworker.record import record
from pyworker.unix import oom
from pyworker.unix.process import ExitStatus

INSTALLATION = f"mend the installation of {sys.executable}, which pyworker runs with"
_MB = 2**20
_NO_MEMORY = ("MemoryError", "Cannot allocate memory", "Out of memory", "std::bad_alloc")  # the third: musl
_REPLACED = "a worker over that is replaced without losing a request"


def step_for(number: int | None, pid: int = 0) -> str:
    """Return what to do when this error keeps a process from something, "" for one that is no want of anything.

    `pid`: of the process, 0: the daemon.
    """
    match number:
        # the second: more of them on their way to others than one process may have
        case errno.EMFILE | errno.ETOOMANYREFS:
            return (
                f"raise the limit of open files: prlimit --pid {pid or os.getpid()} --nofile=65536 "
                "(above its hard limit: as root) for what runs, "
                "and for the next start ulimit -Hn where the daemon is started (LimitNOFILE= of its service)"
            )
        case errno.ENFILE:
            return "the whole machine has no file left to open: raise sysctl fs.file-max"
        case errno.EAGAIN:
            return "raise the limit of processes: ulimit -u where the daemon is started, TasksMax= or pids.max of its cgroup"
        case errno.ENOMEM | errno.ENOBUFS:
            step = "free some memory, or run fewer workers"
            if oom.is_promised_in_full():
                step += "; what is free does not count here: raise sysctl vm.overcommit_ratio, or set vm.overcommit_memory=0"
            return step
        case _:
            return ""


def step_for_words(said: str, pid: int) -> str:
    """Return what to do about the last words of another process of ours (`pid`: whose limits it has), as `step_for`."""
    if "MemoryError" in said:
        return step_for(errno.ENOMEM)
    numbers = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
    return next((step_for(number, pid) for number in numbers if os.strerror(number) in said), "")


def is_want(number: int | None) -> bool:
    """Whether it is for want of something of ours, or the machine's, that nobody could be asked."""
    return number == errno.EADDRNOTAVAIL or step_for(number) != ""


def step_to_write(error: OSError, folder: str) -> str:
    """Return what to do when a file of this folder could not be written."""
    if error.errno == errno.EROFS:
        return f"Its disk is read-only, as the kernel makes it after an error (dmesg says so): findmnt -T {shlex.quote(folder)}"
    if error.errno not in FULL_DISK:
        return step_for(error.errno) or f"May {folder} be written?"
    with contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        if disk.f_files and not disk.f_favail:
            return f"No inode is left, so remove some files: df -i {shlex.quote(folder)}"
    return f"Free some space: df -h {shlex.quote(folder)}"


def step_to_start(error: object) -> str:
    """Return what to do when a process of ours could not be started."""
    if isinstance(error, FileNotFoundError | PermissionError):  # what is started is always our interpreter
        return INSTALLATION
    return step_for(getattr(error, "errno", None))


@record
class Shortage:
    """What the system says of a death. `reason` is empty where it says nothing."""

    reason: str = ""
    hint: str = ""
    memory_limit: int | None = None  # bytes: RLIMIT_AS or RLIMIT_DATA, the smaller one
    certain: bool = True  # False: the kernel's counters cannot be read, so that it may have been the kernel

    def explains(self, said: str) -> str:
        """Return last words with the limit that they do not mention."""
        if self.memory_limit is None or not any(word in said for word in _NO_MEMORY):
            return said
        limit = f"its memory is limited to {self.memory_limit // _MB} MB (RLIMIT_AS, ulimit -v)"
        return f"{said.rstrip(': ')} ({limit})"


def by_somebody(status: ExitStatus, shortage: Shortage) -> bool:
    """Whether it was killed by somebody: a SIGKILL of which the kernel's counters know nothing."""
    return status.signal == signal.SIGKILL and shortage.certain and not shortage.reason


class Shortages:
    """Remembers the counters."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._seen = self._last = oom.kills()  # _seen: kills of long ago, and those that have explained a death
        loop.call_lazily(LAZY, self._look)

    def _look(self) -> None:
        self._loop.call_lazily(LAZY, self._look)
        # of the look before: a death may be seen a moment after its kill was counted
        self._seen = oom.OomKills(max(self._seen.group, self._last.group), max(self._seen.machine, self._last.machine))
        self._last = oom.kills()

    def of_death(self, pid: int, status: ExitStatus) -> Shortage:
        """Ask about a process that has ended and is not reaped yet."""
        limits = oom.limits(pid)
        memory_limit = min((x for x in (limits.address_space, limits.data) if x is not None), default=None)
        by_child = status.code == 128 + signal.SIGKILL  # what a shell says of the program that it has run
        if status.signal not in (signal.SIGKILL, signal.SIGXCPU) and not by_child:
            return Shortage(memory_limit=memory_limit)
        who = "what it had started was " if by_child else ""
        at_kill = by_child or status.signal == signal.SIGKILL
        hint = f"fewer workers, or limits.memory: {_REPLACED}"
        before, now = self._seen, oom.kills()
        if at_kill and 0 <= before.group < now.group:
            self._seen = before._replace(group=before.group + 1)
            words = ""
            if (limit := oom.group_limit()) is not None:  # else of what a container is in, or the machine's
                words = f" (limit of its cgroup: {limit // _MB} MB)"
                hint = f"raise the limit, or set limits.memory below it: {_REPLACED}"
            return Shortage(f"{who}killed by the kernel: out of memory{words}", hint, memory_limit)
        if at_kill and 0 <= before.machine < now.machine:
            self._seen = before._replace(machine=before.machine + 1)
            return Shortage(f"{who}killed by the kernel: the machine is out of memory", hint, memory_limit)
        if by_child:
            return Shortage(memory_limit=memory_limit)
        # the kernel raises the soft limit by a second with each SIGXCPU; at the hard one it kills
        at_soft = status.signal == signal.SIGXCPU
        if limits.cpu is not None and (at_soft or oom.cpu_seconds(pid) >= limits.cpu - 1):
            reason = f"killed by the kernel: it has used its {limits.cpu - at_soft} s of CPU time (RLIMIT_CPU)"
            return Shortage(reason, "raise ulimit -t of the shell that starts the daemon", memory_limit)
        return Shortage(memory_limit=memory_limit, certain=now.group >= 0 or now.machine >= 0)

"""Logger: one pipe and the process at its other end. Reads without blocking; knows no file and no epoll."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Literal

from pyworker.logger.lines import Lines, Source
from pyworker.protocol.inherited import FdName
from pyworker.unix import process

PIPE_SIZE = 256 * 1024  # of memory between a printing worker and us, where the system grants it
OUTPUT_OF = {"pid": ("out", "err"), "tpid": ("tout", "terr")}
_PID_KIND = {output: pid for pid, outputs in OUTPUT_OF.items() for output in outputs}


class Pipe:
    """The read end of a worker's or a template's stdout or stderr. Owns its fd."""

    def __init__(self, name: FdName, fd: int, now: float) -> None:
        self.name = name
        self.fd = fd
        self.born = now  # or last tried
        self.no_room = False  # in the epoll, the last time
        self.forgotten = False  # to be closed when what is in it now has been read
        self.holding_since: float | None = None
        slot = name.numbers[1] if len(name.numbers) == 3 else 0
        stream: Literal["out", "err"] = "out" if name.kind in ("out", "tout") else "err"
        self.lines = Lines(Source(name.app, slot, stream))
        self.pid_name = (_PID_KIND[name.kind], name.app, name.numbers)
        os.set_blocking(fd, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        found = os.fstat(fd)
        self.inode = (found.st_dev, found.st_ino)

    def read(self, most: int) -> bytes | None:
        """Return a chunk of so many bytes at most, b"" at the end, None when there is nothing now."""
        try:
            return os.read(self.fd, most)
        except BlockingIOError:
            return None
        except OSError:
            return b""  # nothing that can be read: as good as the end

    @property
    def full_name(self) -> str:
        return ".".join((self.name.kind, self.name.app, *map(str, self.name.numbers)))


class Life:
    """A worker's or a template's pidfd; the pid is remembered, for the kernel forgets it. Owns its fd."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pid = process.pidfd_pid(fd)
        self._others: dict[int, int] = {}  # who has left its group for another one in its session: pid -> pidfd

    def note_others(self, pids: set[int]) -> None:
        """Hold these of its session; while it lives, for later its number may be another's."""
        for pid in pids - self._others.keys():
            with contextlib.suppress(OSError):  # gone, or no descriptor is left
                self._others[pid] = os.pidfd_open(pid)
                if os.getsid(pid) != self.pid:
                    os.close(self._others.pop(pid))

    @property
    def has_others(self) -> bool:
        return any(not process.is_gone(pidfd) for pidfd in self._others.values())

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Signal it if it still runs; with `group` also what it started (it leads a process group of its own) and has left."""
        if group:
            process.kill_group_of(self.fd, signum)
            for pidfd in self._others.values():
                with contextlib.suppress(OSError):
                    process.send_signal(pidfd, signum)
        if self.pid and not process.is_gone(self.fd):
            with contextlib.suppress(ProcessLookupError):  # reaped this moment
                if group and os.getpgid(self.pid) == self.pid:
                    process.kill_group(self.pid, signum)
            with contextlib.suppress(PermissionError):  # it has become another user's, as sudo does
                process.send_signal(self.fd, signum)

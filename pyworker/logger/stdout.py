"""Logger: stdout instead of a file, for a pyworker in the foreground. Whoever reads it keeps the log.

A reader that is slow slows the apps that print, as it would without us; one that is gone costs the lines and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Callable

from pyworker.protocol.logs import LogsSpec

FD = 1


class Stdout:
    """What PatientFile is, for the stdout that was inherited. `wait` returns when its reader takes something again."""

    unsaid = 0  # nothing is mentioned here

    def __init__(self, spec: LogsSpec, app: str, wait: Callable[[], None]) -> None:
        self.spec = spec
        self.app = app
        self._wait = wait
        self.lost = 0  # lines, since the logger started
        self.error = ""  # why lines are lost now
        self._torn = False  # the disk was full in the middle of a record

    def write(self, records: bytes, now: float, stamp: str) -> None:
        """Write it all, waiting for the reader where it must."""
        view, done = memoryview(records), 0
        try:
            is_file = stat.S_ISREG(os.fstat(FD).st_mode)
            if self._torn:
                os.write(FD, b"\n")
                self._torn = False
            while done < len(records):
                if is_file:
                    done += os.write(FD, view[done:])
                    continue
                self._wait()
                most = done + select.PIPE_BUF  # for so much there is room, if there is any
                # others write here, too: between lines, where that can be
                end = records.rfind(b"\n", done, most) + 1 or most
                with contextlib.suppress(BlockingIOError):  # others may have made it non-blocking, and filled it
                    done += os.write(FD, view[done:end])
        except OSError as error:
            self.error = error.strerror or str(error)
            self.lost += records.count(b"\n", done)
            self._torn = self._torn or (done > 0 and records[done - 1] != ord("\n"))
            return
        self.error = ""

    def missed(self, count: int, why: str) -> None:
        """Count lines that never came as far as this."""
        self.lost += count

    def owe(self, count: int, why: str) -> None:
        """Lines that were counted before are mentioned nowhere."""

    def close(self) -> None:
        """Stdout stays open: the next logger goes on with it."""

"""Logger: stdout instead of a file, for a pyworker in the foreground. Whoever reads it keeps the log.

A reader that is slow slows the apps that print, as it would without us; one that is gone costs the lines and nothing else.
"""

from __future__ import annotations

import os
import select

from pyworker.protocol.logs import LogsSpec

_FD = 1


class Stdout:
    """What LogFile is, for the stdout that was inherited."""

    def __init__(self, spec: LogsSpec, app: str) -> None:
        self.spec = spec
        self.app = app
        self.lost = 0  # lines, since the logger started
        self.written = 0  # bytes
        self.error = ""  # why lines are lost now

    def write(self, records: bytes, now: float, stamp: str) -> None:
        """Write it all, waiting for the reader where it must."""
        view = memoryview(records)
        while view:
            try:
                view = view[os.write(_FD, view) :]
            except BlockingIOError:  # somebody made the shared pipe non-blocking
                poll = select.poll()
                poll.register(_FD, select.POLLOUT)
                poll.poll()
            except OSError as error:
                self.error = error.strerror or str(error)
                self.lost += bytes(view).count(b"\n")
                return
        self.written += len(records)
        self.error = ""

    def missed(self, count: int, why: str) -> None:
        """Count lines that never came as far as this."""
        self.lost += count

    def close(self) -> None:
        """Stdout stays open: the next logger goes on with it."""

"""Words on stderr, which may be a log on a full disk, or a pipe that nobody reads: no reason for a process to fail."""

from __future__ import annotations

import contextlib
import os
import sys
import time


def write(text: str) -> None:
    """Write it, at once."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def trace(error: BaseException) -> None:
    """Write its traceback. By the interpreter itself: `traceback` costs each start 6 ms, and an import later may find no descriptor."""
    with contextlib.suppress(OSError, ValueError):
        sys.__excepthook__(type(error), error, error.__traceback__)
        sys.stderr.flush()


def say(who: str, text: str) -> None:
    """Write a line with the time, and which process says it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write(f"{stamp} {who}[{os.getpid()}]: {text}\n")

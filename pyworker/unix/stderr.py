"""Words on stderr, which may be a log on a full disk, a pipe that nobody reads, or a terminal that Ctrl-S has stopped: no
reason for a process to fail, or to wait. Whoever writes here has others to look after.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from pyworker.unix.ready import ready

_PIECE = select.PIPE_BUF // 4  # characters for which a pipe that takes anything has room
_dropped = 0  # texts, whole or in part, since one was written


def write(text: str) -> None:
    """Write it, at once; what is not taken at once is dropped, and counted with the next words that are."""
    global _dropped
    if _dropped and _is_taken():
        text = f"messages that nobody took, dropped before this: {_dropped}\n{text}"
        _dropped = 0
    for start in range(0, len(text), _PIECE):
        if not _is_taken():
            _dropped += 1
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text[start : start + _PIECE])
            sys.stderr.flush()


def _is_taken() -> bool:
    return ready(2, select.POLLOUT) != 0


def trace(error: BaseException) -> None:
    """Write its traceback. By the interpreter itself: `traceback` costs each start 6 ms, and an import later may find no descriptor."""
    if not _is_taken():
        return
    with contextlib.suppress(OSError, ValueError):
        sys.__excepthook__(type(error), error, error.__traceback__)
        sys.stderr.flush()


def say(who: str, text: str) -> None:
    """Write a line with the time, and which process says it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write(f"{stamp} {who}[{os.getpid()}]: {text}\n")

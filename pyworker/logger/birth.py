"""Logger: what it does before its loop. Opens nothing, reads no pipe of an app."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable

from pyworker.logger.say import say
from pyworker.unix import fds


def become_logger() -> None:
    """Take all fds we may have; signals that are meant for others do not end us (the pipes do)."""
    fds.raise_nofile()
    os.umask(0o077)
    os.chdir("/")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def wait_for_predecessor(lifeline: int, seconds: float, wait: Callable[[float], None] = time.sleep) -> None:
    """Wait until no other logger reads these pipes: two readers would tear lines. After `seconds` go on anyway."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            fcntl.flock(lifeline, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait(0.01)
        else:
            _take_words(lifeline)
            return
    say(f"another logger has not ended within {seconds:g} s; going on beside it")


def _take_words(lifeline: int) -> None:
    """Read what was meant for a logger that has gone before it could: we would leave over it once our guardian dies."""
    with contextlib.suppress(BlockingIOError):
        while os.read(lifeline, 64):
            pass

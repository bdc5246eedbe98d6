"""What a test that has failed has left running: its own children, and the orphans that came to it as their subreaper."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """Have none run on that was not there before."""
    before = set(children(os.getpid()))
    try:
        yield
    finally:
        while left := set(children(os.getpid())) - before:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

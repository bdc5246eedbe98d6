"""Which descriptors this process has."""

from __future__ import annotations

import contextlib
import gc
import os


def open_fds() -> set[int]:
    """Return all that are open, after what earlier tests have left to the garbage collector: it closes that at any moment."""
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            os.fstat(int(name))
            found.add(int(name))
    return found

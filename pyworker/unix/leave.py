"""The end of a process whose objects nobody needs to see go."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process and leave its objects to the operating system: Python would take them apart one by one, some 10 ms.

    For processes that have neither `atexit` nor threads to wait for, and in no buffer anything but what is for stdout and stderr.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

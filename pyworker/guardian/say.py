"""Guardian: its own words, for logs/pyworker.log (stderr)."""

from __future__ import annotations

import contextlib
import os
import sys
import time


def say(text: str) -> None:
    """Write one line to the program's own log; a full disk is no reason to fail."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{stamp} guardian[{os.getpid()}]: {text}\n")
        sys.stderr.flush()

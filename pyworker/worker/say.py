"""Worker, template, launcher: one line to stderr, which is the app's log."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Write a line, at once. A log that cannot be written to is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"pyworker: {text}\n")
        sys.stderr.flush()


def flush() -> None:
    """Write out what stdout and stderr have buffered: a fork would write it twice, an exec never."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

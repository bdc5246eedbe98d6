"""Worker, template, launcher: one line to stderr, which is the app's log."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Write a line, at once."""
    write(f"pyworker: {text}\n")


def write(text: str) -> None:
    """Write to stderr, at once. One that cannot be written to is no reason to fail, whatever the app has put there."""
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
        sys.stderr.flush()


def flush() -> None:
    """Write out what stdout and stderr have buffered: a fork would write it twice, an exec never."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # they may be anything that the app has put there, or nothing
            stream.flush()

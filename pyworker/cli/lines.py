"""CLI: the lines of a file from its end: a log, the events. Lines are bytes without their newline."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

_BLOCK = 256 * 1024
LONGEST = 1024 * 1024  # a line that is longer (not one of ours) is cut into such pieces


def open_file(path: str) -> int | None:
    """Return an fd; None when there is nothing, or a folder: Docker makes one of a file to be mounted that is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def last_first(path: str) -> Iterator[bytes]:
    """Yield the lines of a file, the last one first; none when it is not there."""
    if (fd := open_file(path)) is not None:
        try:
            yield from backwards(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)


def backwards(fd: int, at: int) -> Iterator[bytes]:
    """Yield the lines that end before `at`, the last one first."""
    rest = b""
    first = True
    while at > 0:
        size = min(_BLOCK, at)
        at -= size
        rest, *lines = (os.pread(fd, size, at) + rest).split(b"\n")
        if first and lines and not lines[-1]:
            lines.pop()  # after the last newline
        first = False
        yield from reversed(lines)
        if len(rest) > LONGEST:
            yield rest
            rest = b""
    if rest:
        yield rest

"""The command line that `ps` shows for this process, written over its own arguments."""

from __future__ import annotations

import ctypes
import functools

ROOM = " " * 60  # a last argument that only makes room for a title


def set_title(text: str) -> None:
    """Show `text` in ps and top, cut to the room that the arguments of the exec had. Never fails: it is cosmetics.

    Only the arguments' bytes are written, never the environment behind them, so that /proc/PID/environ stays true.
    """
    area = _arguments()
    if area:
        area[:] = text.encode()[: len(area) - 1].ljust(len(area), b"\0")


@functools.cache  # a fork has them at the same place
def _arguments() -> memoryview:
    """Return the memory that the arguments are in; none of it when that cannot be found."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: fields 48 and 49 of proc(5)
    except (OSError, ValueError, IndexError):
        return memoryview(b"")
    if start <= 0 or end < start + 2:
        return memoryview(b"")
    return memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")

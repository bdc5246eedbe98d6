"""The command line that `ps` shows for this process, written over its own arguments."""

from __future__ import annotations

import ctypes


def set_title(text: str) -> None:
    """Show `text` in ps and top, cut to the room that the arguments of the exec had. Never fails: it is cosmetics.

    Only the arguments' bytes are written, never the environment behind them, so that /proc/PID/environ stays true.
    """
    try:
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: fields 48 and 49 of proc(5)
    except (OSError, ValueError, IndexError):
        return
    room = end - start
    if start <= 0 or room < 2:
        return
    ctypes.memmove(start, text.encode()[: room - 1].ljust(room, b"\0"), room)

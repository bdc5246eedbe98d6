"""The stacks of a worker's threads: faulthandler's text, and what it says. Pure.

faulthandler writes them in C, from a signal handler, so that a worker that is stuck answers as one that is not.
The text comes out of the worker and is untrusted: what is no line of a dump is skipped.
"""

from __future__ import annotations

import re

from pyworker.record import record

MAX_TEXT = 256 * 1024  # bytes of a dump that are read
_THREAD = re.compile(r"(Current thread|Thread) (0x[0-9a-f]+)(?: \[(.{0,64}?)\])? \(most recent call first\):\Z")
_NOT_THE_APPS = re.compile(r"<|/proc/self/fd/|.*/lib(64)?/python3\.\d+/(?!(site|dist)-packages/)")  # Python's, or ours
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)\Z')


@record
class Frame:
    """One call."""

    file: str
    line: int  # 0 = not known
    function: str


@record
class ThreadStack:
    """The calls of one thread, the outermost first, as in a traceback."""

    thread: str  # as the system numbers it: "0x00007f6e…"
    name: str  # "" before Python 3.14
    current: bool  # it held the interpreter when the dump was made
    frames: tuple[Frame, ...]


def parse(text: str) -> tuple[ThreadStack, ...]:
    """Return the threads of a dump, in its order."""
    found: list[tuple[str, str, bool, list[Frame]]] = []
    inside = False
    for line in text.splitlines():
        head = _THREAD.match(line)
        if head is not None:
            found.append((head[2], head[3] or "", head[1] == "Current thread", []))
            inside = True
            continue
        frame = _FRAME.match(line)
        if frame is not None and inside:
            number = int(frame[2]) if frame[2].isdecimal() else 0
            found[-1][3].append(Frame(frame[1], number, frame[3]))
        elif line.strip() not in ("", "...", "<no Python frame>", "<tstate is freed>"):
            inside = False  # Python 3.14 adds the C stack: not ours to explain
    return tuple(ThreadStack(t, n, c, tuple(reversed(frames))) for t, n, c, frames in found)


def whereabouts(threads: tuple[ThreadStack, ...], most: int = 3) -> str:
    """Return where threads are in code of the app's: "/srv/shop.py:12 in view"; "" where none is in any."""
    found: dict[str, None] = {}
    for thread in threads:
        frame = next((f for f in reversed(thread.frames) if not _NOT_THE_APPS.match(f.file)), None)
        if frame is not None:
            found[f"{frame.file}:{frame.line} in {frame.function}"] = None
    return ", ".join(sorted(found, key=lambda place: "-packages/" in place)[:most])

"""Worker: where the tasks of its loop wait, which the stacks of its threads do not show. Written by the loop, so not by a blocked one.

Of a task that waits Python itself tells the outermost coroutine only: the others are found by what each of them awaits.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
from types import FrameType
from typing import Any

from pyworker.protocol.stacks import Frame, TaskStack, write_tasks

_MOST = 100  # different stacks
_DEEPEST = 200  # frames of one
_STEPS = ("async_generator_asend", "async_generator_athrow")  # of an async generator, which they do not name
_LIFESPAN = "pyworker/worker/engines/lifespan.py"


def write(stacks_fd: int) -> None:
    """Write the stacks of the running loop's tasks into the memfd, in one piece: those of an earlier wish may come between others'."""
    text = write_tasks(os.getpid(), stacks(asyncio.all_tasks()))
    try:
        os.write(stacks_fd, text.encode("utf-8", "backslashreplace"))
    except OSError:
        return  # no memory: the threads' are there


def stacks(tasks: set[asyncio.Task[Any]]) -> list[TaskStack]:
    """Return the stacks of tasks, those that are alike once, the most frequent first."""
    found: dict[tuple[Frame, ...], list[str]] = {}
    for task in tasks:
        frames = _frames(task.get_coro())
        if not any(_waits_for_the_lifespan(frame) for frame in frames):
            found.setdefault(frames, []).append(task.get_name())
    often = sorted(found.items(), key=lambda item: -len(item[1]))
    return [TaskStack(min(names), len(names), frames) for frames, names in often[:_MOST]]


def _waits_for_the_lifespan(frame: Frame) -> bool:
    """Whether it is the app's, which waits for the end all the time, or ours, which waits for the app's: not what it does meanwhile."""
    return frame.file.endswith(_LIFESPAN) and frame.function != "_run"


def _frames(awaited: Any) -> tuple[Frame, ...]:
    found: list[Frame] = []
    while awaited is not None and len(found) < _DEEPEST:
        if type(awaited).__name__ in _STEPS:
            awaited = next(filter(inspect.isasyncgen, gc.get_referents(awaited)), None)
        kind = next((k for k in ("cr", "gi", "ag") if hasattr(awaited, f"{k}_frame")), "")
        frame: FrameType | None = getattr(awaited, f"{kind}_frame", None)
        if frame is not None:
            found.append(Frame(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name))
        awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
    return tuple(found)

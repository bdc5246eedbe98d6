"""The stacks of a worker's threads and tasks: faulthandler's text, and what it says. Pure.

faulthandler writes those of threads in C, from a signal handler, so that a worker that is stuck answers as one that is not.
Those of tasks are written beside them by the loop (worker/tasks.py), in the same way, if it runs. The text comes out of the
worker and is untrusted: what is no line of a dump is skipped, and no text takes long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pyworker.record import record

MAX_TEXT = 256 * 1024  # bytes of a dump that are read
_THREAD = re.compile(r"(Current thread|Thread) (0x[0-9a-f]+)(?: \[(.{0,64}?)\])? \(most recent call first\):\Z")
_TASK = re.compile(r"Task \[(.{0,64})\] times (\d{1,9}) \(most recent call first\):\Z")
_TASKS, _END = re.compile(r"Tasks of (\d{1,10})\Z"), "End of tasks"
_NOT_THE_APPS = re.compile(  # Python's, or ours
    r"<|/proc/self/fd/|.*/pyworker/(cluster|template|worker)/|.*/lib(64)?/python3\.\d+/(?!(site|dist)-packages/)"
)
_NO_FRAMES = frozenset({"", "...", "<no Python frame>", "<tstate is freed>", "Garbage-collecting"})  # more may follow
_FRAME = re.compile(r'  File "(.*)", line (\d{1,9}|\?\?\?) in (.*)\Z')


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


@record
class TaskStack:
    """What a task waits in, the outermost call first."""

    name: str
    count: int  # of tasks that wait in the same
    frames: tuple[Frame, ...]


def parse(text: str) -> tuple[ThreadStack, ...]:
    """Return the threads of a dump, in its order."""
    stacks = _stacks(_parts(text)[0], _THREAD)
    return tuple(ThreadStack(head[2], head[3] or "", head[1] == "Current thread", frames) for head, frames in stacks)


def parse_tasks(text: str, pid: int) -> tuple[TaskStack, ...]:
    """Return the tasks that a process has added to a dump."""
    stacks = _stacks(_parts(text)[1].get(str(pid), []), _TASK)
    return tuple(TaskStack(head[1], int(head[2]), frames) for head, frames in stacks)


def has_tasks(text: str, pid: int) -> bool:
    """Whether a process has added its tasks to a dump, all of them."""
    begin = text.find(f"Tasks of {pid}\n")
    return begin >= 0 and text.find(_END, begin) >= 0


def write_tasks(pid: int, tasks: Iterable[TaskStack]) -> str:
    """Return the text that `parse_tasks` reads; of very many the first ones only."""
    found = [f"Tasks of {pid}\n"]
    room = MAX_TEXT // 2
    for task in tasks:
        name = "".join(c if c.isprintable() else "?" for c in task.name)[:64]
        calls = [f'  File "{frame.file}", line {frame.line} in {frame.function}\n' for frame in reversed(task.frames)]
        text = f"Task [{name}] times {task.count} (most recent call first):\n" + "".join(calls)
        room -= len(text.encode(errors="backslashreplace"))
        if room < 0:
            break
        found.append(text)
    return "".join([*found, f"{_END}\n"])


def _parts(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the lines of threads, and those of tasks by pid: what another worker was asked before may have come late."""
    threads: list[str] = []
    tasks: dict[str, list[str]] = {}
    lines = threads
    for line in text.splitlines():
        if (head := _TASKS.match(line)) is not None:
            lines = tasks[head[1]] = []
        elif line == _END:
            lines = threads
        else:
            lines.append(line)
    return threads, tasks


def _stacks(lines: list[str], heads: re.Pattern[str]) -> list[tuple[re.Match[str], tuple[Frame, ...]]]:
    found: list[tuple[re.Match[str], list[Frame]]] = []
    inside = False
    for line in lines:
        head = heads.match(line)
        if head is not None:
            found.append((head, []))
            inside = True
            continue
        frame = _FRAME.match(line)
        if frame is not None and inside:
            number = int(frame[2]) if frame[2].isdecimal() else 0
            found[-1][1].append(Frame(frame[1], number, frame[3]))
        elif line.strip() not in _NO_FRAMES:
            inside = False  # Python 3.14 adds the C stack: not ours to explain
    return [(head, tuple(reversed(frames))) for head, frames in found]


def _held_up_at_end(stack: ThreadStack | TaskStack) -> Frame | None:
    callers = zip(stack.frames, stack.frames[1:], strict=False)
    return next((held for ours, held in callers if ours.file.endswith("/pyworker/worker/ending.py")), None)


def whereabouts(stacks: Iterable[ThreadStack | TaskStack]) -> str:
    """Return where threads and tasks are in code of the app's, at most three: "/srv/shop.py:12 in view"; "" where none is in any.

    A worker at its end may be held up in the library only: by a process that the app has made with multiprocessing.
    """
    found: dict[str, None] = {}
    for stack in stacks:
        of_app = (f for f in reversed(stack.frames) if not _NOT_THE_APPS.match(f.file))
        frame = next(of_app, None) or _held_up_at_end(stack)
        if frame is not None:
            found[f"{frame.file}:{frame.line} in {frame.function}"] = None
    return ", ".join(sorted(found, key=lambda place: "-packages/" in place)[:3])

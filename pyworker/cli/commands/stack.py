"""CLI: `pyworker stack`: the live Python stacks of workers, which go on meanwhile. Stuck ones answer, too."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from pyworker.cli import render
from pyworker.cli.asking import need_names
from pyworker.cli.client import ask
from pyworker.cli.options import Settings, common
from pyworker.cli.render import Look, line, paint
from pyworker.errors import Exit

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_OURS = (_PACKAGE + os.sep, "/proc/self/fd/", "<frozen ")  # pyworker's runtime, and what runs it
_WAITING = {
    ("selectors.py", "select"), ("base_events.py", "run_until_complete"), ("runners.py", "run"), ("runners.py", "_run"),
}  # fmt: skip
_BEGINS = frozenset({("threading.py", "_bootstrap"), ("threading.py", "_bootstrap_inner"), ("threading.py", "run")})


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@common
def cmd(settings: Settings, names: tuple[str, ...]) -> int:
    """Show where a worker's threads are, and what its tasks (asyncio) wait in, right now, without stopping it. It may be stuck.

    \b
    pyworker stack api.2              one worker
    pyworker stack api                all workers of api
    pyworker stack api -v             with the frames of pyworker's own
    """
    need_names(settings, "stack", names)
    body = ask(settings.home, {"type": "stack", "selectors": list(names)}, settings.timeout)
    workers: list[dict[str, Any]] = body.get("workers") or []
    how = render.look(sys.stdout, settings.color)
    if settings.json:
        render.out_json(body, how, indent=2 if how.tty else None)
    else:
        shown = ["\n".join(_worker(worker, how, everything=settings.verbose)) for worker in workers]
        render.write(sys.stdout, "\n\n".join(shown) + "\n", how)
    return int(Exit.FAILED) if workers and all(worker.get("error") for worker in workers) else 0


def _worker(worker: dict[str, Any], how: Look, *, everything: bool) -> list[str]:
    name = paint(line(f"{worker.get('app')}.{worker.get('worker')}"), "bold", how)
    lines = [f"{name}  pid {worker.get('pid') or '?'}, {line(worker.get('state') or '?')}"]
    if worker.get("error"):
        lines.append(paint(f"  no stack: {line(worker['error'])}", "red", how))
        if worker.get("hint"):
            lines.append(f"  = help: {line(worker['hint'])}")
        return lines
    for thread in worker.get("threads") or ():
        lines += _thread(thread, how, everything=everything)
    for task in worker.get("tasks") or ():
        lines += _task(task, how, everything=everything)
    return lines


def _task(task: dict[str, Any], how: Look, *, everything: bool) -> list[str]:
    """Where a task waits; nothing of one that is pyworker's own."""
    frames: list[dict[str, Any]] = task.get("frames") or []
    shown = [f for f in frames if everything or not str(f.get("file", "")).startswith(_OURS)]
    if not shown:
        return []
    more = int(task.get("count") or 1) - 1
    alike = f" and {more} more like it" if more else ""
    lines = [f"  task {line(task.get('name') or '')}{alike}, waits (most recent call last):"]
    for frame in shown:
        lines += _frame(frame, how)
    return lines


def _thread(thread: dict[str, Any], how: Look, *, everything: bool) -> list[str]:
    frames: list[dict[str, Any]] = thread.get("frames") or []
    label = f"thread {line(thread.get('thread') or '')}"
    if thread.get("name"):
        label += f" {line(thread['name'])}"
    notes = ["most recent call last"]
    if frames and _place(frames[-1]) in _WAITING:
        notes.insert(0, "its event loop waits for something to do")
    lines = [f"  {label} ({'; '.join(notes)}):"]
    ours = [str(frame.get("file", "")).startswith(_OURS) for frame in frames]
    if any(ours):  # how it began says nothing: an idle thread of ours would seem to be there
        ours = [is_ours or _place(frame) in _BEGINS for is_ours, frame in zip(ours, frames, strict=True)]
    for is_ours, frame in zip(ours, frames, strict=True):
        if is_ours and not everything:
            continue
        lines += _frame(frame, how)
    if not frames:
        lines.append("    no Python code runs in it")
    elif all(ours) and not everything:
        lines.append("    only pyworker's own code (-v shows it)")
    return lines


def _frame(frame: dict[str, Any], how: Look) -> list[str]:
    where = f'File "{render.home(str(frame.get("file", "?")))}", line {frame.get("line")}, in {frame.get("function")}'
    source = _source(frame)
    return ["    " + line(where), *(["      " + paint(line(source), "dim", how)] if source else [])]


def _place(frame: dict[str, Any]) -> tuple[str, str]:
    return str(frame.get("file", "")).rpartition("/")[2], str(frame.get("function", ""))


def _source(frame: dict[str, Any]) -> str:
    """The line as the file has it now; nothing where it cannot be read."""
    import linecache

    file = str(frame.get("file", ""))
    # what a worker says is a file may be a pipe, and who reads that waits for its writer
    return linecache.getline(file, int(frame.get("line") or 0)).strip() if os.path.isfile(file) else ""

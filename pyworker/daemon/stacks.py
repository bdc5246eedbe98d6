"""Daemon: the live Python stacks of a worker, taken from outside while it goes on.

A signal has faulthandler write them, in C, into a memfd that all workers of the app were born with (stacks.APP in the
store); one worker of an app at a time. Another signal has its loop add where its tasks wait. A signal is sent only to a
process that handles it (SigCgt in /proc): any other would die of it. And one after the other: faulthandler gives up a dump
that begins in one thread while another thread still writes one.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pyworker.daemon.app import App
from pyworker.daemon.handles import WorkerHandle
from pyworker.protocol.inherited import fd_name
from pyworker.protocol.stacks import MAX_TEXT, has_tasks
from pyworker.protocol.worker import DUMP_SIGNAL, STACKS_SIGNAL, TASKS_SIGNAL
from pyworker.unix import process, signals

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain

PATIENCE = 2.0  # seconds for the signal to be taken and the dump to be written
LOOP_PATIENCE = 0.5  # ... and for the loop, which may be blocked: then it is what the threads do that counts
_LOOK_EVERY = 0.02

Then = Callable[[str, str, str], None]  # text, or what went wrong and what to do about it


class _Job(NamedTuple):
    app: App
    handle: WorkerHandle
    then: Then
    dumps: tuple[int, ...]  # the signals for them; the last one's is the memfd's


def _or_none(step: Callable[..., None]) -> Callable[..., None]:
    """Say that there is no dump if anything goes wrong: a worker that is to be killed is asked first where it is."""

    @functools.wraps(step)
    def tried(stacks: Stacks, queue: deque[_Job], *args: Any) -> None:
        job = queue[0]
        try:
            step(stacks, queue, *args)
        except Exception:
            if queue and queue[0] is job:
                stacks._end(queue, "", "it could not be asked", "try again in a moment")
            raise

    return tried


class Stacks:
    """Takes dumps; nothing is kept."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._queues: dict[str, deque[_Job]] = {}  # the first one is being done

    def take(self, app: App, handle: WorkerHandle, then: Then, *, to_log: bool = False) -> None:
        """Call `then` with the dump of one worker, or with the reason why there is none. `to_log`: its log gets one, too."""
        queue = self._queues.setdefault(app.name, deque())
        queue.append(_Job(app, handle, then, (STACKS_SIGNAL, DUMP_SIGNAL) if to_log else (DUMP_SIGNAL,)))
        if len(queue) == 1:
            self._begin(queue)

    @_or_none
    def _begin(self, queue: deque[_Job]) -> None:
        app, handle, _, dumps = queue[0]
        fd = self._memfd(app)
        if not handle.is_alive or not handle.pid or handle.ended_at is not None:
            self._end(queue, "", "it is not running now", f"pyworker ps -w {app.name}")
        elif fd is None or not signals.is_handled(handle.pid, DUMP_SIGNAL):
            is_command = app.generations[handle.id.generation].config.command
            why = "it is a command: there is no Python of ours in it" if is_command else "it has not begun to run yet"
            hint = f"from outside: py-spy dump --pid {handle.pid} (Python), gdb -p {handle.pid} (the rest)"
            self._end(queue, "", why, hint if is_command else "try again in a moment")
        else:
            os.ftruncate(fd, 0)
            self._dump(queue, dumps)

    def _memfd(self, app: App) -> int | None:
        """Asked for anew after each wait: a delete closes it, and the number may be another file's by then."""
        return self._brain.store.get(fd_name("stacks", app.name))

    def _dump(self, queue: deque[_Job], dumps: tuple[int, ...]) -> None:
        app, handle, _, _ = queue[0]
        before = signals.blocked_by(handle.pid, dumps[0])
        self._brain.workers.signal(app, handle, dumps[0])
        self._look(queue, dumps, before, self._brain.loop.clock() + PATIENCE)

    @_or_none
    def _look(self, queue: deque[_Job], dumps: tuple[int, ...], before: frozenset[int], until: float) -> None:
        """Wait until the signal is neither waiting nor being handled: the dump is then complete."""
        app, handle, _, _ = queue[0]
        is_over = not handle.is_alive or handle.ended_at is not None
        is_done = is_over or not (
            signals.is_waiting(handle.pid, dumps[0]) or signals.blocked_by(handle.pid, dumps[0]) - before
        )
        if not is_done and self._brain.loop.clock() < until:
            self._brain.loop.call_later(_LOOK_EVERY, lambda: self._look(queue, dumps, before, until))
            return
        if dumps[1:] and not is_over:
            self._dump(queue, dumps[1:])
            return
        if self._text(app) and handle.ended_at is None and signals.is_handled(handle.pid, TASKS_SIGNAL):
            self._brain.workers.signal(app, handle, TASKS_SIGNAL)
            self._add_tasks(queue, self._brain.loop.clock() + LOOP_PATIENCE)
        else:
            self._take_text(queue)

    @_or_none
    def _add_tasks(self, queue: deque[_Job], until: float) -> None:
        """Wait until the loop has written what its tasks wait in."""
        app, handle, _, _ = queue[0]
        is_done = handle.ended_at is not None or has_tasks(self._text(app), handle.pid)
        if is_done or self._brain.loop.clock() >= until:
            self._take_text(queue)
        else:
            self._brain.loop.call_later(_LOOK_EVERY, lambda: self._add_tasks(queue, until))

    def _take_text(self, queue: deque[_Job]) -> None:
        app, handle, _, _ = queue[0]
        text = self._text(app)
        if (fd := self._memfd(app)) is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
        if text:
            self._end(queue, text, "", "")
        elif handle.ended_at is not None:
            self._end(queue, "", "it ended just now", f"pyworker describe {app.name}")
        else:
            state = process.state(handle.pid)
            words = {"T": "it is stopped (SIGSTOP)", "t": "a debugger holds it", "D": "it waits in the kernel (disk?)"}
            why = words.get(state, "it does not take the signal") + f": no answer within {PATIENCE:g} s"
            self._end(queue, "", why, f"kill -CONT {handle.pid}" if state == "T" else f"cat /proc/{handle.pid}/wchan")

    def _end(self, queue: deque[_Job], text: str, why: str, hint: str) -> None:
        job = queue[0]
        try:
            job.then(text, why, hint)
        finally:
            queue.popleft()
            if queue:
                self._begin(queue)

    def _text(self, app: App) -> str:
        fd = self._memfd(app)
        return "" if fd is None else os.pread(fd, MAX_TEXT, 0).decode("utf-8", "backslashreplace")

"""Events of the library: callbacks, and the same events as an async iterator."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, NamedTuple, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])


class Event(NamedTuple):
    """One event: its name and what a callback is given."""

    name: str
    args: tuple[Any, ...]


class _Entry:
    __slots__ = ("callback", "fired", "once")

    def __init__(self, callback: Callable[..., Any], once: bool) -> None:
        self.callback = callback
        self.once = once
        self.fired = False


class Emitter:
    """Has events. A callback may be a coroutine function: it then runs as a task of the running loop.

    A callback that raises harms nobody else: asyncio's exception handler is told, or stderr where no loop runs.
    """

    EVENTS: ClassVar[tuple[str, ...]] = ()
    LAST: ClassVar[str] = ""  # the event after which no other comes

    def __init__(self) -> None:
        self._callbacks: dict[str, list[_Entry]] = {}  # changed in one step: threads and signals' handlers do, too
        self._streams: list[weakref.ref[asyncio.Queue[Event | None]]] = []  # each lives as long as its iterator
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False

    @overload
    def on(self, event: str, callback: None = None) -> Callable[[F], F]: ...
    @overload
    def on(self, event: str, callback: F) -> F: ...
    def on(self, event: str, callback: F | None = None) -> Any:
        """Call `callback` at each such event. Without a callback it is a decorator."""
        return self._listen(event, callback, once=False)

    @overload
    def once(self, event: str, callback: None = None) -> Callable[[F], F]: ...
    @overload
    def once(self, event: str, callback: F) -> F: ...
    def once(self, event: str, callback: F | None = None) -> Any:
        """Like `on`, for the next event only."""
        return self._listen(event, callback, once=True)

    def off(self, event: str, callback: Callable[..., Any]) -> None:
        """Forget a callback; one that is not there is no error."""
        self._check(event)
        for entry in tuple(self._callbacks.get(event, ())):
            if entry.callback == callback:
                self._forget(event, entry)

    def listeners(self, event: str) -> int:
        """How many callbacks an event has."""
        self._check(event)
        return len(self._callbacks.get(event, ()))

    def events(self, *names: str) -> AsyncIterator[Event]:
        """Every event from now on (or those named), in order, up to the last one there is."""
        for name in names:
            self._check(name)
        return self._stream(asyncio.Queue(), names)

    def emit(self, event: str, *args: Any) -> bool:
        """Tell everybody; True when there was a callback. For the library itself."""
        found = tuple(self._callbacks.get(event, ()))
        for entry in found:
            if entry.once:
                if entry.fired:  # by an event inside of a callback of this one
                    continue
                entry.fired = True
                self._forget(event, entry)
            self._call(entry.callback, args)
        if self._streams:
            self._put(Event(event, args))
        if event == self.LAST:
            self._ended = True
            self._put(None)
        return bool(found)

    def _put(self, event: Event | None) -> None:
        for reference in list(self._streams):
            if (queue := reference()) is not None:
                queue.put_nowait(event)

    def _stream(self, queue: asyncio.Queue[Event | None], names: tuple[str, ...]) -> AsyncIterator[Event]:
        self._streams.append(weakref.ref(queue, self._streams.remove))
        if self._ended:
            queue.put_nowait(None)
        return _Iterator(queue, frozenset(names))

    def _listen(self, event: str, callback: Callable[..., Any] | None, *, once: bool) -> Any:
        self._check(event)
        if callback is None:

            def decorate(function: F) -> F:
                self._listen(event, function, once=once)
                return function

            return decorate
        entry = _Entry(callback, once)
        self._callbacks.setdefault(event, []).append(entry)
        return callback

    def _forget(self, event: str, entry: _Entry) -> None:
        with contextlib.suppress(ValueError):  # another was faster
            self._callbacks[event].remove(entry)

    def _check(self, event: str) -> None:
        if event not in self.EVENTS:
            raise ValueError(f"there is no event {event!r} here; there are: {', '.join(self.EVENTS)}")

    def _call(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            result = callback(*args)
            if inspect.iscoroutine(result):
                task = asyncio.get_running_loop().create_task(result)
                self._tasks.add(task)
                task.add_done_callback(self._task_done)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the program's own: shown, and the others are told all the same
            let_exit_through(error)
            report(f"an exception in a callback of {type(self).__name__}", error)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report(f"an exception in a callback of {type(self).__name__}", error)


class _Iterator(AsyncIterator[Event]):
    """Not a generator, which is over once somebody has waited for its next one in vain (a time-out)."""

    def __init__(self, queue: asyncio.Queue[Event | None], names: frozenset[str]) -> None:
        self._queue = queue
        self._names = names

    async def __anext__(self) -> Event:
        while (event := await self._queue.get()) is not None:
            if not self._names or event.name in self._names:
                return event
        self._queue.put_nowait(None)  # whoever asks again is told again
        raise StopAsyncIteration


class Bare(AsyncIterator[Any]):
    """Turn `message` events into the messages; one that came with a handle is a tuple (message, handle)."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    async def __anext__(self) -> Any:
        message, handle = (await anext(self._events)).args
        return message if handle is None else (message, handle)


def let_exit_through(error: BaseException) -> None:
    """Raise SystemExit again where it ends the program. In the channel's thread it would end only that, unseen."""
    if isinstance(error, SystemExit):
        if threading.current_thread() is threading.main_thread() or asyncio._get_running_loop() is not None:
            raise error
        error.add_note("sys.exit() in a callback does not end the program here: it runs in the thread of the channel")


def report(what: str, error: BaseException) -> None:
    """Show an exception that nobody waits for."""
    try:
        asyncio.get_running_loop().call_exception_handler({"message": f"pyworker: {what}", "exception": error})
    except RuntimeError:  # no loop runs in this thread
        with contextlib.suppress(Exception):  # closed, or its reader is gone: the channel goes on
            sys.stderr.write(f"pyworker: {what}\n{''.join(traceback.format_exception(error))}")

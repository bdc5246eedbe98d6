"""This process, as its parent's child: `process.send`, `process.on("message")`, like Node's `process` in a forked program.

The channel is the one that NODE_CHANNEL_FD names: made by `child_process.fork` here or in Node, by `cluster`, or by the
daemon for its workers. Importing this module takes the variable out of the environment, so that no grandchild mistakes
the descriptor for its own. A thread reads the channel from the first `on` on; until then messages wait in the kernel.

A callback that was registered while an event loop was running is called in that loop; any other in the thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import socket
import stat
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

from pyworker.cluster import given, handles
from pyworker.cluster.emitter import Bare, Emitter, Event, report
from pyworker.cluster.ipc import ChannelClosedError, Receiver, ThreadChannel, settling
from pyworker.protocol import node

_MAX_WAITING = 1000  # messages kept for a program that has not said on("message") yet
_PATIENCE = 5.0  # seconds that a program which has ended waits for a parent that takes nothing

Internal = Callable[[dict[str, Any], "node.Handle | None"], None]


class _Process(Emitter, Receiver):
    EVENTS: ClassVar[tuple[str, ...]] = ("message", "disconnect", "error")
    LAST: ClassVar[str] = "disconnect"

    def __init__(self) -> None:
        super().__init__()
        self.channel: ThreadChannel | None = None
        self.why = (
            "this process has no channel: it was not started by fork(), nor is it a worker of pyworker "
            "(which it is not yet while its app is imported: send at startup)"
        )
        self.internal: Internal | None = None
        self.at_end: Callable[[], None] | None = None
        self.last_words = math.inf  # seconds that the end of the program may take for what is still to be sent
        self._waiting: deque[tuple[Any, handles.Received | None]] = deque()  # nobody has said on("message") yet
        self._full_told = False
        self._handing_out = False  # of those: whoever listens first does, and what comes meanwhile waits behind them
        self._is_started = False  # or being started
        self._make_locks()

    def _make_locks(self) -> None:
        # the handler of a signal may come while one is held
        self._messages = threading.RLock()
        self._ending = threading.RLock()  # an end is told to everybody once, however late they ask

    def attach(self, fd: int, *, files: bool, last_words: float = math.inf, max_line: int = node.MAX_LINE) -> None:
        self.last_words = last_words
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        self.channel = ThreadChannel(sock, self, files=files, max_line=max_line)

    def start(self) -> None:
        """Read the channel from now on."""
        # no lock, and nobody waits for the one who starts it: a signal's handler may come in the middle and may raise, or a green
        # thread that was given way to
        if self.channel is None or self._is_started:
            return
        self._is_started = True
        try:
            self.channel.start()
        except BaseException:
            self._is_started = self.channel.started
            raise

    def forked(self) -> None:
        """In a process that this one forked: the channel is not its."""
        self._make_locks()  # another thread may have had one
        while self._waiting:  # nor is what came on it
            handles.close(self._waiting.popleft()[1])
        if self.channel is not None:
            self.channel.forked()
            self.channel = None
            self.why = "this process was forked off by the one that has the channel"

    def need(self) -> ThreadChannel:
        if self.channel is None:
            raise ChannelClosedError(self.why)
        return self.channel

    # ---- Emitter, from two threads -------------------------------------------------------------------
    def _listen(self, event: str, callback: Callable[..., Any] | None, *, once: bool) -> Any:
        if callback is None:
            return super()._listen(event, callback, once=once)
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        entry = callback if loop is None else _InLoop(self, loop, callback)
        with self._ending:
            late = event == "disconnect" and self._ended
            if not late:
                super()._listen(event, entry, once=once)
        if late:
            self._call(entry, ())  # it has happened while the program was still starting
        self._begin(event)
        return callback

    def off(self, event: str, callback: Callable[..., Any]) -> None:
        self._check(event)
        for found in [entry.callback for entry in self._callbacks.get(event, ())]:
            if found == callback or (isinstance(found, _InLoop) and found.callback == callback):
                super().off(event, found)

    def events(self, *names: str) -> AsyncIterator[Event]:
        for name in names:
            self._check(name)
        queue = _LoopQueue(asyncio.get_running_loop())
        stream = self._stream(queue, names)
        if self.channel is None:
            queue.put_nowait(None)  # nothing comes
        self._begin("message")
        return stream

    def _begin(self, event: str) -> None:
        if event == "message":
            self._hand_out()
        self.start()

    def _hand_out(self) -> None:
        """Deliver what waits, in its order, as long as somebody listens."""
        with self._messages:
            if self._handing_out:
                return
            self._handing_out = True
        try:
            while True:
                with self._messages:
                    if not self._waiting or not self.is_heard():
                        self._handing_out = False
                        return
                    value, handle = self._waiting.popleft()
                self._deliver(value, handle)
        except BaseException:  # Ctrl-C in a callback
            self._handing_out = False
            raise

    def is_heard(self) -> bool:
        """Whether somebody waits for messages."""
        return bool(self._callbacks.get("message") or self._streams)

    def _deliver(self, value: Any, handle: handles.Received | None) -> None:
        if not self.emit("message", value, handle) and not self._streams:
            handles.close(handle)

    # ---- Receiver: in the thread ---------------------------------------------------------------------
    def on_message(self, value: Any, handle: handles.Received | None) -> None:
        with self._messages:
            heard = self.is_heard() and not self._waiting and not self._handing_out
            kept = not heard and len(self._waiting) < _MAX_WAITING
            if kept:
                self._waiting.append((value, handle))
        if heard:
            self._deliver(value, handle)
        elif not kept:
            handles.close(handle)
            if not self._full_told:
                self._full_told = True
                self.on_error(BufferError(f"{_MAX_WAITING} messages wait and nobody listens: more are dropped"))

    def on_internal(self, value: dict[str, Any], handle: node.Handle | None) -> None:
        if self.internal is not None:
            self.internal(value, handle)
        else:
            super().on_internal(value, handle)

    def on_closed(self) -> None:
        with self._ending:
            self._ended = True
        self.emit("disconnect")
        if self.at_end is not None:
            self.at_end()

    def on_error(self, error: Exception) -> None:
        if not self.emit("error", error) and not isinstance(error, ChannelClosedError):
            report("the channel", error)


class _ToLoop:
    """Hands things from other threads (the channel's, most of all) to a loop, which is woken once for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[Any], None]) -> None:
        self._loop = loop
        self._take = take
        self._waiting: deque[Any] = deque()
        self._woken = False

    def put(self, item: Any) -> None:
        if self._loop.is_closed():  # what comes for it would be kept for ever
            self._waiting.clear()
            return
        self._waiting.append(item)
        if not self._woken:  # of two threads both may wake it: that is no harm
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: its program is over
                self._loop.call_soon_threadsafe(self._hand_on)

    def _hand_on(self) -> None:
        self._woken = False  # first: what is put from here on wakes it again
        try:
            for _ in range(len(self._waiting)):
                self._take(self._waiting.popleft())
        finally:
            if self._waiting:
                self._loop.call_soon(self._hand_on)


class _InLoop:
    def __init__(self, process: _Process, loop: asyncio.AbstractEventLoop, callback: Callable[..., Any]) -> None:
        self.callback = callback
        self._to_loop = _ToLoop(loop, lambda args: process._call(callback, args))

    def __call__(self, *args: Any) -> None:
        self._to_loop.put(args)


class _LoopQueue(asyncio.Queue["Event | None"]):
    """A queue that another thread may fill."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        queue = weakref.ref(self)  # it has to end with its iterator, not when Python collects circles

        def take(item: Event | None) -> None:
            if (found := queue()) is not None:
                asyncio.Queue.put_nowait(found, item)

        self._to_loop = _ToLoop(loop, take)

    def put_nowait(self, item: Event | None) -> None:
        self._to_loop.put(item)


_process = _Process()


def _take_channel() -> None:
    number = os.environ.pop(node.CHANNEL_FD, "")
    mode = os.environ.pop(node.SERIALIZATION, "json")
    files = os.environ.pop(node.PEER, "") == "1"
    if not number.isascii() or not number.isdigit():
        return
    fd = int(number)
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        _process.why = f"{node.CHANNEL_FD}={fd} is no socket here: it was meant for another process"
    elif mode != "json":
        _process.why = f"the parent speaks {mode!r} on the channel; only serialization: 'json' is understood here"
        os.set_inheritable(fd, False)
    else:
        _process.attach(fd, files=files)


def _take_given() -> None:
    """Take the channel that the daemon's runtime has given to this worker; messages may be waited for already."""
    fd = given.take()
    if fd >= 0:
        _process.attach(fd, files=False, last_words=1.0, max_line=node.MAX_TEXT)
        if _process.is_heard():
            _process.start()


_take_channel()
_take_given()
given.when_given(_take_given)
os.register_at_fork(after_in_child=_process.forked)


@atexit.register
def _finish() -> None:
    """Let what was sent go before the program ends: a parent that reads slowly gets all of it, one that does not ends it."""
    if _process.channel is not None:
        _process.channel.wait_sent(_PATIENCE, _process.last_words)


def send(
    message: Any,
    handle: handles.Sendable = None,
    *,
    keep_open: bool = False,
    callback: Callable[[Exception | None], None] | None = None,
) -> bool:
    """Send a JSON value to the parent; False when so much waits that the caller had better pause.

    `handle` is a socket or an open file; it is closed here when the parent has it, unless `keep_open`. May be called
    from every thread. ChannelClosedError when there is no parent to talk to.
    """
    channel = _process.need()
    if handle is not None or callback is not None:
        _process.start()  # the thread takes the acknowledgement
    sent = channel.send(message, handle, keep_open=keep_open, callback=callback)
    if not channel.link.is_idle:
        _process.start()  # it writes what did not fit
    return sent


async def deliver(message: Any, handle: handles.Sendable = None, *, keep_open: bool = False) -> None:
    """Send, and wait until it is in the parent's channel; with a handle, until the parent has it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    settle = settling(done)
    send(message, handle, keep_open=keep_open, callback=lambda error: _soon(loop, settle, error))
    await done


async def drain() -> None:
    """Wait until little enough waits to be sent."""
    loop = asyncio.get_running_loop()
    calm = asyncio.Event()
    channel = _process.need()
    _process.start()
    channel.when_calm(lambda: _soon(loop, calm.set))
    await calm.wait()


# what a callback is given: "message" (message, handle), "disconnect" (), "error" (exception)
on, once, off = _process.on, _process.once, _process.off


def messages() -> AsyncIterator[Any]:
    """The messages from this call on, up to the end. One that came with a handle is a tuple (message, handle)."""
    return Bare(_process.events("message"))


def disconnect() -> None:
    """Close the channel, once all that was sent has gone. The parent's `disconnect` event follows."""
    channel = _process.need()
    _process.start()
    channel.disconnect()


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(function, *args)


TYPE_CHECKING = False
if TYPE_CHECKING:
    connected: bool
else:  # hidden: a name that is misspelled is an error of a type checker

    def __getattr__(name: str) -> Any:
        if name == "connected":
            return _process.channel is not None and _process.channel.connected
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""This process, as its parent's child: `process.send`, `process.on("message")`, like Node's `process` in a forked program.

The channel is the one that NODE_CHANNEL_FD names: made by `child_process.fork` here or in Node, by `cluster`, or by the
daemon for its workers. Importing this module takes the variable out of the environment, so that no grandchild mistakes
the descriptor for its own. A thread reads the channel from the first `on` on; until then messages wait in the kernel.

A callback that was registered while an event loop was running is called in that loop; any other in the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

from pyworker.cluster import given, handles
from pyworker.cluster.emitter import Emitter, Event, bare, report
from pyworker.cluster.ipc import ChannelClosedError, Receiver, ThreadChannel
from pyworker.protocol import node

_MAX_WAITING = 1000  # messages kept for a program that has not said on("message") yet
_PEER = "PYWORKER_CHANNEL"  # as in child_process: the parent is pyworker, too

Internal = Callable[[dict[str, Any], "node.Handle | None"], None]


class _Process(Emitter, Receiver):
    EVENTS: ClassVar[tuple[str, ...]] = ("message", "disconnect", "error")
    LAST: ClassVar[str] = "disconnect"

    def __init__(self) -> None:
        super().__init__()
        self.channel: ThreadChannel | None = None
        self.why = "this process has no channel: it was not started by fork()"
        self.internal: Internal | None = None
        self.at_end: Callable[[], None] | None = None
        self._waiting: deque[tuple[Any, handles.Received | None]] = deque()
        self._starting = threading.Lock()
        self._ending = threading.Lock()  # an end is told to everybody once, however late they ask

    def attach(self, fd: int, *, files: bool) -> None:
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        self.channel = ThreadChannel(sock, self, files=files)

    def start(self) -> None:
        """Read the channel from now on."""
        with self._starting:
            if self.channel is not None and not self.channel.started:
                self.channel.start()

    def forked(self) -> None:
        """In a process that this one forked: the channel is not its."""
        if self.channel is not None:
            self.channel.connected = False
            self.channel.sock.close()
            self.channel = None
            self.why = "this process was forked off by the one that has the channel"

    @property
    def streaming(self) -> bool:
        """Whether somebody waits for messages in a loop."""
        return bool(self._streams)

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
        for entry, _ in list(self._callbacks.get(event, ())):
            if entry is callback or (isinstance(entry, _InLoop) and entry.callback is callback):
                super().off(event, entry)

    def events(self, *names: str) -> AsyncIterator[Event]:
        for name in names:
            self._check(name)
        queue = _LoopQueue(asyncio.get_running_loop())
        self._streams.append(queue)
        if self._ended:
            queue.put_nowait(None)
        self._begin("message")
        return self._iterate(queue, frozenset(names))

    def _begin(self, event: str) -> None:
        if event == "message":
            while self._waiting:
                self._deliver(*self._waiting.popleft())
        self.start()

    def _deliver(self, value: Any, handle: handles.Received | None) -> None:
        if not self.emit("message", value, handle) and not self._streams:
            handles.close(handle)

    def call_now(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """In the loop of the callback."""
        Emitter._call(self, callback, args)

    # ---- Receiver: in the thread ---------------------------------------------------------------------
    def on_message(self, value: Any, handle: handles.Received | None) -> None:
        if self.listeners("message") or self._streams:
            self._deliver(value, handle)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append((value, handle))
        else:
            handles.close(handle)

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


class _InLoop:
    """A callback that belongs to an event loop."""

    def __init__(self, process: _Process, loop: asyncio.AbstractEventLoop, callback: Callable[..., Any]) -> None:
        self.callback = callback
        self._process = process
        self._loop = loop

    def __call__(self, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: its program is over
            self._loop.call_soon_threadsafe(self._process.call_now, self.callback, args)


class _LoopQueue(asyncio.Queue["Event | None"]):
    """A queue that another thread may fill."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._owner = loop

    def put_nowait(self, item: Event | None) -> None:
        with contextlib.suppress(RuntimeError):
            self._owner.call_soon_threadsafe(super().put_nowait, item)


_process = _Process()


def _take_channel() -> None:
    """Take the channel out of the environment."""
    number = os.environ.pop(node.CHANNEL_FD, "")
    mode = os.environ.pop(node.SERIALIZATION, "json")
    files = os.environ.pop(_PEER, "") == "1"
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
        _process.attach(fd, files=False)
        if _process.listeners("message") or _process.streaming:
            _process.start()


_take_channel()
_take_given()
given.when_given(_take_given)
os.register_at_fork(after_in_child=_process.forked)


def attach(fd: int, *, files: bool = True) -> None:
    """Use this descriptor as the channel. For the runtime of a worker that was not started by an exec."""
    _process.attach(fd, files=files)


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

    def settle(error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

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


def on(event: str, callback: Any = None) -> Any:
    """Call `callback` at "message" (message, handle), "disconnect" () or "error" (exception). Also a decorator."""
    return _process.on(event, callback)


def once(event: str, callback: Any = None) -> Any:
    """Like `on`, for the next one only."""
    return _process.once(event, callback)


def off(event: str, callback: Callable[..., Any]) -> None:
    """Forget a callback."""
    _process.off(event, callback)


def messages() -> AsyncIterator[Any]:
    """The messages from this call on, up to the end. One that came with a handle is a tuple (message, handle)."""
    return bare(_process.events("message"))


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


def __getattr__(name: str) -> Any:
    if name == "connected":
        return _process.channel is not None and _process.channel.connected
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

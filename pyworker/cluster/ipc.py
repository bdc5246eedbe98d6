"""One end of a Node channel with its socket: for an asyncio program (`LoopChannel`), or read by a thread (`ThreadChannel`).

What the bytes mean is protocol/node.py. A handle stays open here until the other end has said that it came; then it is
closed, unless `keep_open`. What was not delivered when the channel ends is reported to its sender, who still has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pyworker.cluster import handles
from pyworker.cluster.emitter import let_exit_through, report
from pyworker.errors import is_raised_by_program
from pyworker.protocol import node
from pyworker.unix.fds import Packet, close_all, recv_packet, send_into
from pyworker.unix.ready import green_poll

_MAX_FDS = 16  # of one read; Linux gives those of one message
_READS = 8  # per turn of the loop, so that a chatty peer does not starve the others
_END = Packet(b"", [], 0, False)
_RETRY = 0.05  # seconds, when the kernel has too many descriptors under way

Callback = Callable[[Exception | None], None]


class ChannelClosedError(ConnectionError):
    """The other end is gone, or the channel was closed here."""


class HandleNotDeliveredError(ConnectionError):
    """The other end died, or could not take the handle. It is still open here, as `handle`."""

    def __init__(self, message: str, handle: Any) -> None:
        super().__init__(message)
        self.handle = handle


def settling(done: asyncio.Future[None]) -> Callback:
    """Return the callback of a message that somebody waits for."""

    def told(error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

    return told


def _lost(why: str, handle: Any) -> ConnectionError:
    """What the sender of something is told that did not go."""
    return ChannelClosedError(why) if handle is None else HandleNotDeliveredError(why, handle)


class _Delivery:
    """What is to be done when a message has arrived, or not. The token of a Link.

    `copy` is what travels: a descriptor of our own, for a program may close its handle while it waits to be sent.
    """

    __slots__ = ("callback", "copy", "handle", "keep_open")

    def __init__(self, handle: Any, keep_open: bool, callback: Callback | None) -> None:
        self.handle = handle
        self.copy: list[int] = []  # one at most
        self.keep_open = keep_open
        self.callback = callback

    def is_open(self, fd: int) -> bool:
        """True while this number is the handle's. Its owner may have closed it, and the number be another's by now."""
        return fd in self.copy or self.handle.fileno() == fd

    def close_copy(self) -> None:
        if self.copy:
            os.close(self.copy.pop())


class Receiver:
    """Who is told what came. The default does nothing with it."""

    def on_message(self, value: Any, handle: handles.Received | None) -> None:
        """A message of the program at the other end."""
        handles.close(handle)

    def on_internal(self, value: dict[str, Any], handle: node.Handle | None) -> None:
        """A message of Node's machinery; its descriptor is the receiver's."""
        if handle is not None:
            close_all([handle.fd])

    def on_closed(self) -> None:
        """Nothing comes any more and nothing can be sent. Told once."""

    def on_error(self, error: Exception) -> None:
        """Something was wrong with one message; the channel goes on."""


class _Channel:
    """What both kinds share. `files`: the other end is pyworker's too, so files and odd sockets may be sent."""

    def __init__(self, sock: socket.socket, receiver: Receiver, *, files: bool, max_line: int = node.MAX_LINE) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.receiver = receiver
        self.files = files
        self.link = node.Link(max_line=max_line)
        self.connected = True  # sending is allowed
        self._write_wanted = False  # something waits for room in the socket
        self._closed = False
        self._lock = threading.RLock()
        self._reading = False  # what has come is being told
        self._end_told = False
        self._flushing = self._again = False
        self._room: list[Callable[[], None]] = []
        self._todo: deque[Callable[[], None]] = deque()  # told when the lock is free: who is told may do anything

    @property
    def closed(self) -> bool:
        return self._closed

    def send(
        self, value: Any, handle: Any = None, *, keep_open: bool = False, callback: Callback | None = None
    ) -> bool:
        """Send a message of the program; see `ChildProcess.send`."""
        node.check_message(value)
        if handle is None:
            return self.send_raw(value, callback=callback)
        kind = handles.kind_of(handle)
        if not self.files and kind.name in (handles.FILE, handles.OTHER):
            raise TypeError("Node has no way to take this handle; it takes TCP, Unix stream and UDP sockets")
        return self.send_raw(value, handle, kind=kind, keep_open=keep_open, callback=callback, copy=True)

    def send_raw(
        self,
        value: Any,
        handle: Any = None,
        *,
        kind: handles.Kind | None = None,
        keep_open: bool = False,
        callback: Callback | None = None,
        copy: bool = False,
    ) -> bool:
        """Send any message, Node's own as well. Without `copy` a handle that is closed before the callback does not go (again)."""
        with self._lock:
            if not self.connected:
                error = _lost("the channel is closed", handle)
                if callback is None:
                    raise error
                self._todo.append(lambda: callback(error))
                calm = False
            elif handle is None:
                calm = self.link.send(value, _Delivery(None, True, callback) if callback else None)
            else:
                name, notes = kind or handles.kind_of(handle)
                delivery = _Delivery(handle, keep_open, callback)
                try:
                    fd = handle.fileno()
                    if copy:
                        delivery.copy.extend(map(os.dup, (fd,)))  # C, as in send_into
                        fd = delivery.copy[0]
                    calm = self.link.send_handle(value, name, fd, delivery, notes)
                except BaseException:  # of a signal's handler, too: nobody else would close it
                    if not self.link.has(delivery):
                        delivery.close_copy()
                    raise
            self._flush()
            calm = calm or self.link.is_calm
        self._tell_all()
        return calm

    def when_calm(self, callback: Callable[[], None]) -> None:
        """Call back (once) when little enough waits to be sent, or when the channel is closed."""
        with self._lock:
            if not self._closed and not self.link.is_calm:
                self._room.append(callback)
                return
        callback()

    def disconnect(self) -> None:
        """Close, once all that was sent has gone, and what has come is no half message."""
        with self._lock:
            self.connected = False
            self._flush()
        self._tell_all()

    # ---- inside --------------------------------------------------------------------------------------
    def _tells_end(self) -> bool:
        """True where the end may be told: where messages are, so that none comes after it."""
        raise NotImplementedError

    def _want_write(self, wanted: bool) -> None:
        raise NotImplementedError

    def _forget_socket(self) -> None:
        raise NotImplementedError

    def _flush(self) -> int:
        """Write what the kernel takes, with the lock held; return how many bytes that were."""
        if self._flushing:  # in the handler of a signal, which came in the middle of it: there it goes on
            self._again = True
            return 0
        total, self._again = 0, True
        while self._again:
            self._again, self._flushing = False, True
            try:
                total += self._write()
            finally:
                self._flushing = False
        return total

    def _write(self) -> int:
        total = 0
        try:
            self._count_gone()
            while (frame := self.link.to_write()) is not None:
                if frame.fd >= 0 and not frame.token.is_open(frame.fd):
                    self._refused()
                    continue
                try:
                    send_into(self.link.gone, self.sock, frame.data, frame.fd)
                except PermissionError:  # a peer of other rights may have none sent to it (SO_PASSRIGHTS)
                    if frame.fd < 0:
                        raise
                    self._refused()
                    continue
                sent = self._count_gone()
                total += sent
                if sent == 0:
                    break
            self._want_write(frame is not None)
        except OSError as error:
            if is_raised_by_program(error):
                raise
            # The peer is gone. What it had still said is read before the end is told.
            self._want_write(False)
            self.connected = False
            return total
        if self._room and self.link.is_calm:
            self._todo.extend(self._room)
            self._room.clear()
        if not self.connected and self.link.is_idle and not self.link.is_within_line:
            self._close()
        return total

    def _refused(self) -> None:
        for event in self.link.refused():
            self._settle(event)

    def _count_gone(self) -> int:
        gone = sum(self.link.gone)
        for event in self.link.written():
            self._settle(event)
        return gone

    def _read(self) -> bool:
        """Take one read's worth; False when there is nothing more now."""
        if self._closed:
            return False
        try:
            packet = recv_packet(self.sock, node.READ_SIZE, _MAX_FDS)
        except OSError as error:
            if is_raised_by_program(error):
                raise
            packet = _END
        if packet is None:
            return False
        if not packet.data:
            close_all(packet.fds)
            self._close()
            self._tell_all()
            return False
        self._reading = True
        try:
            with self._lock:
                events = self.link.feed(packet.data, packet.fds)
                if self._room or not self.connected or not self.link.is_idle:
                    self._flush()  # acknowledgements go before the program is told: it may take its time, or block
            for event in events:
                match event:
                    case node.Message(value, None):
                        self._tell(self.receiver.on_message, value, None)
                    case node.Message(value, node.Handle() as handle):
                        self._tell(self.receiver.on_message, value, handles.received(handle))
                    case node.Internal(value, handle):
                        self._tell(self.receiver.on_internal, value, handle)
                    case _:
                        self._settle(event)
        finally:
            self._reading = False
        self._tell_all()
        return len(packet.data) == node.READ_SIZE

    def _settle(self, event: node.Event) -> None:
        """Do what an event other than a message asks for; whom it concerns is told by `_tell_all`."""
        match event:
            case node.Sent(token):
                token.close_copy()
                if not token.keep_open:
                    handles.close(token.handle)
                if (callback := token.callback) is not None:
                    self._todo.append(lambda: callback(None))
            case node.NotReceived(token):
                self._fail(token, HandleNotDeliveredError("the other end could not take the handle", token.handle))
            case node.Malformed(reason):
                error = ValueError(f"ignored what came on the channel: {reason}")
                self._todo.append(lambda: self.receiver.on_error(error))
            case node.Stray(fds):
                close_all(fds)

    def _fail(self, delivery: _Delivery, error: Exception) -> None:
        delivery.close_copy()
        told = delivery.callback or self.receiver.on_error
        self._todo.append(lambda: told(error))

    def _tell_all(self) -> None:
        """Tell what there is to tell. Never with the lock held."""
        while self._todo:
            try:
                function = self._todo.popleft()
            except IndexError:  # another thread was faster
                return
            self._tell(function)
        if not self._closed:
            return
        with self._lock:
            end = not self._end_told and not self._reading and self._tells_end()
            self._end_told = self._end_told or end
        if end:
            self._tell(self.receiver.on_closed)

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a callback's own mistake does not end the channel
            let_exit_through(error)
            report("an exception in a callback of a channel", error)

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self.connected = False
            if self.sock.fileno() >= 0:
                self._forget_socket()
                self.sock.close()
            lost, fds = self.link.abandon()
            close_all(fds)
            for delivery in lost:
                self._fail(delivery, _lost("the other end is gone", delivery.handle))
            self._todo.extend(self._room)
            self._room.clear()
            self._closed = True  # last: what the handler of a signal has ended by an exception is done again


class LoopChannel(_Channel):
    """A channel of the running event loop. All of it belongs to that loop's thread."""

    def __init__(self, sock: socket.socket, receiver: Receiver, *, files: bool = True) -> None:
        super().__init__(sock, receiver, files=files)
        self._loop = asyncio.get_running_loop()
        self._leaving = False
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def disconnect(self) -> None:
        self._leaving = True  # who asks for the end right after this is told of it, too
        super().disconnect()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            self._loop.call_soon(self._left)

    def _left(self) -> None:
        self._leaving = False
        self._tell_all()

    def read_now(self) -> bool:
        """Take one read's worth of what is there; False when there was nothing, or it was the end."""
        before = self.link.offset
        self._read()
        return self.link.offset != before

    def _on_readable(self) -> None:
        for _ in range(_READS):
            if not self._read():
                return

    def _tells_end(self) -> bool:
        return not self._leaving

    def _on_writable(self) -> None:
        if self._closed:
            return
        if self._flush() == 0 and self._write_wanted:
            # writable, and yet nothing goes: too many descriptors are under way
            self._want_write(False)
            self._loop.call_later(_RETRY, self._on_writable)
        self._tell_all()

    def _want_write(self, wanted: bool) -> None:
        if wanted != self._write_wanted:
            self._write_wanted = wanted
            if wanted:
                self._loop.add_writer(self.sock.fileno(), self._on_writable)
            else:
                self._loop.remove_writer(self.sock.fileno())

    def _forget_socket(self) -> None:
        if not self._loop.is_closed():
            self._want_write(False)
            self._loop.remove_reader(self.sock.fileno())


class ThreadChannel(_Channel):
    """A channel that a thread of its own reads, for programs of any kind; anybody may send. Callbacks run in the thread."""

    def __init__(
        self, sock: socket.socket, receiver: Receiver, *, files: bool = True, max_line: int = node.MAX_LINE
    ) -> None:
        super().__init__(sock, receiver, files=files, max_line=max_line)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read. Before that nothing is lost: it waits in the kernel. Done again it does nothing."""
        threading.Thread(target=self._run, name="pyworker channel", daemon=True).start()

    @property
    def started(self) -> bool:
        return self._thread is not None

    @property
    def is_here(self) -> bool:
        """True in the thread that reads: it must not wait for what it is to read."""
        return threading.current_thread() is self._thread

    def wait_sent(self, patience: float, limit: float) -> None:
        """Wait until all has gone, at most until the other end has taken nothing for `patience` seconds."""
        seen, began = -1, time.monotonic()
        since = began
        while not self._closed and not self.link.is_idle:
            with self._lock:
                self._flush()  # the thread may not run, or not know: an exception of a signal's handler has ended a send
            now = time.monotonic()
            if self.link.backlog != seen:
                seen, since = self.link.backlog, now
            if now - since > patience or now - began > limit:
                return
            time.sleep(0.002)

    def forked(self) -> None:
        """In a process that this one forked: the channel is not its, nor what is under way, and the thread is not there."""
        self.connected = False
        self._closed = self._end_told = True
        self.sock.close()
        lost, fds = self.link.abandon()
        close_all(fds)
        for delivery in lost:  # else a connection that went to the other end is kept open here
            delivery.close_copy()
        self._close_wake()

    def _tells_end(self) -> bool:
        return not self.started or self.is_here

    def _run(self) -> None:
        # not noted where it is started: the handler of a signal may have ended that
        with self._lock:
            if self._thread is not None or self._closed:
                return
            self._thread = threading.current_thread()
        poll = green_poll()
        poll.register(self._wake_reader, select.POLLIN)
        watched = 0
        while True:
            with self._lock:
                if self.closed:
                    break
                wanted = select.POLLIN | select.POLLOUT if self._write_wanted else select.POLLIN
                if wanted != watched:
                    watched = wanted
                    poll.register(self.sock, wanted)
            for fd, happened in poll.poll():
                if fd == self._wake_reader:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_reader, 64)
                    continue
                if happened & select.POLLOUT and self._is_stuck() and happened == select.POLLOUT:
                    time.sleep(_RETRY)
                if happened & ~select.POLLOUT:
                    self._read()
        with self._lock:
            self._close_wake()
        self._tell_all()

    def _want_write(self, wanted: bool) -> None:
        if wanted != self._write_wanted:
            self._write_wanted = wanted
            self._wake()

    def _is_stuck(self) -> bool:
        with self._lock:
            stuck = not self._closed and self._flush() == 0 and self._write_wanted
        self._tell_all()
        return stuck

    def _forget_socket(self) -> None:
        if self.started:
            self._wake()
        else:
            self._close_wake()

    def _close_wake(self) -> None:
        if self._wake_writer >= 0:
            fds = self._wake_reader, self._wake_writer
            self._wake_writer = -1  # first: what the handler of a signal has ended is done again
            close_all(fds)

    def _wake(self) -> None:
        if self._wake_writer >= 0 and not self.is_here:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_writer, b"x")

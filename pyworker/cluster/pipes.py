"""A child's stdin, stdout and stderr as asyncio streams that exist at once, before anything was awaited.

asyncio's own pipes are made by a coroutine; here a child is started by an ordinary call and its pipes are there when it
returns. The reader is asyncio's StreamReader, with its limit: a child whose output nobody reads waits in write().
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable

from pyworker.errors import is_raised_by_program

_READ = 64 * 1024
_LIMIT = 64 * 1024
_LIMIT_AFTER_EXIT = 16 * 1024 * 1024  # what a dead child (and its heirs) may leave behind unread


class PipeReader(asyncio.StreamReader):
    """The read end of a pipe. It is closed at end-of-file, which is told to `on_end`."""

    def __init__(self, fd: int, on_end: Callable[[], None]) -> None:
        self._fd = fd  # first: `__del__` closes it
        self._running = asyncio.get_running_loop()
        super().__init__(limit=_LIMIT, loop=self._running)
        self._on_end = on_end
        self._reading = False
        os.set_blocking(fd, False)
        self.set_transport(_Flow(self))

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._running.remove_reader(self._fd)

    def resume(self) -> None:
        """Begin or go on reading. Raises OSError."""
        if not self._reading and self._fd >= 0:
            self._reading = True
            self._running.add_reader(self._fd, self._on_readable)

    def child_exited(self) -> None:
        """Take what is left, even when nobody reads it now."""
        self._limit = _LIMIT_AFTER_EXIT  # this and the next are asyncio.StreamReader's
        self._paused = False  # else it would not pause again, and its heirs could fill our memory
        self.resume()

    def close(self) -> None:
        """Close the pipe, whatever is still in it."""
        if self._fd >= 0:
            if not self._running.is_closed():
                self.pause()
            fd, self._fd = self._fd, -1
            os.close(fd)
            self.feed_eof()
            self._on_end()

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        except OSError as error:
            if is_raised_by_program(error):
                raise
            data = b""
        if data:
            self.feed_data(data)
        else:
            self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class _Flow(asyncio.ReadTransport):
    """What StreamReader wants of a transport."""

    def __init__(self, reader: PipeReader) -> None:
        super().__init__()
        self._reader = reader

    def pause_reading(self) -> None:
        self._reader.pause()

    def resume_reading(self) -> None:
        self._reader.resume()

    def is_closing(self) -> bool:
        return self._reader.at_eof()


class PipeWriter:
    """The write end of a pipe: `write`, `await drain()`, `close`. A reader that is gone is a BrokenPipeError of drain."""

    def __init__(self, fd: int) -> None:
        self._fd = fd  # first, as above
        self._loop = asyncio.get_running_loop()
        self._pending: deque[memoryview] = deque()
        self._size = 0
        self._closing = False
        self._error: OSError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        os.set_blocking(fd, False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue data; what the pipe takes now goes now."""
        if self._closing:
            raise ValueError("stdin is closed")
        if self._fd < 0 and self._error is None:
            self._error = _broken()
        if self._error is None and len(data):
            was_empty = not self._pending
            self._pending.append(memoryview(bytes(data)))
            self._size += len(data)
            if was_empty:
                self._flush()

    def close(self) -> None:
        """Close, once everything has gone."""
        self._closing = True
        if not self._pending:
            self._close()

    def is_closing(self) -> bool:
        """True after `close`, and when the reader is gone."""
        return self._closing or self._fd < 0

    async def drain(self) -> None:
        """Wait until little is left to send."""
        while self._size > _LIMIT and self._error is None:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def wait_closed(self) -> None:
        """Wait until the pipe is closed."""
        while self._fd >= 0:
            await self._wait()

    def abort(self) -> None:
        """Close now: the reader is gone. What has not gone is dropped, and `drain` says so."""
        if self._pending:
            self._error = _broken()
        self._pending.clear()
        self._size = 0
        self._close()

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _flush(self) -> None:
        try:
            while self._pending:
                sent = os.write(self._fd, self._pending[0])
                self._size -= sent
                if sent < len(self._pending[0]):
                    self._pending[0] = self._pending[0][sent:]
                else:
                    self._pending.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._flush)
        except OSError as error:
            if is_raised_by_program(error):
                raise
            self._error = error
            self._pending.clear()
            self._size = 0
            self._close()
            return
        if not self._pending:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._close()
        if self._size <= _LIMIT:
            self._wake()

    def _close(self) -> None:
        if self._fd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_writer(self._fd)
            fd, self._fd = self._fd, -1
            os.close(fd)
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _broken() -> BrokenPipeError:
    return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

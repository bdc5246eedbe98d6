"""Worker: the threads that run a wsgi app, and the way their output comes back to the loop: one hop there, one back.

Threads only ever touch the jobs, the outbox and their own exchange's counters; everything else belongs to the loop.
Each hop is a fight for Python's lock, so few are made: jobs wait for the end of the loop's turn, one thread is woken at a
time, the one that slept last, and it takes whatever waits when it is done.
The threads are daemons: a worker that has to go does not wait for an app that never returns.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from pyworker.worker import say
from pyworker.worker.engines.wsgi import WsgiExchange

UNSENT = 256 * 1024  # bytes a thread may be ahead of the loop

MORE, FINISHED, BROKEN = range(3)  # what comes with a piece of output


class ThreadPool:
    """A fixed number of threads. `on_change` is called in the loop when `is_full` is another, and when no job is left."""

    def __init__(self, threads: int, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        self.size = threads
        self.pending = 0  # jobs that wait or run; the loop's number
        self._loop = loop
        self._on_change = on_change
        self._jobs: deque[ThreadExchange | None] = deque()
        self._handing_out = False  # when the loop turns
        self._idle: list[threading.Lock] = []  # what those that sleep wait for
        self._rousing = False  # one was woken, and has not looked yet
        self._outbox: deque[tuple[ThreadExchange | None, bytes, Any]] = deque()
        self._waking = False
        self._threads = [
            threading.Thread(target=self._work, name=f"wsgi-{n}", daemon=True) for n in range(1, threads + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_full(self) -> bool:
        return self.pending >= self.size

    def submit(self, exchange: ThreadExchange) -> None:
        exchange.room = None
        exchange.written = exchange.taken = 0
        self._jobs.append(exchange)
        if not self._handing_out:
            self._handing_out = True
            self._loop.call_soon(self._hand_out)
        self.pending += 1
        if self.pending == self.size:
            self._on_change()

    def put(self, exchange: ThreadExchange | None, data: bytes, end: Any) -> None:
        """From a thread: output that the loop finds when it is woken by what this thread delivers next."""
        self._outbox.append((exchange, data, end))

    def deliver(self, exchange: ThreadExchange | None, data: bytes, end: Any) -> None:
        """From a thread: hand output to the loop. `end`: see ThreadExchange.on_output; no exchange: the thread is free."""
        self._outbox.append((exchange, data, end))
        if not self._waking:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                pass  # the loop is closed: the worker is leaving, nobody waits for this answer

    def close(self) -> None:
        """Let idle threads end; busy ones are left to themselves."""
        self._jobs.extend([None] * self.size)
        self._rouse()

    def _hand_out(self) -> None:
        self._handing_out = False
        self._rouse()

    def _rouse(self) -> None:
        """Wake a thread if there is a job, unless one is on its way: that one wakes the next."""
        if self._jobs and not self._rousing:
            try:
                gate = self._idle.pop()
            except IndexError:
                return  # all are busy, and look before they sleep
            self._rousing = True
            gate.release()

    def _collect(self) -> None:
        self._waking = False  # before looking: what is appended later wakes us again
        outbox = self._outbox
        freed = 0
        for _ in range(len(outbox)):  # a thread may be as fast as this is, and the loop has to turn
            exchange, data, end = outbox.popleft()
            if exchange is None:
                freed += 1
                continue
            exchange.on_output(data, end)
        if freed:
            was_full = self.is_full
            self.pending -= freed
            if self.is_full is not was_full or not self.pending:
                self._on_change()

    def _work(self) -> None:
        jobs = self._jobs
        gate = threading.Lock()
        gate.acquire()
        while True:
            try:
                exchange = jobs.popleft()
            except IndexError:
                self._idle.append(gate)
                self._rouse()  # for what came in between, when this one seemed busy
                gate.acquire()
                self._rousing = False  # before looking: for what is appended later another is woken
                if len(jobs) > 1:
                    self._rouse()
                continue
            if exchange is None:
                return
            try:
                exchange.run()
            except BaseException:  # noqa: BLE001 - a thread that ends would be missed for ever
                say.write("error in the HTTP server:\n" + traceback.format_exc())
            self.deliver(None, b"", None)
            del exchange


class ThreadExchange(WsgiExchange):
    """One request to an app in threads."""

    __slots__ = ("room", "taken", "written")

    in_thread = True
    room: threading.Event | None  # set when there may be room for more output
    written: int  # bytes given by the thread
    taken: int  # ... and taken by the loop

    # ---- in the thread ---------------------------------------------------------------------------
    def run(self) -> None:
        """Run the app and send what it says to the loop."""
        try:
            whole = self._call()
            if whole is not None:
                end = BROKEN if self.cut_short else FINISHED
                if self.iterable.__class__ is list and not self.body:
                    # nothing is to be closed: this thread says next that it is free
                    self.server.pool.put(self, whole, end)
                else:
                    self._emit(whole, end)
            else:
                assert self.steps is not None
                for part in self.steps:
                    if not self._emit(part, MORE):
                        break
                self._emit(b"", BROKEN if self.cut_short else FINISHED)
        except BaseException as error:  # noqa: BLE001 - see _status_for
            self._emit(b"", self._status_for(error))
        finally:
            self._close()

    def _emit(self, data: bytes, end: int) -> bool:
        """Give output to the loop, and wait while the client is behind; False when nobody is there any more."""
        self.written += len(data)
        self.server.pool.deliver(self, data, end)
        if end == MORE:
            while not self.gone and (self.written - self.taken > UNSENT or self.connection.write_paused):
                if self.room is None:
                    self.room = threading.Event()
                self.room.clear()
                if self.written - self.taken > UNSENT or self.connection.write_paused:
                    self.room.wait(1.0)
        return not self.gone

    def put(self, part: bytes) -> None:
        self._emit(part, MORE)

    # ---- in the loop -----------------------------------------------------------------------------
    def on_output(self, data: bytes, end: int) -> None:
        """Take a piece of the thread's output. `end`: MORE, FINISHED, BROKEN, or a status to answer with."""
        self.taken += len(data)
        if self.room is not None:
            self.room.set()
        if self.rest is not None and (self.done or self.gone):
            self.rest.close()
            self.rest = None
        if self.done:
            return
        if self.gone:
            if end != MORE:
                self.finish()
            return
        if end == MORE and self.connection.transport.is_closing():
            return  # as in _has_left
        if data:
            self.connection.write(data)
        if self.rest is not None:
            self._send_rest()
        elif end == FINISHED:
            self.finish()
        elif end == BROKEN:
            self.abort()
        elif end != MORE:
            self.refuse(end)

    def _wake(self) -> None:
        if self.room is not None:
            self.room.set()

    def on_writable(self) -> None:
        if self.started and not self.sends_rest:
            self._wake()
        else:
            super().on_writable()

    def _let_go(self) -> bool:
        if self.started and not self.sends_rest:
            self._wake()
            return False
        return super()._let_go()

"""Worker: the threads that run a wsgi app, and the way their output comes back to the loop: one hop there, one back.

Threads only ever touch the queue, the outbox and their own exchange's counters; everything else belongs to the loop.
The threads are daemons: a worker that has to go does not wait for an app that never returns.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyworker.worker import say

if TYPE_CHECKING:
    from pyworker.worker.engines.wsgi import WsgiExchange


class ThreadPool:
    """A fixed number of threads. `on_change(busy)` is called in the loop when jobs come and go."""

    def __init__(self, threads: int, loop: asyncio.AbstractEventLoop, on_change: Callable[[int], None]) -> None:
        self.size = threads
        self.pending = 0  # jobs that wait or run; the loop's number
        self._loop = loop
        self._on_change = on_change
        self._jobs: queue.SimpleQueue[WsgiExchange | None] = queue.SimpleQueue()
        self._outbox: deque[tuple[WsgiExchange | None, bytes, Any]] = deque()
        self._waking = False
        self._threads = [
            threading.Thread(target=self._work, name=f"wsgi-{n}", daemon=True) for n in range(1, threads + 1)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, exchange: WsgiExchange) -> None:
        """Run the exchange in the next free thread."""
        self.pending += 1
        self._on_change(min(self.pending, self.size))
        self._jobs.put(exchange)

    def deliver(self, exchange: WsgiExchange | None, data: bytes, end: Any) -> None:
        """From a thread: hand output to the loop. `end`: see WsgiExchange.on_output; no exchange: the thread is free."""
        self._outbox.append((exchange, data, end))
        if not self._waking:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                pass  # the loop is closed: the worker is leaving, nobody waits for this answer

    def close(self) -> None:
        """Let idle threads end; busy ones are left to themselves."""
        for _ in self._threads:
            self._jobs.put(None)

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
            self.pending -= freed
            self._on_change(min(self.pending, self.size))

    def _work(self) -> None:
        while (exchange := self._jobs.get()) is not None:
            try:
                exchange.run_in_thread()
            except BaseException:  # noqa: BLE001 - a thread that ends would be missed for ever
                say.write("error in the HTTP server:\n" + traceback.format_exc())
            self.deliver(None, b"", None)
            del exchange

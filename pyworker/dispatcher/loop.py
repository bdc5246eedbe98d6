"""Dispatcher: the one place that blocks. Level-triggered epoll, timers, no objects made per event."""

from __future__ import annotations

import heapq
import itertools
import select
import time
import traceback
from collections.abc import Callable

from pyworker.policy.faults import Faults, place_of
from pyworker.unix import stderr

IN, OUT, ERR, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP

_EVENTS_A_TURN = 512

Handler = Callable[[int], None]


class Loop:
    """fd -> handler. Remove before close: an event that was fetched already then finds no handler.

    A number that is used again within one turn has its events from the next turn on: one of this turn is its predecessor's.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._fresh: set[int] = set()  # added in this turn
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._faults = Faults()
        self.running = True

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler
        self._fresh.add(fd)

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        return fd in self._handlers

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back after `delay` seconds. There is no cancel: a callback looks whether it is still wanted."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), callback))

    def run(self) -> None:
        handlers, fresh, poll = self._handlers, self._fresh, self._epoll.poll
        while self.running:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            ready = poll(timeout, _EVENTS_A_TURN)
            fresh.clear()
            for fd, events in ready:
                handler = handlers.get(fd)
                if handler is not None and fd not in fresh:
                    try:
                        handler(events)
                    except Exception as error:  # noqa: BLE001 - one bad connection must not end all others
                        self._report(error)
                        self.remove(fd)
            if self._timers:
                self._due()
            if self._faults:
                _write(*self._faults.over(time.monotonic()))

    def _due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2]
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - as above
                self._report(error)

    def _report(self, error: Exception) -> None:
        if self._faults.is_new(place_of(error), time.monotonic()):
            _write("".join(traceback.format_exception(error)).rstrip())


def _write(*texts: str) -> None:
    for text in texts:
        stderr.write(f"dispatcher: {text}\n")

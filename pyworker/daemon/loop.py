"""Daemon: the one place that blocks. Calls back for ready fds and for deadlines that have passed.

Laws:
1. A callback that raises never ends the loop: it is reported, and its fd rests for a while, so that a lasting
   bug costs a few lines of log (once: `report_to_stderr`) and not a core.
2. `remove` comes before close. The guardian holds a copy of most fds, and epoll forgets a *file* only when its last
   copy is closed. An fd that was closed first is noticed, and the epoll instance replaced.
3. No event reaches a registration that is younger than the event: fd numbers are used again at once.
4. An fd that there is no room for in the epoll now (memory, the user's share of watches) rests, too: it is not forgotten.
5. A wait in which we stood still (a paused container, SIGSTOP for all) counts against nobody: nobody may have run in it. Not
   so another soon after: on a machine where each wait ends late nothing would ever be due.

It starts no thread, installs no signal handler and knows nothing of what the fds are.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable

from pyworker.errors import NO_ROOM
from pyworker.policy.faults import Faults, place_of
from pyworker.policy.pulse import NOTICED
from pyworker.protocol.store import TICK
from pyworker.unix import stderr

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR  # always reported, never asked for

_FIRST_REST = 0.1
_LONGEST_REST = 5.0
_FEW_TIMERS = 1000
LAZY = TICK  # seconds: the whole multiples of the monotonic clock at which lazy calls are made
EARLY = 0.02  # seconds by which a lazy call is made too early rather than at a wake-up of its own

Callback = Callable[[int], None]


class Timer:
    """A deadline that was asked for. `cancel` may be called at any time, also after it has passed."""

    __slots__ = ("callback", "deadline", "lazy")

    def __init__(self, deadline: float, callback: Callable[[], None], *, lazy: bool = False) -> None:
        self.deadline = deadline
        self.lazy = lazy
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make it never fire; what the callback held is let go at once."""
        self.callback = None


class _Registration:
    __slots__ = ("callback", "mask", "rest", "resting", "since")

    def __init__(self, mask: int, callback: Callback, since: int) -> None:
        self.mask = mask
        self.callback = callback
        self.since = since  # number of the poll before which it was made
        self.rest = _FIRST_REST
        self.resting = False


_faults = Faults()


def report_to_stderr(what: str) -> None:
    """Write the exception that is being handled to stderr, which is the daemon's own log; once while it lasts."""
    error = sys.exception()
    if error is None or _faults.is_new(f"{what}: {place_of(error)}", time.monotonic()):
        stderr.say("daemon", f"{what}:")
        if error is not None:
            stderr.trace(error)


def report_what_is_over() -> None:
    """Say which of the faults that were reported have not been met for a while."""
    for text in _faults.over(time.monotonic()):
        stderr.say("daemon", text)


SLICE = 0.05  # seconds of soon-calls in one turn
SELDOM = 30.0  # seconds from one standstill to the next that counts for nobody


class Loop:
    """Readiness, deadlines and soon-calls, all on one thread. `clock` is monotonic seconds."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, report: Callable[[str], None] = report_to_stderr
    ) -> None:
        self.clock = clock
        self._report = report
        # called with for how long, before anything else is
        self.on_stood_still: Callable[[float], None] = lambda seconds: None
        self._stood_still_at = -math.inf
        self._epoll = select.epoll()
        self._registrations: dict[int, _Registration] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sweep_at = _FEW_TIMERS
        self._order = itertools.count()
        self._once: set[Hashable] = set()
        self._soon: deque[Callable[[], None]] = deque()
        self._polls = 0
        self._removed: set[int] = set()  # since the last poll
        self._running = False
        self._has_waited = False  # the soon-calls have, once, for what came while a callback took long

    # ---- fds ---------------------------------------------------------------------------------------
    def add(self, fd: int, mask: int, callback: Callback) -> None:
        """Call `callback(events)` whenever the fd is ready (level-triggered). The fd stays the caller's."""
        if fd in self._registrations:
            raise ValueError(f"fd {fd} is registered already")
        self._registrations[fd] = registration = _Registration(mask, callback, self._polls)
        self._register(fd, registration)

    def modify(self, fd: int, mask: int) -> None:
        """Wait for other events; with 0 only a hang-up or an error is reported."""
        registration = self._registrations[fd]
        if registration.mask != mask:
            registration.mask = mask
            if not registration.resting:
                self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Forget the fd; one that is not registered is no error. Call it before the fd is closed."""
        registration = self._registrations.pop(fd, None)
        self._removed.add(fd)
        if registration is not None and not registration.resting:
            try:
                self._epoll.unregister(fd)
            except OSError:  # closed already: the epoll may go on reporting it (law 2)
                self._replace_epoll()

    def watches(self, fd: int) -> bool:
        return fd in self._registrations

    # ---- time --------------------------------------------------------------------------------------
    def call_at(self, deadline: float, callback: Callable[[], None], *, lazy: bool = False) -> Timer:
        """Call back once `deadline` (on this loop's clock) has passed; `lazy`: or EARLY seconds before, if it is awake then."""
        if len(self._timers) >= self._sweep_at:  # those that were cancelled would stay until their time has come
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._sweep_at = max(_FEW_TIMERS, 2 * len(self._timers))
        timer = Timer(deadline, callback, lazy=lazy)
        heapq.heappush(self._timers, (deadline, next(self._order), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return self.call_at(self.clock() + delay, callback)

    def call_once(self, key: Hashable, delay: float, callback: Callable[[], object]) -> None:
        """Call back after `delay` seconds, once for all that ask for it by this key until then."""

        def call() -> None:
            self._once.discard(key)
            callback()

        if key not in self._once:
            self._once.add(key)
            self.call_later(delay, call)

    def call_lazily(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back after `delay` seconds or some before (LAZY ones), together with others: one wake-up for all."""
        now = self.clock()
        together = (now + EARLY + delay) // LAZY * LAZY
        return self.call_at(together if together > now + EARLY else now + delay, callback, lazy=True)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back in this turn or a next one, after what is being handled now has returned."""
        self._soon.append(callback)

    # ---- running -----------------------------------------------------------------------------------
    def run(self) -> None:
        self._running = True
        while self._running:
            self.turn(None)

    def stop(self) -> None:
        """End `run` after the current turn."""
        self._running = False
        self.call_soon(lambda: None)  # a stop from a signal handler's fd must not wait for the next event

    def turn(self, timeout: float | None) -> None:
        """Wait at most `timeout` seconds (None: for ever) for something to do, and do all that is due."""
        self._polls += 1
        self._removed.clear()
        patience, began = self._patience(timeout), self.clock()
        ready = self._epoll.poll(patience, max(1, len(self._registrations)))
        # what is due by now comes after all that has come by now; if a callback takes long, what comes meanwhile is heard first
        now = self.clock()
        late = 0.0 if patience is None else now - began - patience
        if late > NOTICED and now - late >= self._stood_still_at + SELDOM:
            self._stood_still_at = now
            # when it began is not known: of what was waited for some may have passed before
            self._put_off(late + min(patience or 0.0, late))
        for fd, events in ready:
            registration = self._registrations.get(fd)
            if registration is None:
                if fd not in self._removed:  # fetched before it was removed in this batch: nothing to do
                    self._replace_epoll()
            elif registration.since < self._polls and not registration.resting:
                self._dispatch(fd, registration, events)
        while self._timers and _is_due(self._timers[0][2], now):
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._guarded(callback, "a timer")
        later = self.clock()
        self._has_waited = later - now > NOTICED and not self._has_waited
        if self._has_waited:
            return
        until = later + SLICE
        for _ in range(len(self._soon)):
            self._guarded(self._soon.popleft(), "a soon-call")
            if self.clock() >= until:
                break  # the start of 500 apps must not make the guardian's ping wait: fds first, then the rest

    def close(self) -> None:
        """Close the epoll instance; registered fds stay open, they are their owners'."""
        self._registrations.clear()
        self._timers.clear()
        self._soon.clear()
        self._epoll.close()

    def _patience(self, timeout: float | None) -> float | None:
        if self._soon:
            return 0.0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return timeout
        until = max(0.0, self._timers[0][0] - self.clock())
        return until if timeout is None else min(timeout, until)

    def _put_off(self, seconds: float) -> None:
        """Give all that was waited for the time that it had left; a lazy call is for a moment, and not for a patience."""
        for _, _, timer in self._timers:
            if not timer.lazy:
                timer.deadline += seconds
        self._timers = [(timer.deadline, order, timer) for _, order, timer in self._timers]
        heapq.heapify(self._timers)
        self._guarded(lambda: self.on_stood_still(seconds), "going on after a standstill")

    def _dispatch(self, fd: int, registration: _Registration, events: int) -> None:
        try:
            registration.callback(events)
        except Exception:  # noqa: BLE001 - law 1: one bad callback must not take the brain down
            self._report("the callback of an fd failed")
            if self._registrations.get(fd) is registration:
                self._put_to_rest(fd, registration)
        else:
            registration.rest = _FIRST_REST

    def _guarded(self, callback: Callable[[], None], what: str) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - law 1: one bad callback must not take the brain down
            self._report(f"{what} failed")

    def _put_to_rest(self, fd: int, registration: _Registration) -> None:
        registration.resting = True
        try:
            self._epoll.unregister(fd)
        except OSError:  # closed under us
            self._replace_epoll()
        self._wake_later(fd, registration)

    def _wake_later(self, fd: int, registration: _Registration) -> None:
        def wake() -> None:
            if self._registrations.get(fd) is registration:
                registration.resting = False
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    self._register(fd, registration)

        self.call_later(registration.rest, wake)
        registration.rest = min(_LONGEST_REST, registration.rest * 2)

    def _register(self, fd: int, registration: _Registration) -> None:
        """Have the epoll wait for it, later if there is no room now; forget one for which that cannot be."""
        try:
            self._epoll.register(fd, registration.mask)
        except OSError as error:
            if error.errno not in NO_ROOM:
                del self._registrations[fd]
                raise
            self._report("no room to wait for an fd, trying again")
            registration.resting = True
            self._wake_later(fd, registration)

    def _replace_epoll(self) -> None:
        self._epoll.close()  # first: there may be no descriptor for another
        self._epoll = select.epoll()
        for fd, registration in list(self._registrations.items()):
            if not registration.resting:
                with contextlib.suppress(OSError):  # closed
                    self._register(fd, registration)


def _is_due(timer: Timer, now: float) -> bool:
    """Whether a timer is to be called, or was cancelled."""
    return timer.callback is None or timer.deadline <= now + (EARLY if timer.lazy else 0.0)

"""Guardian: the signals that it takes. Each wakes the loop and is read there; what it means is the loop's to know."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

from pyworker.protocol import run

# over the exec of an upgrade, which puts the default action in place of a handler
HELD_SIGNALS = frozenset({signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP})


class Signals:
    """Readable when a signal has come."""

    def __init__(self, *, foreground: bool) -> None:
        self._foreground = foreground
        self._at_a_terminal = False
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._came: list[int] = []  # not what the wake-up says: it has no room when hundreds of children end at once

    def fileno(self) -> int:
        return self._wake.fileno()

    def catch(self) -> None:
        """Take signals from here on, also those that were held until now."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        if self._foreground:  # each is an order, which the daemon is passed
            self._at_a_terminal = os.isatty(0)
            orders = run.orders(at_a_terminal=self._at_a_terminal)
        elif os.environ.get("NOTIFY_SOCKET"):  # a service manager's SIGHUP is a reload, not the end of a terminal
            orders = frozenset({signal.SIGTERM, signal.SIGHUP})
        else:
            orders = frozenset({signal.SIGTERM})
        for number in (signal.SIGCHLD, *orders):
            signal.signal(number, lambda number, _: self._came.append(number))
        for number in {signal.SIGHUP, signal.SIGINT, signal.SIGPIPE}.difference(orders):
            signal.signal(number, signal.SIG_IGN)
        # held over the exec of an upgrade, or since the command began; no child should begin with any of it held
        held = signal.valid_signals() if self._foreground else HELD_SIGNALS.union(orders)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def has_lost_its_terminal(self) -> bool:
        """Whether the terminal of a foreground pyworker was closed: SIGHUP says so then, and asks for no reload."""
        return self._at_a_terminal and not os.isatty(0)

    def read(self) -> list[int]:
        """Return the numbers of those that have come since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)
        came, self._came = self._came, []
        return came

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have those that may come wait: an exec would forget them."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

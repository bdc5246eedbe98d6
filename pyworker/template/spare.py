"""Template: one child forked ahead of need, so that a replacement does not wait for two forks of a large process.

It is parked right after the fork: it has an event loop, but no slot and no pipes, and nothing of the app has run in it.
The order and its fds reach it unread, as they came from the daemon; it then becomes a worker like any other. It leaves
when its end of the channel closes, and so with the template, however that ends.

What takes a fresh fork longest is that each page it touches is copied first. So the spare looks now and then which pages
the youngest worker has had copied, and has its own copied ahead.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable

from pyworker import failpoint
from pyworker.protocol import wire
from pyworker.unix.fds import Packet, recv_packet, send_packet, socketpair
from pyworker.unix.pages import copy_like
from pyworker.unix.process import is_gone, is_stopped, send_signal, set_name
from pyworker.unix.ready import ready
from pyworker.unix.title import set_title

CALM = 0.1  # seconds in which nobody has asked for a worker: a start or a reload is over
_MOST_CALM = 30.0  # ... after one that has ended by itself, doubled with each: something here may not bear to wait
_LEAVES_WITHIN = 1.0
_LOOKS = 0.1  # seconds until the spare looks at a worker's pages for the first time
_LATER = 4  # ... and how many times longer before each next look: what one answers first is learnt early
_MOST_COPIED = 16 << 20  # bytes


class Spares:
    """The template's side: has one spare at most. Used by one thread."""

    def __init__(self, fork: Callable[[], int], *, wanted: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._fork = fork
        self._wanted = wanted
        self._clock = clock
        self._lost = 0  # one after the other, without one that was needed in between
        self._due = clock() + CALM
        self._channel: socket.socket | None = None
        self.pid = 0  # of the one that is there
        self._pidfd = -1

    def fileno(self) -> int:
        """Return what becomes readable when the spare has ended; -1 without one."""
        return -1 if self._channel is None else self._channel.fileno()

    def wait_ms(self) -> float | None:
        """Return how long to wait before `make`; None when none is to be made."""
        if self._channel is not None or not self._wanted:
            return None
        return max(0.0, self._due - self._clock()) * 1000

    def make(self) -> socket.socket | None:
        """Fork one. Returns None in the template, also without room for one; in the child the channel to park on."""
        try:
            ours, theirs = socketpair()
        except OSError:
            self._count_lost()
            return None
        with contextlib.ExitStack() as unless_made:
            unless_made.callback(ours.close)
            pid = self._fork()
            if pid == 0:
                return theirs
            theirs.close()
            try:
                if pid < 0:
                    raise OSError(-pid, os.strerror(-pid))
                self._pidfd = os.pidfd_open(pid)
                if ready(ours.fileno(), 0):  # it has ended: the number may be another's by now
                    os.close(self._pidfd)
                    raise ProcessLookupError(pid)
            except OSError:  # whoever is needed will be forked when it is; one whose channel closes leaves
                self._count_lost()
                return None
            unless_made.pop_all()
        self._channel, self.pid = ours, pid
        return None

    def hand(self, packet: Packet) -> int:
        """Give the spare its order; return its pid, 0 when there is none who can take it."""
        self._due = self._clock() + CALM
        if self._channel is None:
            return 0
        pid, taken = self.pid, False
        if is_stopped(pid):  # it would take the order and never carry it out
            send_signal(self._pidfd, signal.SIGKILL)
        else:
            with contextlib.suppress(OSError):
                taken = send_packet(self._channel, packet.data, packet.fds)
        self._forget()
        self._lost = 0
        return pid if taken else 0

    def end_stopped(self) -> None:
        """End a spare that somebody has stopped (SIGSTOP): its end shows as that of any other."""
        if self._channel is not None and is_stopped(self.pid):
            send_signal(self._pidfd, signal.SIGKILL)

    def ended(self) -> None:
        """The spare has gone (killed, out of memory): another one is made, the later the more often this happens."""
        self._forget()
        self._count_lost()

    def close(self) -> None:
        """Send the spare away and wait until it is gone: nothing of a template outlives it."""
        if self._channel is None:
            return
        self._channel.close()
        if not is_gone(self._pidfd, _LEAVES_WITHIN):
            send_signal(self._pidfd, signal.SIGKILL)
            is_gone(self._pidfd, _LEAVES_WITHIN)
        self._forget()

    def _count_lost(self) -> None:
        self._lost += 1
        self._due = self._clock() + min(_MOST_CALM, CALM * 2 ** min(self._lost, 20))

    def _forget(self) -> None:
        if self._channel is not None:
            self._channel.close()
            os.close(self._pidfd)
            self._channel, self._pidfd = None, -1


def name_spare(app: str, generation: int) -> None:
    """Say what this process is, to ps."""
    set_name(f"spare {app}")
    set_title(f"pyworker spare {app} (generation {generation})")


def park(channel: socket.socket, model: int) -> Packet | None:
    """Wait in the child for an order; None when the template is gone or has no use for it any more.

    `model`: the worker whose pages are looked at, 0 for none.
    """
    failpoint.hit("spare.park")
    room = _MOST_COPIED if model else 0
    looks = _LOOKS
    with contextlib.closing(channel):
        while True:
            try:
                packet = recv_packet(channel, wire.MAX_MESSAGE, 5)
            except OSError:
                return None
            if packet is not None:
                return packet if packet.data else None
            if not ready(channel.fileno(), select.POLLIN, looks if room else None):
                looks *= _LATER
                try:
                    room -= copy_like(model, room)
                except OSError:
                    room = 0  # not here

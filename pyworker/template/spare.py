"""Template: one child forked ahead of need, so that a replacement does not wait for two forks of a large process.

It is parked right after the fork: it has an event loop, but no slot and no pipes, and nothing of the app has run in it.
The order and its fds reach it unread, as they came from the daemon; it then becomes a worker like any other. It leaves
when its end of the channel closes, and so with the template, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable

from pyworker.protocol import wire
from pyworker.unix.fds import Packet, recv_packet, send_packet
from pyworker.unix.process import set_name
from pyworker.unix.title import set_title

CALM_MS = 100  # nobody has asked for a worker for this long: a start or a reload is over
_MAX_LOST = 3  # spares that ended by themselves, one after the other: something here cannot bear to wait
_LEAVES_IN_MS = 1000


class Spares:
    """The template's side: has one spare at most. Used by one thread."""

    def __init__(self, fork: Callable[[], int], *, wanted: bool) -> None:
        self._fork = fork
        self._lost = 0 if wanted else _MAX_LOST
        self._channel: socket.socket | None = None
        self._pid = 0

    def fileno(self) -> int:
        """Return what becomes readable when the spare has ended; -1 without one."""
        return -1 if self._channel is None else self._channel.fileno()

    @property
    def missing(self) -> bool:
        return self._channel is None and self._lost < _MAX_LOST

    def make(self) -> socket.socket | None:
        """Fork one. Returns None in the template; in the child the channel to park on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = self._fork()
        if pid == 0:
            ours.close()
            return theirs
        theirs.close()
        if pid < 0:  # no room for a process now: whoever is needed will be forked when it is
            ours.close()
            self._lost += 1
            return None
        ours.setblocking(False)
        self._channel, self._pid = ours, pid
        return None

    def hand(self, packet: Packet) -> int:
        """Give the spare its order; return its pid, 0 when there is none who can take it."""
        if self._channel is None:
            return 0
        pid = self._pid
        try:
            taken = send_packet(self._channel, packet.data, packet.fds)
        except OSError:
            taken = False
        self._forget()
        if not taken:
            return 0
        self._lost = 0
        return pid

    def ended(self) -> None:
        """The spare has gone (killed, out of memory): another one is made, unless this goes on."""
        self._forget()
        self._lost += 1

    def close(self) -> None:
        """Send the spare away and wait until it is gone: nothing of a template outlives it."""
        if self._channel is None:
            return
        try:
            pidfd = os.pidfd_open(self._pid)
        except OSError:
            self._forget()
            return
        self._forget()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_LEAVES_IN_MS)
        os.close(pidfd)

    def _forget(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def name_spare(app: str, generation: int) -> None:
    """Say what this process is, to ps."""
    set_name(f"spare {app}")
    set_title(f"pyworker spare {app} (generation {generation})")


def park(channel: socket.socket) -> Packet | None:
    """Wait in the child for an order; None when the template is gone or has no use for it any more."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    with contextlib.closing(channel):
        while True:
            try:
                packet = recv_packet(channel, wire.MAX_MESSAGE, 5)
            except OSError:
                return None
            if packet is not None:
                return packet if packet.data else None
            poll.poll()

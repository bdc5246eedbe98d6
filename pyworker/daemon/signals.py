"""Daemon: signals as calls of its loop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Collection

from pyworker.daemon.loop import READ, Loop

_KEPT: list[socket.socket] = []  # as long as the process lives


def catch(loop: Loop, numbers: Collection[int], handle: Callable[[int], None]) -> None:
    """Have `handle` called in the loop with each of these that comes, also with those that were held until now."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def arrived(_: int) -> None:
        for number in ours.recv(64):
            handle(number)

    loop.add(ours.fileno(), READ, arrived)
    _KEPT.extend((ours, theirs))

"""Daemon: signals: those that come, as calls of its loop; those that are sent to a process of an app's."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from pyworker.daemon.loop import READ, Loop
from pyworker.daemon.owner import user_name
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.app import App
    from pyworker.daemon.brain import Brain

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


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Have those that may come wait for the guardian that this process becomes: an exec forgets who takes them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def send(brain: Brain, app: App, pidfd: int, number: int, *, whose: str, pid: int, kill: str = "kill -9") -> bool:
    """Signal a process; where that is not allowed, note what ends it, and return False. `whose` begins the note."""
    try:
        process.send_signal(pidfd, number)
    except PermissionError:  # it has become another user (sudo, say), or this daemon is a root without CAP_KILL
        uid = process.owner(pid)
        runs = f"runs as {user_name(uid)}" if uid is not None else "is another user's"
        text = f"{whose} {runs}, and this daemon may not signal it (CAP_KILL): as root, {kill} {pid} ends it"
        brain.note(app, text)
        return False
    return True

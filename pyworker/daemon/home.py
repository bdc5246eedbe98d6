"""Daemon: its home, which somebody may remove, in whole or in part, while it runs."""

from __future__ import annotations

import os

from pyworker.daemon.control import ControlServer
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import LAZY, Loop
from pyworker.daemon.requests.desk import Desk
from pyworker.protocol.inherited import CONTROL, LOCK
from pyworker.protocol.names import CONTROL_SOCKET, LOCK_FILE
from pyworker.unix import stderr
from pyworker.unix.files import is_missing, listen_unix, lock_directory, open_home, same_file


def open_again(home: str, store: FdStore) -> int:
    """Open the home, made again where it was removed: else no daemon would start, and nobody could reach what runs.

    -1: another daemon was started there meanwhile. Its apps are not ours to start, and none that it knows are ours to end.
    """
    lock = store.get(LOCK)
    try:
        fd = open_home(home, create=False, file=(LOCK_FILE, lock) if lock is not None else None)
    except FileNotFoundError:
        fd = open_home(home, create=True)
    ours = os.fstat(lock) if lock is not None else None
    if ours is None or same_file(fd, LOCK_FILE, ours.st_dev, ours.st_ino):
        return fd
    # it may be a new folder, which nobody has locked: our guardian has the one that was removed
    if lock_directory(fd) or is_missing(fd, LOCK_FILE):
        return fd
    os.close(fd)
    return -1


def keep_socket(loop: Loop, store: FdStore, home_fd: int, server: ControlServer) -> None:
    """control.sock is made again when somebody has removed it. The lock is ours: whatever else is there is not."""

    def identity() -> tuple[int, int] | None:
        try:
            found = os.stat(CONTROL_SOCKET, dir_fd=home_fd, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    known = identity()

    def look() -> None:
        nonlocal known
        loop.call_lazily(LAZY, look)
        if known is not None and same_file(home_fd, CONTROL_SOCKET, *known):
            return
        try:
            listener = listen_unix(home_fd, CONTROL_SOCKET)
        except OSError:  # a full disk, or the whole home is gone
            return
        store.put(CONTROL, os.dup(listener.fileno()))
        server.listen_on(listener)
        known = identity()
        stderr.say("daemon", "control.sock had been removed: made again")

    look()


def leave_with_the_home(desk: Desk, home_fd: int) -> None:
    """End when the home is removed and nothing runs: no command finds us any more, and none can start anything."""

    def is_removed() -> bool:
        found = os.fstat(home_fd)
        try:  # there are file systems that count no links
            return not found.st_nlink and not os.path.samestat(found, os.stat(desk.home))
        except OSError:
            return True

    def look() -> None:
        at_rest = all(app.closed and not app.running for app in desk.brain.apps.values()) and not desk.waiting
        if not at_rest or desk.preparing() or not is_removed():
            desk.brain.loop.call_lazily(LAZY, look)
        elif not desk.shutting_down:
            desk.shutting_down = True
            desk.on_shutdown()

    look()

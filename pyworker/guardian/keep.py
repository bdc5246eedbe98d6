"""Guardian: what it lets be stored and removed, what of it the logger must be told, and what must not outlive it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

from pyworker.guardian.store import FdStore
from pyworker.protocol import inherited
from pyworker.protocol.wire import WireError
from pyworker.unix.fds import at_end

# the daemon can neither replace nor remove these
FIXED_NAMES = frozenset({inherited.LOCK, inherited.LIFELINE, inherited.RUN})


def put(store: FdStore, names: tuple[str, ...], received: list[int]) -> None:
    """Store fds, which are taken out of `received`. WireError: none of them is."""
    if len(names) != len(received):
        raise WireError(f"store: {len(names)} names with {len(received)} fds")
    for name in names:
        if name in FIXED_NAMES or not inherited.may_be_stored(name):  # of a later version's kind, maybe: kept, too
            raise WireError(f"store: not a name that can be stored: {name!r:.60}")
    for name in names:
        store.put(name, received.pop(0))


def drop(store: FdStore, names: tuple[str, ...]) -> list[str]:
    """Remove fds; return the names of those that were there."""
    return [name for name in names if name not in FIXED_NAMES and store.remove(name)]


def drop_closed(store: FdStore, names: tuple[str, ...]) -> tuple[str, ...]:
    """Remove pipes that the logger has read to their end; return the names of those.

    Its word may be about a pipe that had this name before: the one in the store now is asked.
    """

    def is_closed(name: str) -> bool:
        fd = store.get(name)
        return fd is not None and is_for_logger(name) and at_end(fd)

    return tuple(name for name in names if is_closed(name) and store.remove(name))


def is_for_logger(name: str) -> bool:
    """Whether the logger is handed what is stored under this name."""
    parsed = inherited.parse_fd_name(name)
    return parsed is not None and parsed.kind in inherited.LOGGER_KINDS


def free(store: FdStore) -> None:
    """Let go of lock and ports for all that have copies of them: one who has is never going to close them."""
    for name in store:
        fd, parsed = store.get(name), inherited.parse_fd_name(name)
        assert fd is not None
        with contextlib.suppress(OSError):
            if name == inherited.LOCK:
                fcntl.flock(fd, fcntl.LOCK_UN)
            elif parsed is not None and parsed.kind == "listen":
                with socket.socket(fileno=os.dup(fd)) as listener:
                    listener.shutdown(socket.SHUT_RD)

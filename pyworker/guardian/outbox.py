"""Guardian: what is still to be said to the daemon or the logger. Never blocks, keeps the order.

A Restore waits as names, not as fds: what was removed from the store meanwhile is not sent, and no number of a
closed fd can be sent by mistake.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from pyworker.guardian.store import FdStore
from pyworker.protocol import store as protocol
from pyworker.protocol import wire
from pyworker.unix import fds

MAX_WAITING = 10_000  # messages; more than this and the least important ones are dropped
Flushed = Literal["done", "full", "later", "gone"]


class Outbox:
    """A queue of messages and of names whose fds are to be restored."""

    def __init__(self, store: FdStore) -> None:
        self._store = store
        self._queue: deque[Any] = deque()  # a message, or a list of names

    def __len__(self) -> int:
        return len(self._queue)

    def say(self, message: Any, *, droppable: bool = False) -> None:
        if not droppable or len(self._queue) < MAX_WAITING:
            self._queue.append(message)

    def restore(self, names: Iterable[str]) -> None:
        """Queue Restore messages for these names."""
        rest = list(names)
        while rest:
            self._queue.append(rest[: protocol.BATCH])
            rest = rest[protocol.BATCH :]

    def clear(self) -> None:
        """Forget everything: the peer is another process from here."""
        self._queue.clear()

    def flush(self, channel: socket.socket) -> Flushed:
        """Send what can be sent. "full": wait until writable; "later": too many fds in flight, try again in a moment."""
        while self._queue:
            message = self._queue[0]
            numbers: list[int] = []
            if isinstance(message, list):
                found = self._store.held(message)
                numbers, message = list(found.values()), protocol.Restore(tuple(found)) if found else None
            if message is not None:
                try:
                    if not fds.send_packet(channel, wire.encode(message), numbers):
                        return "full"
                except OSError as error:
                    if error.errno in (errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS):
                        return "later"
                    self._queue.clear()
                    return "gone"
            self._queue.popleft()
        return "done"

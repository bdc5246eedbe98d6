"""Worker: connections of which nothing has arrived yet. They cost one entry each in an epoll that the event loop watches.

A worker is woken when a connection is made, which is often before its request is there. A transport of the loop for so
short a time would be a fifth of what the whole connection costs.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection

    Waiting = tuple[Connection, socket.SocketType]

_ONCE = select.EPOLLIN | select.EPOLLONESHOT  # what has left the lobby is never reported again, whoever has it then
_AT_ONCE = 16  # connections between two turns of the loop


class Lobby:
    """Lives in one event loop. `arrived(connection, sock)`: there is something to read, or the client has left."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, arrived: Callable[[Connection, socket.SocketType], None]
    ) -> None:
        self._loop = loop
        self._arrived = arrived
        self._waiting: dict[int, Waiting] = {}
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._on_readable)

    def add(self, connection: Connection, sock: socket.SocketType) -> None:
        """Let it wait; the socket stays the caller's. Raises OSError when the kernel has no memory for it."""
        fd = sock.fileno()
        self._epoll.register(fd, _ONCE)
        self._waiting[fd] = connection, sock

    def take_late(self, now: float) -> list[Waiting]:
        """Take out those whose time is over, for the caller to close."""
        late = [(fd, each) for fd, each in self._waiting.items() if each[0].deadline <= now]
        for fd, _ in late:
            del self._waiting[fd]
        return [each for _, each in late]

    def close(self) -> list[Waiting]:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        left = list(self._waiting.values())
        self._waiting.clear()
        return left

    def _on_readable(self) -> None:
        if self._epoll.closed:
            return  # in the same turn of the loop
        for fd, _ in self._epoll.poll(0, _AT_ONCE):
            waiting = self._waiting.pop(fd, None)
            if waiting is not None:
                self._arrived(*waiting)

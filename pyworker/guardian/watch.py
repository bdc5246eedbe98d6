"""Guardian: the one place that blocks. fd -> handler, level-triggered."""

from __future__ import annotations

import select
from collections.abc import Callable

Handler = Callable[[], None]


class Watch:
    """One epoll. An fd is unwatched before it is closed: the daemon holds copies, and epoll goes by the file."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[int, Handler]] = {}

    def add(self, fd: int, handler: Handler) -> None:
        """Call the handler whenever there is something to be read."""
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = (select.EPOLLIN, handler)

    def remove(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def until_writable(self, fd: int, *, wanted: bool) -> None:
        """Have the fd's handler called also when there is room to write, or not any more."""
        before, handler = self._handlers[fd]
        mask = select.EPOLLIN | (select.EPOLLOUT if wanted else 0)
        if mask != before:
            self._epoll.modify(fd, mask)
            self._handlers[fd] = (mask, handler)

    def wait(self, timeout: float) -> list[Handler]:
        """Return the handlers of what is ready, after `timeout` seconds at the latest. Any may bear a call for nothing."""
        return [self._handlers[fd][1] for fd, _ in self._epoll.poll(timeout) if fd in self._handlers]

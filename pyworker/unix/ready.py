"""Whether a descriptor can be read or written, at this moment or before long."""

from __future__ import annotations

import select
from types import ModuleType
from typing import Any


def _of_python() -> ModuleType:
    """Return `select` as Python comes with it. A program that has green threads takes a part away (gevent, eventlet)."""
    spec: Any = select.__spec__
    if hasattr(select, "epoll"):
        return select
    module: ModuleType = spec.loader.create_module(spec)
    spec.loader.exec_module(module)
    return module


# kept: what is there now may be gone later, with the import of an app
new_poll: type[select.poll] = _of_python().poll
Epoll: type[select.epoll] = _of_python().epoll


class _BySelect:
    """A poll for programs that have none (eventlet's): made of their `select`, which lets their other green threads run."""

    def __init__(self) -> None:
        self._wanted: dict[int, int] = {}

    def register(self, file: Any, events: int) -> None:
        self._wanted[file if isinstance(file, int) else file.fileno()] = events

    def poll(self, ms: float | None = None) -> list[tuple[int, int]]:
        reads, writes = ([fd for fd, asked in self._wanted.items() if asked & kind] for kind in _KINDS)
        readable, writable, _ = select.select(reads, writes, [], None if ms is None else ms / 1000)
        kinds = ((readable, select.POLLIN), (writable, select.POLLOUT))
        return [(fd, sum(kind for found, kind in kinds if fd in found)) for fd in {*readable, *writable}]


_KINDS = (select.POLLIN, select.POLLOUT)


def green_poll() -> Any:
    """Return a poll for a thread of the program's kind: a green one waits so that the others run."""
    return getattr(select, "poll", _BySelect)()


def ready(fd: int, events: int, within: float | None = 0.0) -> int:
    """Return which of these events (POLLIN, POLLOUT) it has, or POLLHUP and POLLERR, which are always told; 0: none.

    `within`: how many seconds it is waited for, None: until there is one.
    """
    poll = new_poll()
    poll.register(fd, events)
    return next((found for _, found in poll.poll(within if within is None else within * 1000)), 0)

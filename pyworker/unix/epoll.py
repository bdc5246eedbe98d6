"""Epolls of this process, whoever made them."""

from __future__ import annotations

import contextlib
import os
import select

from pyworker.unix.procfs import read_all
from pyworker.unix.ready import Epoll


def registered() -> dict[int, set[int]]:
    """Return each epoll of this process with the fds registered in it."""
    found: dict[int, set[int]] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own fd is closed by now
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                found[int(name)] = waiting_for(int(name))
    return found


def waiting_for(epoll_fd: int) -> set[int]:
    """Return the fds that are registered in an epoll; none when the number stands for something else (by now)."""
    try:
        content = read_all(f"/proc/self/fdinfo/{epoll_fd}")
    except OSError:
        return set()
    return {int(line.split()[1]) for line in content.splitlines() if line.startswith(b"tfd:")}


def unregister_everywhere(fds: set[int], *, silently: bool = False) -> None:
    """Take fds out of every epoll of this process: no event loop sees them any more.

    `silently`: they stay registered, so that the loop can take them out itself. A hang-up is still told, once.
    """
    for epoll_fd, watched in registered().items():
        with contextlib.suppress(OSError), contextlib.closing(Epoll.fromfd(os.dup(epoll_fd))) as epoll:
            for fd in watched & fds:
                with contextlib.suppress(OSError):
                    if silently:
                        epoll.modify(fd, select.EPOLLONESHOT)
                    else:
                        epoll.unregister(fd)

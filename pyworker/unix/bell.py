"""A file that is rung by writing a byte to it: whoever watches it wakes up. Nobody needs to know who that is."""

from __future__ import annotations

import os
import select

from pyworker.unix import inotify
from pyworker.unix.ready import ready


def ring(fd: int) -> None:
    """Wake all who watch the file behind this fd. Never waits."""
    os.pwrite(fd, b".", 0)


def watch(path: str) -> int:
    """Return a non-blocking, close-on-exec fd that is readable after each ring (inotify).

    Rings that nobody has taken yet count as one: the queue cannot grow. OSError when there is no more to be had
    (fs.inotify.max_user_instances), or the kernel does not offer it.
    """
    fd = inotify.open_inotify()
    try:
        inotify.watch_writes(fd, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def take(fd: int) -> None:
    """Read away the rings so far."""
    # asked first: a program of eventlet's has an os.read that waits
    if ready(fd, select.POLLIN):
        os.read(fd, 4096)

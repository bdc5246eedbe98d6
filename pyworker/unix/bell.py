"""A file that is rung by writing a byte to it: whoever watches it wakes up. Nobody needs to know who that is."""

from __future__ import annotations

import contextlib
import ctypes
import os

_IN_MODIFY = 0x2
_libc = ctypes.CDLL(None, use_errno=True)


def ring(fd: int) -> None:
    """Wake all who watch the file behind this fd. Never waits."""
    os.pwrite(fd, b".", 0)


def watch(path: str) -> int:
    """Return a non-blocking, close-on-exec fd that is readable after each ring (inotify).

    Rings that nobody has taken yet count as one: the queue cannot grow. OSError when there is no more to be had
    (fs.inotify.max_user_instances), or the kernel does not offer it.
    """
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if _libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, os.strerror(number), path)
    return fd


def take(fd: int) -> None:
    """Read away the rings so far."""
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 4096):
            pass

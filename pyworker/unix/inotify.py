"""inotify(7): folders that say what changed in them. Thin; which folders and which names is the caller's business."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple, NoReturn

_EVENT = struct.Struct("iIII")
_MODIFY = 0x2
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_ONLYDIR = 0x01000000
IS_DIR, OVERFLOW, IGNORED = 0x40000000, 0x4000, 0x8000
_libc = ctypes.CDLL(None, use_errno=True)


class Changed(NamedTuple):
    """A name in a watched folder was written, moved, made or deleted. `watch` -1: some were lost (OVERFLOW)."""

    watch: int
    flags: int
    name: str

    @property
    def is_folder(self) -> bool:
        return bool(self.flags & IS_DIR)

    @property
    def is_new(self) -> bool:
        return bool(self.flags & (_CREATE | _MOVED_TO))

    @property
    def is_moved_away(self) -> bool:
        return bool(self.flags & _MOVED_FROM)


def open_inotify() -> int:
    """Return a new inotify descriptor: non-blocking, close-on-exec."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    return fd if fd >= 0 else _fail("inotify")


def watch(fd: int, folder: str) -> int:
    """Watch a folder itself (not what is below it); return its number. Raises OSError: ENOSPC is the user's limit."""
    mask = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR
    number: int = _libc.inotify_add_watch(fd, os.fsencode(folder), mask)
    return number if number >= 0 else _fail(folder)


def unwatch(fd: int, number: int) -> None:
    """Watch a folder no more; that it is gone by now is no error."""
    _libc.inotify_rm_watch(fd, number)


def watch_writes(fd: int, path: str) -> None:
    """Watch one file for writes to it."""
    if _libc.inotify_add_watch(fd, os.fsencode(path), _MODIFY) < 0:
        _fail(path)


def read(fd: int) -> list[Changed]:
    """Return what has changed; empty when nothing has."""
    try:
        data = os.read(fd, 64 * 1024)
    except BlockingIOError:
        return []
    found = []
    at = 0
    while at < len(data):
        number, flags, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        found.append(Changed(number, flags, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
        at += length
    return found


def _fail(path: str) -> NoReturn:
    errno = ctypes.get_errno()
    raise OSError(errno, os.strerror(errno), path)

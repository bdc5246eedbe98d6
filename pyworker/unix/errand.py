"""A call that a disk may hold up for ever, made by a thread: who has others to see to waits only as long as it likes.

No signal ends such a call, and its thread keeps the process from ending until the disk answers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_OURS = frozenset((b"tmpfs", b"ramfs", b"devtmpfs", b"overlay", b"btrfs", b"zfs", b"bcachefs", b"ubifs"))


class Errand(Generic[T]):
    """A call that has begun; made here and at once when no thread is to be had."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._found: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="errand")
        try:
            self._thread.start()
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except BaseException as error:  # noqa: BLE001  who asked is to have it
            self._error = error

    def is_over(self, seconds: float = 0.0) -> bool:
        """Whether it is done, or is within so many seconds."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """Return what the call has returned, or raise what it has raised; only once it is over."""
        if self._error is not None:
            raise self._error
        return self._found[0]


def is_local(found: os.stat_result) -> bool:
    """Whether a file is on a disk of the machine: else it is a server's, or another program's (FUSE), which may not answer."""
    if os.major(found.st_dev):  # a block device
        return True
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}".encode()
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            for line in mounts:
                fields = line.split(b" ")
                if fields[2] == device:
                    return fields[fields.index(b"-") + 1] in _OURS
    except OSError:
        return False
    return True  # a subvolume of btrfs

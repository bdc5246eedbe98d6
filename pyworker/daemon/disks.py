"""Daemon: the logs of apps, whose disk may not answer (a network's): who asks waits for a moment, and is told by an OSError.

The home, which holds them as long as no `logs.file` is set, is on a disk without which nothing goes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

from pyworker.unix.errand import Errand

PATIENCE = 1.0  # seconds

T = TypeVar("T")
spared: set[str] = set()  # folders whose disk is asked without a thread: that of the home's logs
_late: dict[str, Errand[Any]] = {}  # by folder: a call that its disk has not answered yet


def ask(path: str, call: Callable[[], T]) -> T:
    """Return what a call returns that reads or removes this file; raise what it raises, or OSError when it does not return."""
    folder = os.path.dirname(path)
    if folder in spared:
        return call()
    if not some_are_late() or folder not in _late:
        errand = Errand(call)
        # of the many folders of one disk each is asked: a boot must not take as many seconds
        if errand.is_over(PATIENCE / (1 + len(_late))):
            return errand.result()
        _late[folder] = errand
    raise OSError(errno.ETIMEDOUT, "its disk does not answer", path)


def some_are_late() -> bool:
    for folder in [folder for folder, errand in _late.items() if errand.is_over()]:
        del _late[folder]
    return bool(_late)

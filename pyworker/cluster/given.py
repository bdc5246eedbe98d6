"""The channel that this process was born with: `pyworker.process` takes it here.

A child of Node or of `child_process.fork` finds its number in NODE_CHANNEL_FD, and nobody may find it there again: its
own children would take it for theirs. A worker under the daemon is given it by its runtime, without a variable, and may
have imported the app (in the template) before that: who asked too early is called when it comes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pyworker.protocol.node import CHANNEL_FD, SERIALIZATION

_fd = -1
_early: list[Callable[[], None]] = []


def give(fd: int) -> None:
    """Runtime: from here on the channel is this descriptor."""
    global _fd
    _fd = fd
    early = list(_early)
    _early.clear()
    for callback in early:
        callback()


def take() -> int:
    """Return the descriptor, which is the caller's from here on; -1 when there is none (or it was taken)."""
    global _fd
    fd, _fd = _fd, -1
    text = os.environ.pop(CHANNEL_FD, "")
    os.environ.pop(SERIALIZATION, None)
    if fd >= 0:
        return fd
    return int(text) if text.isascii() and text.isdigit() else -1


def when_given(callback: Callable[[], None]) -> None:
    """Call back when a channel is given after all."""
    _early.append(callback)

"""The channel that a worker under the daemon is born with: its runtime gives it, `pyworker.process` takes it.

Not by NODE_CHANNEL_FD: every child of a worker that never imports pyworker.process would find the variable and take the
descriptor for its own. A worker may have imported the app (in the template) before: who asked too early is called.
"""

from __future__ import annotations

from collections.abc import Callable

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
    return fd


def when_given(callback: Callable[[], None]) -> None:
    """Call back when a channel is given after all."""
    _early.append(callback)

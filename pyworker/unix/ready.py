"""Whether a descriptor can be read or written at this moment. Nothing is waited for."""

from __future__ import annotations

import select

_new_poll = select.poll  # the import of an app may take it away: eventlet.monkey_patch()


def ready(fd: int, events: int) -> int:
    """Return which of these events (POLLIN, POLLOUT) it has, or POLLHUP and POLLERR, which are always told; 0: none."""
    poll = _new_poll()
    poll.register(fd, events)
    return next((found for _, found in poll.poll(0)), 0)

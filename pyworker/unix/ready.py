"""Whether a descriptor can be read or written, at this moment or before long."""

from __future__ import annotations

import select

new_poll = select.poll  # the import of an app may take it away: eventlet.monkey_patch()


def ready(fd: int, events: int, within: float | None = 0.0) -> int:
    """Return which of these events (POLLIN, POLLOUT) it has, or POLLHUP and POLLERR, which are always told; 0: none.

    `within`: how many seconds it is waited for, None: until there is one.
    """
    poll = new_poll()
    poll.register(fd, events)
    return next((found for _, found in poll.poll(within if within is None else within * 1000)), 0)

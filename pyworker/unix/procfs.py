"""Files of the kernel's (/proc, /sys), which have no size before they are read."""

from __future__ import annotations

import os


def read_all(path: str) -> bytes:
    """Return all of it; OSError as of `open`, in whose place an app may have put something of its own. Without a file object,
    which would cost as much again as the reading.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    content = b""
    try:
        while part := os.read(fd, 1 << 16):
            content += part
    finally:
        os.close(fd)
    return content

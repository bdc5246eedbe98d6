"""Opens files that somebody else has named, or may have put there, root for its users, too: what is no file is not even opened."""

from __future__ import annotations

import errno
import os
import stat


def opener(path: str, flags: int) -> int:
    """For `open`. IsADirectoryError for a folder, OSError for a pipe, which would wait, or a device: a watchdog that
    somebody opens restarts the machine.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(place).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        return os.open(f"/proc/self/fd/{place}", flags | os.O_NONBLOCK)  # a lease on it is not waited for, either
    finally:
        os.close(place)

"""What the C library calls an error: glibc and musl have different words."""

from __future__ import annotations

import errno
import os

TOO_MANY_OPEN_FILES = os.strerror(errno.EMFILE)
ADDRESS_IN_USE = os.strerror(errno.EADDRINUSE)

"""A fork that Python is not told of."""

from __future__ import annotations

import ctypes

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: keeps the GIL, which the child must have


def bare_fork() -> int:
    """Fork a process with one thread; return 0 in the child, its pid in the parent, -errno.

    The C library's own handlers run, Python's do not (`os.register_at_fork`, the locks of `threading` and `logging`): for a
    child that only forks again, by `os.fork`, and ends by `os._exit`.
    """
    pid: int = _libc.fork()
    return pid if pid >= 0 else -ctypes.get_errno()

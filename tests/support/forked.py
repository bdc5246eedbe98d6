"""A fork while another thread is in the middle of something."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager


def ends_well_while_held(held: AbstractContextManager[object], act: Callable[[], object]) -> bool:
    """Whether `act` returns in a child that is forked while a thread of ours has something; the child waits 30 s at most."""
    taken, forked = threading.Event(), threading.Event()

    def holding() -> None:
        with held:
            taken.set()
            forked.wait(30)

    thread = threading.Thread(target=holding)
    thread.start()
    taken.wait(30)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    forked.set()
    thread.join()
    return os.waitpid(pid, 0)[1] == 0

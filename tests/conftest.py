from __future__ import annotations

import contextlib
import ctypes
import signal
import time

import psutil
from hypothesis import settings

_SUBREAPER = 36

# An example that takes long on a busy machine is no failure: hypothesis allows 200 ms otherwise.
settings.register_profile("any machine", parent=settings.default, deadline=None)
settings.load_profile("any machine")

# Whoever runs the tests by `nohup make test &` has these ignored, and what a test starts would inherit that and never
# end at its Ctrl-C. A handler is not inherited: here they still do nothing, a child has the default.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

_interrupted = False


def pytest_keyboard_interrupt() -> None:
    """A test process has seconds for its end, then it is killed. What it had started comes to this one."""
    global _interrupted
    _interrupted = True
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def pytest_unconfigure() -> None:
    """After an interrupt nothing stays that the tests have started."""
    deadline = time.monotonic() + 5
    while _interrupted and time.monotonic() < deadline:
        left = psutil.Process().children(recursive=True)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=0.5)

"""Where Python could run the handler of a signal: at each step of a call, by a profiler's function in its place."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pyworker.unix.fds import close_all
from tests.support.descriptors import open_fds


class Rung(TimeoutError):
    """What such a handler raises, which `except OSError` takes for the system's."""


def ring() -> None:
    raise Rung


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: what a handler raises in a `__del__`, or in a callback of the collector, nobody gets."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def acts_at(step: int, call: Callable[[], object], act: Callable[[], object] = ring, *, within: str = "") -> bool:
    """Make the call, which `act` may end by Rung at this step of it (from 1 on); False when it has no so many.

    `within`: of the steps only those in files of this name.
    """
    left, ended = step, False

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and within in frame.f_code.co_filename:
            left -= 1
            if left == 0:
                act()

    before = sys.getprofile()
    with no_collection():
        try:
            sys.setprofile(profile)
            call()
        except Rung:
            ended = True
        finally:
            sys.setprofile(before)
    assert ended or left > 0 or act is not ring, "what the handler raised is lost"
    return left <= 0


def close_lost(before: set[int]) -> None:
    """Close what a step has lost beside what was open before: one descriptor at most, or the two of a pipe.

    It may be right after a function in C, where what that has returned has no name yet. CPython's own subprocess, open and
    socket lose it there, too; more than that is never lost.
    """
    if len(os.listdir("/proc/self/fd")) <= len(before) + 1:  # the listing's own
        return
    lost = open_fds() - before
    assert len(lost) <= 2, lost
    close_all([*lost])


@functools.cache
def keeps_locks() -> bool:
    """Whether this Python leaves a lock locked where a handler raises right after a `with` has taken it, as 3.14 does."""
    lock = threading.RLock()
    armed, kept = False, 0

    def raise_once(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Rung

    before = signal.signal(signal.SIGALRM, raise_once)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        with no_collection():
            for _ in range(100):
                try:
                    armed = True
                    while True:
                        with lock:
                            pass
                except Rung:
                    while lock._is_owned():  # type: ignore[attr-defined]  # what Condition asks it
                        lock.release()
                        kept += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return kept > 0

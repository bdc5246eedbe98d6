"""Where Python could run the handler of a signal: at each step of a call, by a profiler's function in its place."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from types import FrameType


class Rung(Exception):
    """What such a handler raises."""


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


def acts_at(step: int, call: Callable[[], object], act: Callable[[], object] = ring) -> bool:
    """Make the call, which `act` may end by Rung at this step of it (from 1 on); False when it has no so many."""
    left = step

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                act()

    before = sys.getprofile()
    with no_collection():
        try:
            sys.setprofile(profile)
            call()
        except Rung:
            pass
        finally:
            sys.setprofile(before)
    return left <= 0

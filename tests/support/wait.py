"""Waiting in tests: on a condition, with a deadline, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], deadline: float = 30.0, what: str | Callable[[], str] = "") -> T:
    """Poll every 5 ms until the predicate is true and return what it returned; fail after `deadline` seconds.

    what: what is waited for; a function where it says how far things have come by then.
    """
    end = time.monotonic() + deadline
    while True:
        found = predicate()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:g} s for {what() if callable(what) else what or predicate}")
        time.sleep(0.005)

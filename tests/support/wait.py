"""Waiting in tests: on a condition, with a deadline, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], deadline: float = 30.0, what: str | Callable[[], str] = "") -> T:
    """Poll until the predicate is true and return what it returned; fail after `deadline` seconds.

    At first every 5 ms, after a second every 50: to look costs, and the other tests want the processor too.
    what: what is waited for; a function where it says how far things have come by then.
    """
    began = time.monotonic()
    while True:
        found = predicate()
        if found:
            return found
        waited = time.monotonic() - began
        if waited > deadline:
            raise AssertionError(f"waited {deadline:g} s for {what() if callable(what) else what or predicate}")
        time.sleep(min(max(0.005, waited / 20), 0.05))

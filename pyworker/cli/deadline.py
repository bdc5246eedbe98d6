"""CLI: until when it waits for something."""

from __future__ import annotations

import time

from pyworker.policy.pulse import NOTICED

LOOK = 5.0  # seconds that one wait for an answer lasts, at most
TURN = 15.0  # ... or one look at who is there, or at how it is


class Deadline:
    """A time in which this process stood still (docker pause, a snapshot) is not counted: whom it waits for did, too.

    `look`: for how long at most `left` is not asked while this process runs.
    """

    def __init__(self, seconds: float, look: float = LOOK) -> None:
        self._look = look
        self._looked_at = time.monotonic()
        self._at = self._looked_at + seconds

    def left(self) -> float:
        """Return how many seconds are left; below 0: none."""
        now = time.monotonic()
        passed, self._looked_at = now - self._looked_at, now
        if passed > self._look + NOTICED:
            self._at += passed
        return self._at - now

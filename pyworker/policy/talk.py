"""How much a worker may say. Pure."""

from __future__ import annotations

from pyworker.record import mutable

A_SECOND = 50.0  # messages of one worker that become events; on its channel to us, more of them are a flood
AT_ONCE = 200.0


@mutable
class Allowance:
    """One worker's; spend one for each message."""

    at: float  # when it was last looked at
    left: float = AT_ONCE

    def is_left(self, now: float) -> bool:
        """True while one more may be said."""
        self.left = min(AT_ONCE, self.left + (now - self.at) * A_SECOND)
        self.at = now
        return self.left >= 1.0

    def spend(self, count: float = 1.0) -> None:
        self.left -= count

"""Daemon: the lines of an app's output that its log misses, as the loggers have told it."""

from __future__ import annotations

from pyworker.record import mutable

SHOWN = 3600.0  # seconds after the last line that could not be written, once they can be again


@mutable
class Drops:
    """Of one app. Each logger counts from its own start, and is known by its pid."""

    total: int = 0  # that are missing, as far as this daemon knows; see `lines`
    at: float = 0.0  # of the last news of that
    seen: int = 0  # of them, what the logger that runs now has counted
    logger: int = 0
    error: str = ""

    def note(self, now: float, logger: int, count: int, error: str) -> None:
        """Take the word of the logger with this pid: how many lines it could not write so far, and what it meets now."""
        seen = self.seen if self.logger == logger else 0  # what its predecessors have lost stays lost
        if count > seen:
            self.total = self.lines(now, logger) + count - seen
            self.at = now
        self.logger, self.seen, self.error = logger, count, error

    def lines(self, now: float, logger: int) -> int:
        """Return how many lines are missing, as long as that is news."""
        is_news = self.trouble(logger) or now < self.at + SHOWN
        return self.total if is_news else 0

    def trouble(self, logger: int) -> str:
        """Why lines are lost now, or the file grows past its size; what an earlier logger said is over."""
        return self.error if self.logger == logger else ""

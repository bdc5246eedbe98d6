"""When to check a worker's health, and what a row of answers means. All instants are the caller's monotonic clock.

Before its first success a worker is looked at often, so that nobody waits for a whole interval, but its failures count
no faster than one an interval. The verdict changes on `retries` failures in a row, and on one success; one that has not
passed for a while is late, which is worth a word to whoever waits.
"""

from __future__ import annotations

from typing import Literal

from pyworker.config.schema import HealthConfig
from pyworker.record import record, replace

EAGER = 0.5  # seconds between checks before the first success
LATE = 3.0  # seconds after `start_period` without a success

Verdict = Literal["unknown", "late", "ok", "failing"]


@record
class Health:
    """What is known of one worker's health."""

    since: float  # when it was ready to be checked
    next_at: float  # no check before this
    verdict: Verdict = "unknown"
    passed: bool = False  # once at least
    failures: int = 0  # counted ones in a row
    counted_at: float | None = None  # the last failure that counted
    reason: str = ""  # of the last failure; "" after a success

    @property
    def is_late(self) -> bool:
        """It has had the time to pass once, and has not."""
        return not self.passed and self.verdict in ("late", "failing")


def begin(now: float) -> Health:
    """Return the health of a worker that has not been checked: the first check is due at once."""
    return Health(since=now, next_at=now)


def after_check(
    health: Health, ok: bool | None, reason: str, *, started_at: float, now: float, config: HealthConfig
) -> Health:
    """Return the health after a check that was started then and has ended now. `ok` None: nobody could be asked."""
    if ok:
        return replace(
            health,
            next_at=_next(started_at, now, config.interval),
            verdict="ok",
            passed=True,
            failures=0,
            counted_at=None,
            reason="",
        )
    pause = config.interval if health.passed else min(EAGER, config.interval)
    failures, counted_at = health.failures, health.counted_at
    age = now - health.since
    warming_up = not health.passed and age < config.start_period
    if ok is False and not warming_up and (health.passed or counted_at is None or now - counted_at >= config.interval):
        failures, counted_at = failures + 1, now
    verdict = health.verdict
    if failures >= config.retries:
        verdict = "failing"
    elif verdict == "unknown" and age >= config.start_period + LATE:
        verdict = "late"
    return replace(
        health,
        next_at=_next(started_at, now, pause),
        verdict=verdict,
        failures=failures,
        counted_at=counted_at,
        reason=reason,
    )


def _next(started_at: float, now: float, pause: float) -> float:
    """One check every `pause`, but never one on the heels of another: a slow answer means a worker that is busy."""
    return max(started_at + pause, now + pause / 2)


def expects(expect: str, status: int) -> bool:
    """Return whether a status fits "2xx", "200" or "2xx,3xx"."""
    for pattern in expect.split(","):
        word = pattern.strip().lower()
        if len(word) == 3 and all(p in ("x", s) for p, s in zip(word, f"{status:03d}", strict=False)):
            return True
    return False

"""When a question for a sign of life says nothing about whoever was asked. Pure."""

from __future__ import annotations

LATE = 1.0  # seconds that a busy machine may make a tick late


def stood_still(late: float, tick: float) -> bool:
    """Whether the asker has stood still, and with it perhaps the whole machine, so that nobody had the time to answer.

    Its next tick may be a moment away: what has not answered by then would be counted twice at once.
    """
    return late > max(tick / 2, LATE)

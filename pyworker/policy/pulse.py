"""When a question for a sign of life says nothing about whoever was asked. Pure."""

from __future__ import annotations

NOTICED = 1.0  # seconds of standing still, of one process or the whole machine, that are told from a busy one


def stood_still(late: float, tick: float) -> bool:
    """Whether the asker has stood still, and with it perhaps the whole machine, so that nobody had the time to answer.

    Its next tick may be a moment away: what has not answered by then would be counted twice at once.
    """
    return late > max(tick / 2, NOTICED)

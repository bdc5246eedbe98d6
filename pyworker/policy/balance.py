"""Which worker gets the next connection. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def least_loaded(loads: Sequence[int], after: int) -> int:
    """Return the index of the smallest load; among equals the first behind `after`, so that ties go round."""
    least = min(loads)
    start = after + 1
    try:
        return loads.index(least, start)
    except ValueError:
        return loads.index(least)


def open_connections(handed: int, accepted: int, opened: int) -> int:
    """Return how many connections a worker has, those still on their way to it included.

    `handed`: given to it so far; `accepted` and `opened` are what it says itself: connections since its start, and
    those open now. Their difference is what it has closed, and changes by nothing else, so a connection on its way
    is never counted twice or not at all. A worker that lies is believed from 0 to `handed`.
    """
    return min(handed, max(0, handed - accepted + opened))

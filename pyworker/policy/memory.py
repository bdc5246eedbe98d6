"""How much memory a worker may have where all of pyworker together has a limit. Pure."""

from __future__ import annotations

OWN = 128 * 1024 * 1024  # bytes: guardian, daemon, logger, templates


def share(limit: int, workers: int) -> int:
    """Return a worker's equal share of `limit` bytes, with room for one more: a successor comes before its predecessor goes."""
    return max(limit - OWN, limit // 2) // (workers + 1)


def whole(worker: int, workers: int) -> int:
    """Return the limit of all together of which this is a worker's share."""
    return worker * (workers + 1) + OWN

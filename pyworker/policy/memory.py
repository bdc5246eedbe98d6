"""How much memory a worker may have where all of pyworker together has a limit. Pure."""

from __future__ import annotations

OWN = 128 * 1024 * 1024  # bytes: guardian, daemon, logger, templates


def share(limit: int, workers: int) -> int:
    """Return a worker's equal share of `limit` bytes, with room for one more: a successor comes before its predecessor goes."""
    return max(limit - OWN, limit // 2) // (workers + 1)

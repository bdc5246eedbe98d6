"""What numbers of the scoreboard come to: shares, quantiles out of a histogram. Pure.

The histogram is the scoreboard's: bucket i counts requests that took less than 2**i microseconds
(and not less than 2**(i-1)); the last one all that took longer. Every reader of the counters (ps, top, the dashboard,
metrics) works out its own interval: it keeps the last `Totals` and takes the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Totals(NamedTuple):
    """What an app has answered since it was started, by workers that are gone too. Only ever grows."""

    requests: int
    status: tuple[int, ...]  # 1xx to 5xx
    latency_sum_us: int
    latency: tuple[int, ...]

    def since(self, before: Totals) -> Totals:
        """Return what was added since `before`; no number is below 0 (the app may have been made anew)."""
        return Totals(
            max(0, self.requests - before.requests),
            _difference(self.status, before.status),
            max(0, self.latency_sum_us - before.latency_sum_us),
            _difference(self.latency, before.latency),
        )

    def over(self, seconds: float) -> tuple[float, float | None, float | None, float | None]:
        """Return what these make of so much time: requests/s, p50 and p99 in seconds, the share of errors."""
        p50, p99 = quantile(self.latency, 0.5), quantile(self.latency, 0.99)
        return self.requests / seconds, p50, p99, error_share(self.status)


def _difference(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(0, a - b) for a, b in zip(now, before, strict=True))


def totals_of(document: dict[str, Any]) -> Totals | None:
    """Return the totals in an app of `ps --json`, None when it has none (a daemon of another version)."""
    http = document.get("http")
    if not isinstance(http, dict):
        return None
    try:
        status = tuple(int(http["status"][f"{n}xx"]) for n in range(1, 6))
        total = int(document["requests"])
        return Totals(total, status, round(http["latency_sum_s"] * 1e6), tuple(map(int, http["latency_buckets"])))
    except (KeyError, TypeError, ValueError):
        return None


def memory_of(document: dict[str, Any]) -> int | None:
    """Return what an app or worker of a document takes of the machine's memory: PSS, RSS where that is not known."""
    share: int | None = document.get("pss_bytes")
    return document.get("rss_bytes") if share is None else share


def by_slot(app: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Return the workers of an app in a document by their slots: two during a reload."""
    slots: dict[int, list[dict[str, Any]]] = {}
    for worker in app.get("pool") or ():
        slots.setdefault(worker["worker"], []).append(worker)
    return slots


def bound(bucket: int) -> float:
    """Return the upper bound of a histogram bucket in seconds."""
    return float(2**bucket) / 1e6


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """Return the time, in seconds, within which this share of the requests was answered; None without requests.

    Inside a bucket the requests are taken to be spread evenly, so the answer is off by less than a factor of two.
    The last bucket has no upper bound: its lower one is the answer.
    """
    count = sum(buckets)
    if count <= 0:
        return None
    rank = share * count
    seen = 0
    for i, here in enumerate(buckets):
        if here and seen + here >= rank:
            low = bound(i - 1) if i else 0.0
            if i == len(buckets) - 1:
                return low
            return low + (bound(i) - low) * max(0.0, rank - seen) / here
        seen += here
    return bound(len(buckets) - 2)


def error_share(status: Sequence[int]) -> float | None:
    """Return the share (0 to 1) of answers 5xx among the final ones, None without any."""
    final = sum(status[1:])
    return status[4] / final if final else None

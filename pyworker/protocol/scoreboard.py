"""The scoreboard: one memfd per app, sealed against resizing; a row per worker of aligned 8-byte fields.

Row 0 is the app's own. Workers write their half of a row, the daemon the other; everybody reads, nobody trusts.
This file only knows the layout; the mmap is made by whoever holds the fd. All instants are CLOCK_MONOTONIC
nanoseconds (the same in every process of the machine), 0 = not yet.
"""

from __future__ import annotations

import enum

FIELD = 8
FIELDS = 64
ROW_SIZE = FIELD * FIELDS
ROWS = 2048  # 1 MiB; untouched pages of a memfd cost nothing
SIZE = ROW_SIZE * ROWS


class F(enum.IntEnum):
    """Fields of a worker's row, as index of an unsigned 64-bit number."""

    # written by the daemon
    SERIAL = 0  # 0 = free row
    # written by the worker
    IN_FLIGHT = 8  # requests being served
    OPEN = 9  # connections
    ACCEPTED = 10  # connections since the start
    REQUESTS = 11  # finished, health checks not counted
    STATUS_1XX = 12
    STATUS_2XX = 13
    STATUS_3XX = 14
    STATUS_4XX = 15
    STATUS_5XX = 16
    PROGRESS_AT = 17  # the loop came round
    OLDEST_AT = 18  # start of the oldest request in flight, 0 = none
    LATENCY_SUM_US = 20
    LEFT_AT = 21  # it accepts nothing any more
    LATENCY_0 = 24  # 32 buckets: bucket i counts requests of < 2**i microseconds; the last one all above


class AppF(enum.IntEnum):
    """Fields of row 0, written by the daemon: what must survive it."""

    RESTARTS = 0  # workers replaced after an unexpected death, since the app was started
    RELOADS = 1
    REQUESTS_GONE = 3  # sum of REQUESTS of workers that are gone
    STARTED_AT = 4  # wall clock, milliseconds since the epoch
    # sums of the same fields of workers that are gone, at the same places
    GONE_STATUS_1XX = 12  # ... to 16, 5xx
    GONE_LATENCY_SUM_US = 20
    GONE_LATENCY_0 = 24  # ... and 31 more


LATENCY_BUCKETS = 32


def row_slice(row: int) -> slice:
    """Return the slice of a memoryview cast to 8-byte numbers that is this row."""
    return slice(row * FIELDS, (row + 1) * FIELDS)

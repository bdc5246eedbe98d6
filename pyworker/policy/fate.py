"""When a foreground pyworker ends by itself, and with which exit code. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pyworker.record import record

FAILED = 1
UNUSABLE = 78  # EX_CONFIG: another try would fail in the same way
BY_SIGNAL = 128


@record
class AppEnd:
    """One app as it is now. `codes`: how each worker of a finished app ended; a signal counts as 128 + its number."""

    # failing: it is tried again; waits: in vain, for another (depends_on)
    state: Literal["going", "finished", "failing", "failed", "unusable", "waits"]
    codes: tuple[int, ...] = ()


def fate(apps: Iterable[AppEnd]) -> int | None:
    """Return the exit code once nothing goes on any more, else None.

    One failed app among others that serve is no end, nor is one that others wait for and that is tried again: readyz says it.
    A single job's exit code is passed on as it is; of several, any that is not 0 makes 1.
    """
    ends = list(apps)
    states = {end.state for end in ends}
    if "going" in states or states >= {"waits", "failing"}:
        return None
    if "unusable" in states:
        return UNUSABLE
    if states & {"failing", "failed", "waits"}:
        return FAILED
    codes = [code for end in ends for code in end.codes]
    if len(codes) == 1:
        return codes[0]
    return FAILED if any(codes) else 0

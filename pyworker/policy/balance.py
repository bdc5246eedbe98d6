"""Which worker gets the next connection, and when the process that hands them out is started. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Union

from pyworker.policy.restart import Record
from pyworker.record import record

READY_TIMEOUT = 10.0  # a dispatcher imports nothing of the app: one that is not ready after this is stuck
STOP_TIMEOUT = 5.0


# ---- which worker ------------------------------------------------------------------------------------
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


# ---- the dispatcher's own life -------------------------------------------------------------------------
@record
class DispatcherView:
    state: Literal["starting", "ready", "stopping"]
    since: float
    finished: bool = False  # it was told that nothing comes any more


@record
class StartDispatcher:
    pass


@record
class StopDispatcher:
    reason: str = ""  # not "": it is stuck, kill it


@record
class LookAt:
    at: float


def keep_dispatcher(
    dispatcher: DispatcherView | None, record: Record, *, needed: bool, now: float
) -> Iterator[Union[StartDispatcher, StopDispatcher, LookAt]]:
    """Have one while it is needed: started again at once after a death, later when it dies again and again."""
    if dispatcher is None:
        if needed:
            yield StartDispatcher() if now >= record.next_at else LookAt(record.next_at)
        return
    match dispatcher.state:
        case "starting":
            deadline = dispatcher.since + READY_TIMEOUT
            yield StopDispatcher(f"not ready within {READY_TIMEOUT:g} s") if now >= deadline else LookAt(deadline)
        case "stopping":
            deadline = dispatcher.since + STOP_TIMEOUT
            yield StopDispatcher("told to stop, and did not") if now >= deadline else LookAt(deadline)
            return
        case "ready":
            pass
    if not needed:
        yield StopDispatcher()

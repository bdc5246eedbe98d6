"""The life of one worker: states, what can happen, and the table that says what follows.

A worker's state changes here and nowhere else. A pair that cannot occur changes nothing, so that late messages of a
dying worker are harmless.

The diagram in docs/lifecycle.md is made from TABLE.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """What a worker is; each member differs from the others in what may happen next."""

    STARTING = "starting"  # asked for; not ready yet
    HELD = "held"  # ready, accepts nothing before Go (a canary and its siblings before the commit)
    OPENING = "opening"  # told to accept, has not answered yet
    READY = "ready"  # accepts
    UNHEALTHY = "unhealthy"  # accepts, but must be replaced
    DRAINING = "draining"  # accepts nothing any more, finishes what it has
    STOPPING = "stopping"  # has been sent the stop signal
    KILLED = "killed"  # has been sent SIGKILL
    STOPPED = "stopped"  # has ended

    # nothing is asked as often as which of the sets below have it, and the hash of an enum is a function in Python
    __hash__ = object.__hash__


class Happening(enum.Enum):
    """What can happen to a worker."""

    IS_READY = "is ready, held"
    ACCEPTS = "accepts"
    GO = "go sent"
    SICK = "found unhealthy"
    WELL = "found healthy"
    DRAIN = "drain sent"
    STOP = "stop signal sent"
    KILL = "SIGKILL sent"
    EXIT = "ended"


S, H = State, Happening

_LEAVES = {H.DRAIN: S.DRAINING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED}
# what takes a worker to another state; whatever else happens leaves it in the one that it is in
_CHANGES: dict[State, dict[Happening, State]] = {
    S.STARTING: {H.IS_READY: S.HELD, H.ACCEPTS: S.READY, **_LEAVES},
    S.HELD: {H.ACCEPTS: S.READY, H.GO: S.OPENING, **_LEAVES},
    S.OPENING: {H.ACCEPTS: S.READY, **_LEAVES},
    S.READY: {H.SICK: S.UNHEALTHY, **_LEAVES},
    S.UNHEALTHY: {H.WELL: S.READY, **_LEAVES},
    S.DRAINING: {H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED},
    S.STOPPING: {H.KILL: S.KILLED, H.EXIT: S.STOPPED},
    S.KILLED: {H.EXIT: S.STOPPED},
    S.STOPPED: {},
}
TABLE = {state: dict.fromkeys(H, state) | changes for state, changes in _CHANGES.items()}

ALIVE = frozenset(State) - {S.STOPPED}
UNTOUCHED = frozenset({S.STARTING, S.HELD, S.OPENING, S.READY, S.UNHEALTHY})  # nobody has told it to leave
SERVING = frozenset({S.OPENING, S.READY, S.UNHEALTHY})
LEAVING = frozenset({S.DRAINING, S.STOPPING, S.KILLED})


def advance(state: State, happening: Happening) -> State:
    return TABLE[state][happening]

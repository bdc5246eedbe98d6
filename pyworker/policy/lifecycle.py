"""The life of one worker: states, what can happen, and the table that says what follows.

Rule 1: a worker's state changes here and nowhere else. Rule 2: every (state, happening) pair has a row; a pair
that cannot occur is listed as its own state (nothing changes), so that late messages of a dying worker are harmless.

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

TABLE: dict[State, dict[Happening, State]] = {
    S.STARTING: {
        H.IS_READY: S.HELD, H.ACCEPTS: S.READY, H.GO: S.STARTING, H.SICK: S.STARTING, H.WELL: S.STARTING,
        H.DRAIN: S.DRAINING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED,
    },
    S.HELD: {
        H.IS_READY: S.HELD, H.ACCEPTS: S.READY, H.GO: S.OPENING, H.SICK: S.HELD, H.WELL: S.HELD,
        H.DRAIN: S.DRAINING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED,
    },
    S.OPENING: {
        H.IS_READY: S.OPENING, H.ACCEPTS: S.READY, H.GO: S.OPENING, H.SICK: S.OPENING, H.WELL: S.OPENING,
        H.DRAIN: S.DRAINING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED,
    },
    S.READY: {
        H.IS_READY: S.READY, H.ACCEPTS: S.READY, H.GO: S.READY, H.SICK: S.UNHEALTHY, H.WELL: S.READY,
        H.DRAIN: S.DRAINING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED,
    },
    S.UNHEALTHY: {
        H.IS_READY: S.UNHEALTHY, H.ACCEPTS: S.UNHEALTHY, H.GO: S.UNHEALTHY, H.SICK: S.UNHEALTHY, H.WELL: S.READY,
        H.DRAIN: S.DRAINING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED,
    },
    S.DRAINING: {
        H.IS_READY: S.DRAINING, H.ACCEPTS: S.DRAINING, H.GO: S.DRAINING, H.SICK: S.DRAINING, H.WELL: S.DRAINING,
        H.DRAIN: S.DRAINING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED,
    },
    S.STOPPING: {
        H.IS_READY: S.STOPPING, H.ACCEPTS: S.STOPPING, H.GO: S.STOPPING, H.SICK: S.STOPPING, H.WELL: S.STOPPING,
        H.DRAIN: S.STOPPING, H.STOP: S.STOPPING, H.KILL: S.KILLED, H.EXIT: S.STOPPED,
    },
    S.KILLED: dict.fromkeys(H, S.KILLED) | {H.EXIT: S.STOPPED},
    S.STOPPED: dict.fromkeys(H, S.STOPPED),
}  # fmt: skip

ALIVE = frozenset(State) - {S.STOPPED}
UNTOUCHED = frozenset({S.STARTING, S.HELD, S.OPENING, S.READY, S.UNHEALTHY})  # nobody has told it to leave
SERVING = frozenset({S.OPENING, S.READY, S.UNHEALTHY})
LEAVING = frozenset({S.DRAINING, S.STOPPING, S.KILLED})


def advance(state: State, happening: Happening) -> State:
    """Return the state that follows."""
    return TABLE[state][happening]

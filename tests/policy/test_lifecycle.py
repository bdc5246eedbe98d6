"""Every (state, happening) pair has a row, and the rows keep their promises."""

from __future__ import annotations

import pytest

from pyworker.policy.lifecycle import LEAVING, TABLE, Happening, State, advance

PAIRS = [(s, h) for s in State for h in Happening]


@pytest.mark.parametrize(("state", "happening"), PAIRS)
def test_every_pair_is_listed(state: State, happening: Happening) -> None:
    assert TABLE[state][happening] in State


# written by hand, not made from TABLE: a row a state, a column a happening in this order
GOLDEN = """
                IS_READY   ACCEPTS    GO         SICK       WELL       DRAIN     STOP      KILL    EXIT
    STARTING    HELD       READY      STARTING   STARTING   STARTING   DRAINING  STOPPING  KILLED  STOPPED
    HELD        HELD       READY      OPENING    HELD       HELD       DRAINING  STOPPING  KILLED  STOPPED
    OPENING     OPENING    READY      OPENING    OPENING    OPENING    DRAINING  STOPPING  KILLED  STOPPED
    READY       READY      READY      READY      UNHEALTHY  READY      DRAINING  STOPPING  KILLED  STOPPED
    UNHEALTHY   UNHEALTHY  UNHEALTHY  UNHEALTHY  UNHEALTHY  READY      DRAINING  STOPPING  KILLED  STOPPED
    DRAINING    DRAINING   DRAINING   DRAINING   DRAINING   DRAINING   DRAINING  STOPPING  KILLED  STOPPED
    STOPPING    STOPPING   STOPPING   STOPPING   STOPPING   STOPPING   STOPPING  STOPPING  KILLED  STOPPED
    KILLED      KILLED     KILLED     KILLED     KILLED     KILLED     KILLED    KILLED    KILLED  STOPPED
    STOPPED     STOPPED    STOPPED    STOPPED    STOPPED    STOPPED    STOPPED   STOPPED   STOPPED STOPPED
"""


def test_every_pair_has_the_result_that_is_meant() -> None:
    head, *rows = (line.split() for line in GOLDEN.strip().splitlines())
    meant = {State[s]: {Happening[h]: State[t] for h, t in zip(head, row, strict=True)} for s, *row in rows}
    assert meant == TABLE


@pytest.mark.parametrize("state", State)
def test_whatever_ends_is_stopped(state: State) -> None:
    assert advance(state, Happening.EXIT) is State.STOPPED


@pytest.mark.parametrize("happening", Happening)
def test_nothing_wakes_the_dead(happening: Happening) -> None:
    assert advance(State.STOPPED, happening) is State.STOPPED


@pytest.mark.parametrize(("state", "happening"), [(s, h) for s, h in PAIRS if s in LEAVING])
def test_who_is_leaving_never_serves_again(state: State, happening: Happening) -> None:
    assert advance(state, happening) in LEAVING | {State.STOPPED}


def test_a_canary_goes_the_long_way() -> None:
    state = State.STARTING
    for happening, expected in [
        (Happening.IS_READY, State.HELD),
        (Happening.GO, State.OPENING),
        (Happening.ACCEPTS, State.READY),
        (Happening.SICK, State.UNHEALTHY),
        (Happening.DRAIN, State.DRAINING),
        (Happening.STOP, State.STOPPING),
        (Happening.KILL, State.KILLED),
        (Happening.EXIT, State.STOPPED),
    ]:
        state = advance(state, happening)
        assert state is expected

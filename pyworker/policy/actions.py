"""What `converge` wants done. daemon/brain.py carries it out."""

from __future__ import annotations

from typing import Union

from pyworker.record import record


@record
class StartTemplate:
    generation: int


@record
class StopTemplate:
    """Let it leave; one that was let and has not is killed."""

    generation: int
    reason: str = ""  # not "": it is stuck, kill it


@record
class Spawn:
    slot: int
    generation: int
    held: bool


@record
class SendGo:
    serial: int


@record
class SendDrain:
    serial: int
    to_empty: bool
    reason: str


@record
class SendStop:
    """The stop signal."""

    serial: int
    reason: str


@record
class SendKill:
    """SIGKILL to it and to what it has started."""

    serial: int
    reason: str


@record
class DoWithout:
    """It was killed and does not end: go on as if it had."""

    serial: int


@record
class Commit:
    generation: int


@record
class AbortReload:
    """The target's failure says why."""


@record
class RollBack:
    generation: int
    reason: str


@record
class EndSoak:
    pass


@record
class FailStart:
    """The start's failure says why."""


@record
class ClearRecord:
    pass


@record
class ShutListeners:
    """Refuse new connections from now on."""


@record
class Close:
    """Nothing of the app is left: close its listeners, forget its fds."""


@record
class StartDispatcher:
    pass


@record
class StopDispatcher:
    reason: str = ""  # not "": it is stuck, kill it


@record
class LookAgain:
    at: float


Action = Union[
    StartTemplate, StopTemplate, Spawn, SendGo, SendDrain, SendStop, SendKill, DoWithout, Commit, AbortReload,
    RollBack, EndSoak, FailStart, ClearRecord, ShutListeners, Close, LookAgain, StartDispatcher, StopDispatcher,
]  # fmt: skip

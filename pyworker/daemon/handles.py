"""Daemon: what it knows of one worker, template or dispatcher. The processes themselves are worker/, template/, dispatcher/."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Literal

from pyworker.daemon.health import HealthWatch
from pyworker.daemon.loop import Timer
from pyworker.daemon.shortage import Shortage
from pyworker.policy.lifecycle import ALIVE, LEAVING, Happening, State, advance
from pyworker.policy.talk import Allowance
from pyworker.policy.view import DispatcherView, TemplateView, WorkerView
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.template import Loaded, LoadFailed
from pyworker.protocol.wire import WireError, from_json, to_json
from pyworker.protocol.worker import Drained, Failed
from pyworker.record import field, mutable
from pyworker.unix.process import UNKNOWN, ExitStatus

# what the memo has of a worker as it is, by these names
_REMEMBERED = (
    "since", "born_at", "started_at", "ready_at", "held", "pid", "recycle", "can_wait", "checked", "gone_go", "bound", "waits_to_bind",
    "leaving_at", "port", "queries", "asked_by", "version",
)  # fmt: skip


@mutable
class WorkerHandle:
    """One worker as the daemon sees it. Its fds are in the store, under names made of `id`; `ctl` is a copy."""

    id: WorkerId
    held: bool
    born_at: float
    started_at: float = 0.0  # the same moment by the wall clock, read once: told for ever, it must not waver
    state: State = State.STARTING
    since: float = 0.0
    ready_at: float | None = None
    pid: int = 0
    ctl: socket.socket | None = None
    recycle: str = ""  # why it must be replaced
    can_wait: bool = False  # with that until its successor has passed a health check
    checked: bool = True
    health: HealthWatch | None = None
    settling: Timer | None = None  # until it counts as ready for having said nothing
    gone_go: bool = False  # a script that binds later than Go is answered at once
    bound: bool = False
    waits_to_bind: tuple[str, str, int] | None = None  # of a script: the address it asked for
    leaving_because: str = ""
    leaving_at: float | None = None
    queries: list[str] = field(default_factory=list)  # of a Node worker: what it asked to listen on
    asked_by: int = 0  # the pid of the dispatcher that has asked a Node worker to leave
    port: int = 0  # its own, behind a dispatcher that relays
    version: str = ""  # of the runtime that it is
    direct: bool = False  # a command that was started directly: at first its parent is the launcher's child
    launching: bool = False  # the launcher has been asked to start it directly, and has not answered
    untold: bool = False  # the daemon before this one has asked for it, and whoever knows its pid has told that one
    lost: bool = False  # whoever was to start it died, and it never came
    talk: Allowance = field(default_factory=lambda: Allowance(0.0))  # on its own channel
    noted: bool = False  # it has said a Notice
    failure: Failed | None = None
    drained: Drained | None = None
    status: ExitStatus | None = None
    shortage: Shortage | None = None  # what the system says of its end, once it was asked
    reaped: bool = False  # by somebody who is not our guardian, or let go: its pid may be another's
    ended_at: float | None = None
    alive_at: float = 0.0  # by CLOCK_BOOTTIME: when it was seen to run, last before a signal of ours

    @property
    def is_alive(self) -> bool:
        return self.state in ALIVE

    @property
    def pid_is_reserved(self) -> bool:
        """Of one that has ended: whether its pid, and so its group's, is still its own."""
        return bool(self.pid) and self.status != UNKNOWN and not self.reaped

    def happen(self, happening: Happening, now: float) -> State:
        """Advance by the table; return the new state."""
        after = advance(self.state, happening)
        if after is not self.state:
            self.state, self.since = after, now
            if after in LEAVING and self.leaving_at is None:
                self.leaving_at = now
        return after

    def view(self, *, hears: bool, left: bool | None, job: bool) -> WorkerView:
        """Return it as policy sees it; `hears`: it understands Drain, `left`: it accepts no more, `job`: it is a run of one."""
        return WorkerView(
            self.id.serial,
            self.id.slot,
            self.id.generation,
            self.state,
            self.since,
            self.born_at,
            self.ready_at,
            bool(self.recycle),
            self.can_wait,
            self.checked,
            hears=hears,
            left=left,
            job=job,
            ended=self.ended_at is not None,
        )

    def memo(self) -> dict[str, Any]:
        """What a daemon after this one must know of it."""
        facts = {name: getattr(self, name) for name in _REMEMBERED}
        return {**facts, "state": self.state.value, "because": self.leaving_because}

    def recall(self, memo: dict[str, Any]) -> None:
        """Take over a memo (of our own making: a sealed-size memfd that only daemons write)."""
        for name in _REMEMBERED:
            if name in memo:
                setattr(self, name, memo[name])
        self.state = State(memo["state"])
        self.waits_to_bind = tuple(memo["waits_to_bind"]) if memo.get("waits_to_bind") else None
        self.leaving_because = memo["because"]


@mutable
class TemplateHandle:
    """One template as the daemon sees it."""

    app: str
    generation: int
    since: float
    state: Literal["loading", "ready", "retiring"] = "loading"
    pid: int = 0
    channel: socket.socket | None = None
    loaded: Loaded | None = None
    ready_at: float | None = None
    failure: LoadFailed | None = None
    killed_because: str = ""
    shortage: Shortage = field(default_factory=Shortage)  # what the system says of its end
    ended: bool = False
    unanswered: int = 0  # pings
    asked: set[int] = field(default_factory=set)  # serials of workers that we have it fork, until it answers
    talk: Allowance = field(default_factory=lambda: Allowance(0.0))  # on its channel, but for the workers that it forks

    def view(self) -> TemplateView:
        return TemplateView(self.generation, self.state, self.since)

    def memo(self) -> dict[str, Any]:
        """What a daemon after this one must know of it."""
        loaded = to_json(self.loaded) if self.loaded else None
        return {"state": self.state, "since": self.since, "ready_at": self.ready_at, "pid": self.pid, "loaded": loaded}

    def recall(self, memo: dict[str, Any]) -> None:
        """Take over a memo; {}: the other daemon died before it wrote one."""
        self.since = float(memo.get("since", self.since))
        self.pid = int(memo.get("pid", 0))
        self.state = memo.get("state", "loading")
        self.ready_at = memo.get("ready_at")
        with contextlib.suppress(WireError):  # of another version: as if it had not said it yet
            self.loaded = from_json(Loaded, memo["loaded"], "loaded") if memo.get("loaded") else None


@mutable
class DispatcherHandle:
    """An app's dispatcher as the daemon sees it. Channel and pidfd are in the store; `channel` is a copy."""

    since: float
    state: Literal["starting", "ready", "stopping"] = "starting"
    pid: int = 0
    channel: socket.socket | None = None
    ready_at: float | None = None
    # by this daemon: "begun", "settled", "finished", ("listen", i), ("inbox", slot), ("open", serial)…
    told: set[object] = field(default_factory=set)
    killed_because: str = ""
    step: str = ""  # what to do about that
    ended: bool = False
    unanswered: int = 0  # pings
    troubles: list[str] = field(default_factory=list)  # what it has said of itself and not taken back

    @property
    def finished(self) -> bool:
        return "finished" in self.told

    def view(self) -> DispatcherView:
        return DispatcherView(self.state, self.since, self.finished)

    def memo(self) -> dict[str, Any]:
        known = {"since": self.since, "state": self.state, "pid": self.pid, "ready_at": self.ready_at}
        return {**known, "troubles": self.troubles}

    def recall(self, memo: dict[str, Any]) -> None:
        self.since, self.state = float(memo["since"]), memo["state"]
        self.pid, self.ready_at = int(memo["pid"]), memo["ready_at"]
        self.troubles = list(memo.get("troubles", ()))


def copy_socket(fd: int) -> socket.socket:
    """Return a socket object on a copy of a stored fd."""
    sock = socket.socket(fileno=os.dup(fd))
    sock.setblocking(False)
    return sock

"""A cluster's workers, seen from their primary, and what it was told to run."""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pyworker.cluster.emitter import Emitter
from pyworker.cluster.parent import ChildProcess, Signal, Stdio
from pyworker.config.schema import RestartConfig
from pyworker.record import field, record

if TYPE_CHECKING:
    from pyworker.cluster.primary import Cluster

SCHED_NONE: Scheduling = "none"
SCHED_RR: Scheduling = "round-robin"
Scheduling: TypeAlias = Literal["round-robin", "none"]


@record
class Settings:
    """What `setup_primary` was told."""

    exec: str | None = None  # a script; None: the one that runs here
    args: tuple[str, ...] = ()
    module: str | None = None  # instead of a script: what `python -m` takes
    workers: int = 0  # 0: as many as there are CPUs to use
    scheduling: Scheduling = "round-robin"  # "none": for servers that fork processes of their own to accept in
    exec_path: str | None = None
    exec_args: tuple[str, ...] = ()
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    stdin: Stdio = "inherit"
    stdout: Stdio = "inherit"
    stderr: Stdio = "inherit"
    restart: RestartConfig = field(default_factory=RestartConfig)
    drain_timeout: float = 10.0  # seconds that connections have when a worker leaves
    suicide_timeout: float = 5.0  # seconds that a worker has which announced its death


class Worker(Emitter):
    """A worker, seen from its primary. Events as of the cluster, without the worker as first argument."""

    EVENTS: ClassVar[tuple[str, ...]] = ("online", "message", "listening", "disconnect", "exit", "error")
    LAST: ClassVar[str] = "exit"

    def __init__(self, cluster: Cluster, number: int, process: ChildProcess, *, managed: bool) -> None:
        super().__init__()
        self.id = number
        self.process = process
        self.exited_after_disconnect = False
        self.state: Literal["none", "online", "listening", "disconnected", "dead"] = "none"
        self.managed = managed
        self.announced = False  # it has told its death: its successor is there, or coming
        self.ready_at: float | None = None
        self._cluster = cluster

    def send(self, message: Any, handle: Any = None, **options: Any) -> bool:
        """As `ChildProcess.send`."""
        return self.process.send(message, handle, **options)

    def kill(self, signal: Signal = signals.SIGTERM) -> bool:
        """End it on purpose: it is not replaced."""
        self._cluster._leaves(self)
        return self.process.kill(signal)

    def disconnect(self) -> None:
        """Let it finish what is under way and end; it gets no more connections and is not replaced."""
        if not self.exited_after_disconnect and self.is_connected():
            self._cluster._leaves(self)
            self._cluster._carry_out(self._cluster._primary.disconnect(self.id))

    def is_connected(self) -> bool:
        """True while it can be talked to."""
        return self.process.connected

    def is_dead(self) -> bool:
        """True when its exit has been seen."""
        return not self.process.is_running

    def __repr__(self) -> str:
        return f"<Worker {self.id} pid={self.process.pid} {self.state}>"

"""A cluster's workers, seen from their primary."""

from __future__ import annotations

import signal as signals
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pyworker.cluster.emitter import Emitter
from pyworker.cluster.parent import ChildProcess, Signal

if TYPE_CHECKING:
    from pyworker.cluster.primary import Cluster


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

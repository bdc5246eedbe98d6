"""Logger: guardian and daemon are both gone. Sees to it that nothing of theirs stays: no ghosts, the ports are freed.

Workers that notice it themselves finish their requests and go; the others are sent their app's stop signal, and
whoever is left when the app's drain time-out is over is killed with its process group. Never a pid: only pidfds.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from pyworker.logger.pipe import Life
from pyworker.protocol.logs import LogsSpec
from pyworker.unix import process

PATIENCE = 2.0  # seconds until the first signal
SPARE = 5.0  # seconds that a worker which drains alone gets beyond its drain time-out
PIPES_LEFT = 5.0  # seconds from the end of the last process until pipes that somebody else keeps open are left
LOOK_EVERY = 0.2
_DEFAULT = LogsSpec("", "text", 0, 0, compress=False)

Lives = Mapping[tuple[str, str, tuple[int, ...]], Life]


class Sweep:
    """The end of all workers, by the clock. `next_at` is when `turn` wants to be called."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._asked = False
        self._gone_at: float | None = None  # when no process was left
        self.next_at = now + LOOK_EVERY

    def turn(self, now: float, lives: Lives, specs: Mapping[str, LogsSpec]) -> None:
        """Do what is due."""
        self.next_at = now + LOOK_EVERY
        waited = now - self._began
        if waited >= PATIENCE and not self._asked:
            self._asked = True
            for (kind, app, _), life in lives.items():
                spec = specs.get(app, _DEFAULT)
                if kind == "pid" and not spec.drains_alone:
                    life.signal(spec.stop_signal if spec.stop_signal in signal.valid_signals() else signal.SIGTERM)
        left = False
        for (_, app, _), life in lives.items():
            if not process.is_gone(life.fd):
                left = True
                spec = specs.get(app, _DEFAULT)
                if waited >= PATIENCE + spec.drain_timeout + (SPARE if spec.drains_alone else 0.0):
                    life.signal(signal.SIGKILL, group=True)
        if not left and self._gone_at is None:
            self._gone_at = now

    def all_gone(self, lives: Lives) -> bool:
        """True when no process is left."""
        return all(process.is_gone(life.fd) for life in lives.values())

    def is_over(self, now: float) -> bool:
        """True when even the pipes that somebody else holds open have had their time."""
        return self._gone_at is not None and now >= self._gone_at + PIPES_LEFT

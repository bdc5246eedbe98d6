"""Logger: guardian and daemon are both gone. Sees to it that nothing of theirs stays: no ghosts, the ports are freed.

Workers that notice it themselves finish their requests and go; the others are sent their app's stop signal, as is what
they had started and have left, and whoever is there when the app's drain time-out is over is killed with its
session. Never a pid: only pidfds.
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

Key = tuple[str, str, tuple[int, ...]]
Lives = Mapping[Key, Life]


class Sweep:
    """The end of all workers, by the clock. `next_at` is when `turn` wants to be called."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._asked: set[tuple[Key, bool]] = set()  # with whether it was what the process has left
        self._gone_at: float | None = None  # when no process was left
        self.next_at = now + LOOK_EVERY

    def turn(self, now: float, lives: Lives, specs: Mapping[str, LogsSpec]) -> None:
        self.next_at = now + LOOK_EVERY
        waited = now - self._began
        sessions = process.sessions()
        for life in lives.values():
            if life.pid in sessions and not process.is_gone(life.fd):
                life.note_others(sessions[life.pid])
        left = _left(lives)
        for key, has_ended in left.items():
            kind, app, _ = key
            spec = specs.get(app, _DEFAULT)
            if waited >= PATIENCE + spec.drain_timeout + (SPARE if spec.drains_alone else 0.0):
                lives[key].signal(signal.SIGKILL, group=True)
            elif waited >= PATIENCE and kind == "pid" and (has_ended or not spec.drains_alone):
                self._ask(key, lives[key], spec, has_ended)
        if not left and self._gone_at is None:
            self._gone_at = now

    def _ask(self, key: Key, life: Life, spec: LogsSpec, has_ended: bool) -> None:
        """Send the stop signal, once: to the process, or to what it has left."""
        if (key, has_ended) not in self._asked:
            self._asked.add((key, has_ended))
            number = spec.stop_signal if spec.stop_signal in signal.valid_signals() else signal.SIGTERM
            life.signal(number, group=has_ended)

    def all_gone(self, lives: Lives) -> bool:
        return not _left(lives)

    def is_over(self, now: float) -> bool:
        """True when even the pipes that somebody else holds open have had their time."""
        return self._gone_at is not None and now >= self._gone_at + PIPES_LEFT


def _left(lives: Lives) -> dict[Key, bool]:
    """Return those of which somebody is there, and whether it is only what the process has left in its session.

    A shell, say, that has run a program without exec. Where the kernel cannot signal a group by pidfd nobody is looked for there.
    """
    ended = {key for key, life in lives.items() if process.is_gone(life.fd)}
    others = {key for key in ended if process.kill_group_of(lives[key].fd, 0)}
    groups = process.groups_with_others() if others else set()  # a group of which all have ended, and nobody reaps them
    return {
        key: key in ended
        for key, life in lives.items()
        if key not in ended or life.has_others or (key in others and life.pid in groups)
    }

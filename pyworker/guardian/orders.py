"""Guardian: signals as orders for the daemon. They wait until there is one that can take them."""

from __future__ import annotations

import signal

from pyworker.guardian.program import Program
from pyworker.guardian.say import say
from pyworker.guardian.signals import Signals
from pyworker.guardian.upgrade import Upgrade
from pyworker.protocol import run


class Orders:
    """What the daemon is told by signals."""

    def __init__(self, daemon: Program, signals: Signals, upgrade: Upgrade) -> None:
        self._daemon = daemon
        self._signals = signals
        self._upgrade = upgrade
        self._waiting: list[int] = []
        self._hung_up = False
        self._told_to_stop = False  # in the foreground

    def pass_on(self, number: int) -> None:
        """To the daemon, once it has said that it can take it; a reload is for the one that does not make room."""
        if self._daemon.version and not (number == run.RELOAD and self._upgrade.is_to_replace(self._daemon)):
            self._daemon.signal(number)
        elif number not in self._waiting:
            self._waiting.append(number)

    def pass_on_all(self) -> None:
        """A daemon can take them."""
        waiting, self._waiting = self._waiting, []
        for number in waiting:
            self._daemon.signal(number)

    def remind(self) -> None:
        """The daemon has died: the next one goes on with a stop."""
        if self._told_to_stop:
            self.pass_on(signal.SIGTERM)

    def take(self, number: int) -> bool:
        """In the foreground: do what a signal asks for. False: all of it is to leave, as nobody could do that."""
        if number == signal.SIGHUP and self._signals.has_lost_its_terminal():
            if self._hung_up:  # the kernel and the shell both say it, and a second stop would be one at once
                return True
            self._hung_up, number = True, signal.SIGTERM
        number = signal.SIGTERM if number in run.STOPS else number
        is_stop = number == signal.SIGTERM
        why = ""
        if is_stop and not self._daemon.version:
            if number in self._waiting:
                why = "told to stop again, and there is no daemon that could do it: leaving, and so does all of it"
            elif not self._daemon.starts:
                why = "told to stop before a daemon could be started: leaving"
        if why:
            say(why)
        self._told_to_stop |= is_stop
        self.pass_on(number)
        return not why

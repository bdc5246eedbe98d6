"""Guardian: another version takes its place by exec, and then has daemon and logger replaced, one by one.

Same process, same children, same fds. What fails before the exec has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyworker import failpoint
from pyworker.guardian import boot
from pyworker.guardian.program import Program
from pyworker.guardian.say import say
from pyworker.guardian.store import FdStore


class Upgrade:
    """The one that was asked for, if any; and what is left to do of the one that made this process."""

    def __init__(self, program: list[str] | None, taken_over: dict[str, dict[str, Any]]) -> None:
        """`program`: our own argv. `taken_over`: what ran under the version before this one, see boot."""
        self.by = 0.0  # when it is given up
        self._program = program
        self._taken_over = taken_over
        self._python: str | None = None
        self._to_replace: list[Program] = []

    # ---- into the next version ----------------------------------------------------------------------
    @property
    def is_wanted(self) -> bool:
        """Whether one was asked for and has neither been done nor given up."""
        return self._python is not None

    def ask(self, python: str, by: float) -> None:
        """Become a guardian of this interpreter as soon as nothing waits to be sent."""
        self._python, self.by = python, by

    def become(self, store: FdStore, programs: Sequence[Program], why_not: str) -> str:
        """Exec. Returns why it was not done."""
        python, self._python = self._python, None
        if why_not:
            return why_not
        if python is None or self._program is None:
            return "this guardian cannot be upgraded"
        say(f"upgrade: becoming the guardian of {python}")
        try:
            boot.become([python, *self._program[1:]], store, {program.name: program for program in programs})
        except Exception as error:  # noqa: BLE001  whatever it was, nothing has changed and who waits is to know
            return f"cannot execute {python}: {error.strerror if isinstance(error, OSError) else error!r}"

    # ---- out of the version before ------------------------------------------------------------------
    def take_over(self, programs: Sequence[Program]) -> list[Program]:
        """Go on with the programs of the guardian that this process was; return those that run. They are to be replaced."""
        if self._taken_over:
            failpoint.hit("guardian.execed")
        for program in programs:
            memo = self._taken_over.get(program.name)
            if memo is not None:
                program.take_over(memo)
                self._to_replace.append(program)
        return list(self._to_replace)

    @property
    def goes_on(self) -> bool:
        """Whether a program of the version before is still to be replaced."""
        return bool(self._to_replace)

    def is_to_replace(self, program: Program) -> bool:
        """Whether this process of a program makes room for the next one, or will."""
        return program in self._to_replace and program.pid == self._taken_over[program.name]["pid"]

    def replace(self, now: float, patience: Mapping[str, float]) -> None:
        """Ask the first of those that are to be replaced to leave; go on to the next when its successor runs."""
        while self._to_replace:
            program = self._to_replace[0]
            if self.is_to_replace(program):
                if not program.leaving:
                    failpoint.hit("guardian.leave")
                    say(f"upgrade: the {program.name} (pid {program.pid}) makes room")
                    program.leave(now, patience[program.name])
                return
            if not program.is_settled:
                return
            del self._to_replace[0]

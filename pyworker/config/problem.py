"""What is wrong with a config: one Problem each, with its place in the file; ConfigError carries them all.

How they look on a screen is cli/problems.py. A Problem is JSON-able as it is (its `vars`), and is
what protocol.control.Refused.problems holds.
"""

from __future__ import annotations

from typing import Any

from pyworker.errors import PyworkerError
from pyworker.record import record


@record
class Problem:
    """One mistake. Lines and columns start at 1 and count code points; line 0 = no place is known."""

    message: str
    hint: str = ""
    key: str = ""  # dotted: "app.workers"
    file: str = ""
    line: int = 0
    column: int = 0
    end_column: int = 0  # the first column after it; on the same line
    source: str = ""  # the whole line, or "" when it is too long to be shown
    code: str = "invalid_value"  # unknown_key, missing_key, syntax, unreadable, conflict, environment…


class ConfigError(PyworkerError):
    """A config that cannot be used: every problem that was found, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...] | list[Problem]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(first.message + more, hint=first.hint, code="config_invalid")
        self.problems = tuple(problems)

    def as_json(self) -> tuple[dict[str, Any], ...]:
        """Return the problems as protocol.control.Refused has them."""
        return tuple(dict(vars(p)) for p in self.problems)

"""Worker, template: the one line that names an exception, for a message that has room for no more.

That is the first line of what Python prints of it: a message may have many (pydantic's ends with an address), and notes
come behind it.
"""

from __future__ import annotations

import re
import traceback

LONGEST = 1000  # characters: some messages hold all the data that something was wrong with
_FRAME = '  File "'
_OF_GROUP = re.compile(r" +\| ([A-Za-z_][\w.]*: .+)")


def of(error: BaseException) -> str:
    """Return the line of an exception: "ModuleNotFoundError: No module named 'redis'"."""
    if isinstance(error, SyntaxError):
        return _fit(f"{type(error).__name__}: {error}")  # with the file and the line, which Python prints above it
    return of_text("".join(traceback.format_exception_only(error)))


def of_text(text: str) -> str:
    """Return that line of a whole traceback; of a group's, the line of the last exception in it; of other text the first."""
    lines = text.strip("\n").splitlines() or [""]
    begin = max((number + 1 for number, line in enumerate(lines) if line.startswith(_FRAME)), default=0)
    named = next((line for line in lines[begin:] if line[:1].strip()), "")
    in_group = [found[1] for line in lines if (found := _OF_GROUP.match(line))]
    return _fit(named or (in_group or lines)[-1])


def _fit(line: str) -> str:
    line = line.strip().encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"

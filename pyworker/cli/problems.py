"""CLI: problems of a config file as text: message, place, the line itself, a caret under the mistake, help.

Text from the file cannot touch the terminal: what is no printable character is shown as \\xNN.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from pyworker.cli.here import here
from pyworker.cli.render import escaped, width
from pyworker.config.problem import Problem

_TAB = "    "
_WIDEST = 140  # columns of a line that are shown; a longer one is cut around the mistake
_BEFORE = 60  # how much of a long line is shown before the mistake
_BOLD_RED, _BLUE, _CYAN, _BOLD, _OFF = "\033[1;31m", "\033[1;34m", "\033[36m", "\033[1m", "\033[0m"


def render(problems: Iterable[Problem], color: bool | None = False, *, closing: str = "") -> str:
    """Return all problems as text, and a last line that counts them; `closing` says what they prevented."""
    found = list(problems)
    blocks = ["\n".join(_block(p, bool(color))) for p in found]
    return "\n\n".join([*blocks, _summary(found, closing)]) + "\n"


def _summary(problems: list[Problem], closing: str) -> str:
    files = sorted({p.file for p in problems if p.file})
    what = ", ".join(_printable(os.path.basename(f)) for f in files) or "the app"
    count = f"{len(problems)} errors" if len(problems) != 1 else "1 error"
    return f"{what} has {count}. {closing}".rstrip()


def _block(problem: Problem, color: bool) -> Iterator[str]:
    def paint(code: str, text: str) -> str:
        return f"{code}{text}{_OFF}" if color else text

    first, *more = problem.message.split("\n")
    yield f"{paint(_BOLD_RED, 'error')}{paint(_BOLD, ': ' + _printable(first))}"
    yield from (_printable(line) for line in more)
    digits = len(str(problem.line)) if problem.line else 1
    gutter = " " * digits + " " + paint(_BLUE, "|")
    if problem.file:
        where = _printable(_relative(problem.file))
        place = f"{where}:{problem.line}:{problem.column}" if problem.line else where
        yield f"{' ' * digits}{paint(_BLUE, '-->')} {place}"
    if problem.line and problem.source:
        text, before, length = _window(problem)
        yield gutter
        yield f"{paint(_BLUE, f'{problem.line} |')} {text}".rstrip()
        yield f"{gutter} {' ' * before}{paint(_BOLD_RED, '^' * length)}"
    indent = " " * (digits + 1) if problem.file else "  "
    for index, line in enumerate(problem.hint.split("\n") if problem.hint else ()):
        lead = paint(_CYAN, "= help:") if index == 0 else " " * len("= help:")
        yield f"{indent}{lead} {_printable(line)}"


def _window(problem: Problem) -> tuple[str, int, int]:
    """Return the line as it is shown, how many columns stand before the mistake, and how many it takes."""
    source = problem.source
    start, end = problem.column - 1, max(problem.end_column - 1, problem.column)
    cells = [_TAB if c == "\t" else _printable(c) for c in source]
    first = 0
    if _width(cells) > _WIDEST:
        while _width(cells[first:start]) > _BEFORE:
            first += max(1, (start - first) // 8)
        first = min(first, start)
    last = first
    used = 0
    while last < len(cells) and used + _width(cells[last : last + 1]) <= _WIDEST:
        used += _width(cells[last : last + 1])
        last += 1
    # not …, which a terminal without glyphs gets as wide as this: the caret would stand elsewhere
    left = "... " if first else ""
    right = " ..." if last < len(cells) else ""
    before = len(left) + _width(cells[first:start])
    length = max(1, _width(cells[start : min(end, last)]))
    return left + "".join(cells[first:last]) + right, before, length


def _width(cells: list[str]) -> int:
    return width("".join(cells))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else escaped(c) for c in text)


def _relative(path: str) -> str:
    """Return the path as seen from here when it is below this folder."""
    try:
        folder = here()
    except OSError:  # this folder was removed
        return path
    return os.path.relpath(path, folder) if path.startswith(folder.rstrip("/") + "/") else path

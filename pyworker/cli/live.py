"""CLI: rows that are rewritten in place on a terminal (stderr), and the same terminal left clean afterwards.

Plain ANSI, no library: the cursor goes up over what was drawn and writes it again. The cursor is hidden meanwhile
and comes back whatever ends the program, a TERM signal included.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TextIO

from pyworker.cli.progress import Board
from pyworker.cli.render import ANSI, Look, cut, look, width, write

_HIDE, _SHOW, _CLEAR_DOWN = "\x1b[?25l", "\x1b[?25h", "\x1b[J"


class Live:
    """A view of a Board. Use it as a context manager; `draw` as often as you like."""

    def __init__(self, board: Board, stream: TextIO, how: Look) -> None:
        self._board = board
        self._stream = stream
        self._how = how
        self._drawn = 0
        self._old_term: Any = None

    def __enter__(self) -> Self:
        self._old_term = signal.signal(signal.SIGTERM, _leave)
        write(self._stream, _HIDE, self._how)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None:
            self.draw()
        write(self._stream, _SHOW, self._how)
        signal.signal(signal.SIGTERM, self._old_term)

    def draw(self) -> None:
        """Draw the rows as they are now over those drawn before."""
        how = look(self._stream, self._how.color)  # the window may have another size by now
        rows = self._board.lines(time.monotonic(), how, max(3, _height(self._stream) - 4))
        lines = [_fit(row, how.width - 1) for row in rows]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        write(self._stream, f"{up}\r{_CLEAR_DOWN}" + "".join(row + "\n" for row in lines), how)
        self._drawn = len(lines)

    def say(self, text: str) -> None:
        """Write a line above the rows; it stays."""
        how = look(self._stream, self._how.color)
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        write(self._stream, f"{up}\r{_CLEAR_DOWN}{text}\n", how)
        self._drawn = 0
        self.draw()


def _fit(text: str, columns: int) -> str:
    """Cut a row that is too wide: a wrapped row would take two lines and the next drawing would miss."""
    if width(text) <= columns:
        return text
    # the styles of a row are all in its first words: cutting the plain text loses at most a colour
    return cut(ANSI.sub("", text), columns)


def _height(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).lines or 24
    except (OSError, ValueError):
        return 24


def _leave(_signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)  # unwinds through __exit__, which gives the cursor back

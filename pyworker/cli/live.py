"""CLI: rows that are rewritten in place on a terminal (stderr).

Plain ANSI, no library: the cursor goes up over what was drawn and writes it again. No mode of the terminal is changed, not
even the cursor hidden: so there is nothing to give back, whatever ends the program or stops it (Ctrl-Z, kill -9).
"""

from __future__ import annotations

import time
from typing import TextIO

from pyworker.cli.progress import Board
from pyworker.cli.render import ANSI, Look, cut, look, plain, rows_of, width, write

_CLEAR_DOWN = "\x1b[J"


class Live:
    """A view of a Board; `draw` as often as you like, and once more at the end."""

    def __init__(self, board: Board, stream: TextIO, how: Look) -> None:
        self._board = board
        self._stream = stream
        self._how = how
        self._drawn = 0

    def draw(self) -> None:
        """Draw the rows as they are now over those drawn before."""
        how = look(self._stream, self._how.color)  # the window may have another size by now
        rows = self._board.lines(time.monotonic(), how, max(3, rows_of(self._stream) - 4))
        lines = [fit(plain(row, how), how.width - 1, how.mark) for row in rows]
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


def fit(text: str, columns: int, mark: str = "…") -> str:
    """Cut a row that is too wide: a wrapped row would take two lines and the next drawing would miss."""
    if width(text) <= columns:
        return text
    # the styles of a row are all in its first words
    styled = max((match.end() for match in ANSI.finditer(text)), default=0)
    if width(text[:styled]) < columns:
        return text[:styled] + cut(text[styled:], columns - width(text[:styled]), mark=mark)
    return cut(ANSI.sub("", text), columns, mark=mark)

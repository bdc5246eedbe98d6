"""Worker: its row of the scoreboard. Other processes read it at any time; nothing here locks."""

from __future__ import annotations

import mmap

from pyworker.protocol.scoreboard import SIZE, row_slice


class Row:
    """One worker's 64 numbers. `cells` is the memory itself, for code that counts on every request.

    Seen with a sign: a sibling that goes mad can write anything here, and what it most likely writes (zeros, ones) must
    neither be too small to count down from nor too large to count up from.
    """

    def __init__(self, cells: memoryview) -> None:
        self.cells = cells

    @classmethod
    def mapped(cls, board_fd: int, row: int) -> Row:
        """Return the row of a scoreboard memfd. The fd may be closed afterwards."""
        board = memoryview(mmap.mmap(board_fd, SIZE)).cast("q")
        return cls(board[row_slice(row)])

    def __getitem__(self, field: int) -> int:
        return self.cells[field]

    def __setitem__(self, field: int, value: int) -> None:
        self.cells[field] = value

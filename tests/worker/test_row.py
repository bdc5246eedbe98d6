"""A row of the scoreboard is the same memory for all who map it."""

from __future__ import annotations

import os

from pyworker.protocol.scoreboard import SIZE, F
from pyworker.unix.fds import memfd_fixed
from pyworker.worker.row import Row


def test_two_maps_of_one_row_see_each_other_and_no_other_row() -> None:
    board = memfd_fixed("board", SIZE)
    one, same, other = Row.mapped(board, 3), Row.mapped(board, 3), Row.mapped(board, 4)
    os.close(board)
    one[F.OPEN] += 2
    one[F.REQUESTS] = 5
    assert (same[F.OPEN], same[F.REQUESTS], other[F.OPEN]) == (2, 5, 0)

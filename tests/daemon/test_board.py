"""The daemon's side of the scoreboard: rows, numbers, and what a hostile worker can do with its mapping."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from pyworker.daemon.board import NO_STATS, Board, BoardFull
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.scoreboard import ROWS, SIZE, AppF, F, row_slice


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create("api")
    yield board
    board.close()


def worker(serial: int, slot: int = 1) -> WorkerId:
    return WorkerId("api", 1, slot, serial)


@contextlib.contextmanager
def mapping(board: Board) -> Iterator[memoryview]:
    """A worker's view of the same memory; unmapped when the last slice of it is forgotten."""
    yield memoryview(mmap.mmap(board.fd, SIZE)).cast("B").cast("Q")


def test_worker_gets_a_row_of_its_own_that_names_it(board: Board) -> None:
    first, second = board.allocate(worker(1)), board.allocate(worker(2, slot=2))
    assert 0 < first < second
    with mapping(board) as cells:
        mine = cells[row_slice(second)]
        assert mine[F.SERIAL] == 2
    assert board.row_of(2) == second
    assert board.row_of(9) == 0


def test_what_a_worker_counts_is_read(board: Board) -> None:
    row = board.allocate(worker(1))
    with mapping(board) as cells:
        mine = cells[row_slice(row)]
        mine[F.REQUESTS], mine[F.OPEN], mine[F.STATUS_5XX], mine[F.PROGRESS_AT] = 7, 3, 1, 2_500_000_000
        mine[F.IN_FLIGHT], mine[F.LATENCY_0 + 31] = 2, 4
    stats, totals = board.stats(1), board.totals()
    assert (stats.in_flight, board.in_flight(1), board.in_flight(9)) == (2, 2, 0)
    assert (stats.requests, stats.open, stats.progress_at) == (7, 3, 2.5)
    assert (totals.requests, totals.status, totals.latency[31]) == (7, (0, 0, 0, 0, 1), 4)
    assert board.stats(9) == NO_STATS


def test_requests_of_a_dead_worker_go_on_counting(board: Board) -> None:
    for serial, count in ((1, 10), (2, 5)):
        row = board.allocate(worker(serial))
        with mapping(board) as cells:
            cells[row_slice(row)][F.REQUESTS] = count
    board.free(1)
    board.free(1)
    assert board.requests() == 15
    assert board.app(AppF.REQUESTS_GONE) == 10


def test_freed_row_is_zeroed_when_it_is_given_out_again(board: Board) -> None:
    row = board.allocate(worker(1))
    board.free(1)
    with mapping(board) as cells:  # the dying worker's last scribble
        cells[row_slice(row)][F.REQUESTS] = 99
    assert board.allocate(worker(2)) == row
    assert board.stats(2).requests == 0


def test_full_board_says_so_and_works_on(board: Board) -> None:
    for serial in range(1, ROWS):
        board.allocate(worker(serial))
    with pytest.raises(BoardFull):
        board.allocate(worker(ROWS))
    board.free(5)
    board.allocate(worker(ROWS))


def test_row_that_the_kernel_has_no_memory_for_is_not_touched_and_given_out_later(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "as under vm.overcommit_memory = 2, where a touch is a SIGBUS")

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            board.allocate(worker(1))
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            Board.create("other")
    assert board.allocate(worker(2)) == 1


def test_new_daemon_finds_the_rows_again_and_clears_the_others(board: Board) -> None:
    kept, gone = board.allocate(worker(1)), board.allocate(worker(2))
    with mapping(board) as cells:
        cells[row_slice(kept)][F.REQUESTS] = 8
    board.add_app(AppF.RESTARTS)
    adopted = Board.adopt(os.dup(board.fd), [1])
    assert adopted.row_of(1) == kept
    assert adopted.stats(1).requests == 8
    assert adopted.app(AppF.RESTARTS) == 1
    assert adopted.row_of(2) == 0
    assert adopted.allocate(worker(3)) == gone
    adopted.close()


def test_taking_over_gives_no_row_memory_and_finds_the_free_ones_below(board: Board) -> None:
    rows = {serial: board.allocate(worker(serial)) for serial in range(1, 5)}
    before = os.fstat(board.fd).st_blocks
    adopted = Board.adopt(os.dup(board.fd), [2, 4])
    assert os.fstat(board.fd).st_blocks == before
    assert [adopted.allocate(worker(serial)) for serial in (5, 6, 7)] == [rows[1], rows[3], rows[4] + 1]
    adopted.close()


def test_worker_that_scribbles_over_everything_harms_only_the_numbers(board: Board) -> None:
    row = board.allocate(worker(1))
    with mapping(board) as cells:
        for index in range(SIZE // 8):
            cells[index] = 2**64 - 1
    assert board.stats(1).requests == 2**53
    assert board.row_of(1) == row
    board.add_app(AppF.RESTARTS)
    adopted = Board.adopt(os.dup(board.fd), [1])
    assert adopted.row_of(1) == 0
    assert adopted.stats(1) == NO_STATS
    adopted.allocate(worker(2))
    assert adopted.stats(2) == NO_STATS
    adopted.close()


def test_memory_of_another_size_is_no_board() -> None:
    fd = os.memfd_create("small")
    with pytest.raises(ValueError, match="scoreboard"):
        Board(fd)
    os.close(fd)


def test_answers_of_the_dead_go_on_counting(board: Board) -> None:
    rows = [board.allocate(worker(serial)) for serial in (1, 2)]
    with mapping(board) as cells:
        for row in rows:
            mine = cells[row_slice(row)]
            mine[F.REQUESTS], mine[F.STATUS_2XX], mine[F.STATUS_5XX], mine[F.LATENCY_SUM_US] = 5, 4, 1, 1000
            mine[F.LATENCY_0 + 3] = 5
        del mine
    before = board.totals()
    assert (before.requests, before.status, before.latency_sum_us, before.latency[3]) == (10, (0, 8, 0, 0, 2), 2000, 10)
    board.free(1)
    assert board.totals() == before
    board.free(2)
    assert board.totals() == before

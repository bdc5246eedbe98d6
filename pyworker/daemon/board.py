"""Daemon: its side of an app's scoreboard.

The daemon gives out rows, writes who a row belongs to, and reads what workers count. A worker has the whole
memfd mapped and may write rubbish anywhere: which rows are taken is remembered here and not read back from the
board, and every number read is cut to a sane range. The layout is protocol/scoreboard.py; the other end worker/row.py.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

from pyworker.protocol.figures import Totals
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.scoreboard import FIELDS, LATENCY_BUCKETS, ROW_SIZE, ROWS, SIZE, AppF, F, row_slice
from pyworker.record import record
from pyworker.unix.fds import allocate, memfd_fixed

_SANE = 2**53  # what a JSON reader in any language keeps exact
_STATUS = range(F.STATUS_1XX, F.STATUS_5XX + 1)
_LATENCY = range(F.LATENCY_0, F.LATENCY_0 + LATENCY_BUCKETS)
_SUMMED = (*_STATUS, int(F.LATENCY_SUM_US), *_LATENCY)  # row 0 has their sums of the dead at the same places


class BoardFull(Exception):
    """All rows are taken: more workers of one app at once than the board was made for."""


@record
class WorkerStats:
    """What a worker says of itself. Untrusted numbers, cut to 0..2**53; instants are monotonic seconds, 0.0 = never."""

    in_flight: int
    open: int
    requests: int
    progress_at: float
    oldest_at: float


class Board:
    """The scoreboard of one app. Owns `fd` and closes it with `close`."""

    def __init__(self, fd: int) -> None:
        if os.fstat(fd).st_size != SIZE:
            raise ValueError(f"a scoreboard is {SIZE} bytes, fd {fd} has {os.fstat(fd).st_size}")
        self.fd = fd
        self._map = mmap.mmap(fd, SIZE)
        self._cells = memoryview(self._map).cast("B").cast("Q")
        self._rows: dict[int, int] = {}  # serial -> row
        self._free: list[int] = []  # rows that were given back
        self._fresh = 1  # no row from here on was ever given out; the lowest is first, so few pages are touched

    @classmethod
    def create(cls, app: str) -> Board:
        fd = memfd_fixed(f"pyworker-board-{app}", SIZE)
        try:
            allocate(fd, 0, ROW_SIZE)
            return cls(fd)
        except OSError:
            os.close(fd)
            raise

    @classmethod
    def adopt(cls, fd: int, serials: Iterable[int]) -> Board:
        """Take over the board of a daemon before this one; rows of other workers than `serials` are cleared.

        A worker whose row cannot be found (scribbled over) has none any more: `row_of` says 0 and it counts nothing.
        """
        board = cls(fd)
        known = set(serials)
        # read, not looked at through the mapping: that would give every page of it memory, a megabyte an app
        serials_there = memoryview(os.pread(fd, SIZE, 0)).cast("Q")[F.SERIAL :: FIELDS].tolist()
        for row, serial in enumerate(serials_there[1:], 1):
            if serial in known and serial not in board._rows:
                board._rows[serial] = row
            elif serial:
                board._clear(row)
        taken = set(board._rows.values())
        board._fresh = max(taken, default=0) + 1
        board._free = [row for row in range(board._fresh - 1, 0, -1) if row not in taken]
        return board

    def close(self) -> None:
        """Unmap the board and close the fd; workers keep their own mapping."""
        self._cells.release()
        self._map.close()
        os.close(self.fd)

    # ---- rows --------------------------------------------------------------------------------------
    def allocate(self, worker: WorkerId) -> int:
        """Give the worker a zeroed row and return its number. OSError: there is no memory for it."""
        if self._free:
            row = self._free.pop()
        elif self._fresh < ROWS:
            allocate(self.fd, self._fresh * ROW_SIZE, ROW_SIZE)
            row = self._fresh
            self._fresh += 1
        else:
            raise BoardFull(f"app {worker.app} has {len(self._rows)} workers at once, the most there can be")
        self._clear(row)
        self._cells[row_slice(row)][F.SERIAL] = worker.serial
        self._rows[worker.serial] = row
        return row

    def free(self, serial: int) -> None:
        """Take the row back once the worker is dead; its requests go on counting for the app."""
        row = self._rows.pop(serial, 0)
        if row:
            self.add_app(AppF.REQUESTS_GONE, self._read(row, F.REQUESTS))
            for field in _SUMMED:
                self._cells[field] = min(self._cells[field] + self._read(row, field), _SANE)
            self._clear(row)
            self._free.append(row)

    def row_of(self, serial: int) -> int:
        return self._rows.get(serial, 0)

    def stats(self, serial: int) -> WorkerStats:
        """Return what the worker counts; zeros when it has no row."""
        row = self.row_of(serial)
        if not row:
            return NO_STATS
        cells = self._sane(row)
        return WorkerStats(
            in_flight=cells[F.IN_FLIGHT],
            open=cells[F.OPEN],
            requests=cells[F.REQUESTS],
            progress_at=cells[F.PROGRESS_AT] / 1e9,
            oldest_at=cells[F.OLDEST_AT] / 1e9,
        )

    def in_flight(self, serial: int) -> int:
        """Return how many requests a worker has in its hands."""
        row = self.row_of(serial)
        return self._read(row, F.IN_FLIGHT) if row else 0

    def progress_at(self, serial: int) -> float:
        """Return when a worker's event loop last made progress, 0.0: never."""
        row = self.row_of(serial)
        return self._read(row, F.PROGRESS_AT) / 1e9 if row else 0.0

    def has_left(self, serial: int) -> bool:
        """Whether a worker says that it accepts nothing any more; one without a row has never accepted."""
        row = self.row_of(serial)
        return not row or self._read(row, F.LEFT_AT) > 0

    # ---- the app's own row -------------------------------------------------------------------------
    def app(self, field: AppF) -> int:
        return min(self._cells[field], _SANE)

    def set_app(self, field: AppF, value: int) -> None:
        self._cells[field] = value

    def add_app(self, field: AppF, count: int = 1) -> None:
        self.set_app(field, min(self.app(field) + count, _SANE))

    def requests(self) -> int:
        """Return how many requests the app has answered, by workers that are gone too."""
        return self.app(AppF.REQUESTS_GONE) + sum(self._read(row, F.REQUESTS) for row in self._rows.values())

    def answered(self) -> tuple[int, int]:
        """Return how many requests the app has answered, and how many of them with 5xx, by workers that are gone too."""
        return self.requests(), self.totals().status[-1]

    def totals(self) -> Totals:
        """Return all that the app has answered, by workers that are gone too."""
        sums = self._sane(0)
        for row in self._rows.values():
            sums = [a + b for a, b in zip(sums, self._sane(row), strict=True)]
        return Totals(
            self.requests(),
            tuple(sums[F.STATUS_1XX : F.STATUS_5XX + 1]),
            sums[F.LATENCY_SUM_US],
            tuple(sums[F.LATENCY_0 : F.LATENCY_0 + LATENCY_BUCKETS]),
        )

    def _sane(self, row: int) -> list[int]:
        """Return the numbers of a row, each cut to what is sane."""
        cells = self._cells[row_slice(row)].tolist()
        return cells if max(cells) <= _SANE else [min(value, _SANE) for value in cells]

    def _read(self, row: int, field: int) -> int:
        return min(self._cells[row_slice(row)][field], _SANE)

    def _clear(self, row: int) -> None:
        cells = self._cells[row_slice(row)]
        for field in range(len(cells)):
            cells[field] = 0


NO_STATS = WorkerStats(0, 0, 0, 0.0, 0.0)

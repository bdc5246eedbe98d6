"""Logger: what it has read and not written yet, noted in memory that outlives it.

A pipe's bytes are gone once they are read, so a logger that is killed takes with it what it was about to write: one chunk
at most. The next logger finds here whose and how many lines, and says so in the log. Some of
them may have been written already: the number is the most that can be missing. Beside it stands what a full disk has cost
and the log does not mention yet.
"""

from __future__ import annotations

import mmap
import os
import struct

from pyworker.protocol.logs import HAND, in_hand, unsaid

_ROWS, _MOST_OWED = 128, 64
_SIZE = HAND.size * _ROWS
_NAME, _COUNT = struct.Struct("=64s"), struct.Struct("=q")


class Hands:
    """A file of the logs folder, mapped: the kernel keeps what was noted when the process is killed."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
            try:
                os.posix_fallocate(fd, 0, _SIZE)  # no SIGBUS later, when the disk is full
                self._map = mmap.mmap(fd, _SIZE)
            finally:
                os.close(fd)
        except OSError:  # nothing can be noted then; logging goes on
            self._map = mmap.mmap(-1, _SIZE)
        found = self._map[:]
        self._map[:] = bytes(_SIZE)
        self.left, self.unsaid = in_hand(found), unsaid(found)  # by the logger before this one
        self._rows: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._owed: dict[str, int] = {}

    def hold(self, app: str, lines: int) -> None:
        """Note lines that are being taken out of a pipe. Before a read nobody knows how many: say UNCOUNTED, then the rest."""
        count = self._held[app] = self._held.get(app, 0) + lines
        self._note(app, app, count)

    def _note(self, key: str, app: str, count: int) -> None:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = len(self._rows) * HAND.size
            _NAME.pack_into(self._map, row, app.encode())
        _COUNT.pack_into(self._map, row + _NAME.size, count)

    def owe(self, app: str, lines: int) -> None:
        """Note how many lines of an app are lost that its log does not mention yet."""
        if lines == self._owed.get(app, 0) or (app not in self._owed and len(self._owed) == _MOST_OWED):
            return
        self._owed[app] = lines
        if f"!{app}" in self._rows or len(self._rows) < _ROWS:  # else when there is room: `empty`
            self._note(f"!{app}", app, -lines)

    def has_room(self, app: str) -> bool:
        """Whether lines of this app can be noted before what is held is written."""
        return app in self._rows or len(self._rows) < _ROWS

    def empty(self) -> None:
        """All of it is written."""
        for app in self._held:
            _COUNT.pack_into(self._map, self._rows[app] + _NAME.size, 0)
        self._held.clear()
        if len(self._rows) == _ROWS:
            self._rows.clear()  # the next apps have them
            self._map[:] = bytes(_SIZE)
            self._owed = {app: lines for app, lines in self._owed.items() if lines}
            for app, lines in self._owed.items():
                self._note(f"!{app}", app, -lines)

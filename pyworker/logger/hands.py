"""Logger: what it has read and not written yet, noted in memory that outlives it.

A pipe's bytes are gone once they are read, so a logger that is killed takes with it what it was about to write: one chunk
at most. The next logger finds here whose and how many lines, and says so in the log. Some of
them may have been written already: the number is the most that can be missing. Beside it stands what a full disk has cost
and the log does not mention yet.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from collections.abc import Mapping

from pyworker.protocol.inherited import APP_NAME
from pyworker.protocol.logs import HAND, UNCOUNTED, in_hand, unsaid

_ROWS, _MOST_OWED, _MOST_BEGUN = 128, 64, 32
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
        self.left, self.unsaid = _of_apps(in_hand(found)), _of_apps(unsaid(found))  # by the logger before this one
        self._rows: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._owed: dict[str, int] = {}
        for app in [*{**self.unsaid, **self.left}][:_MOST_OWED]:  # the next one's, until this one has said it
            self._owed[app] = self.unsaid.get(app, 0) + lines_left(self.left.get(app, 0))
        self._note_anew()

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

    def empty(self, begun: Mapping[str, int]) -> None:
        """All of it is written but lines that have only `begun`, as many of each app."""
        for app in self._held:
            _COUNT.pack_into(self._map, self._rows[app] + _NAME.size, begun.get(app, 0))
        self._held = {app: lines for app, lines in begun.items() if app in self._rows}
        if len(self._rows) == _ROWS:
            self._held = dict(itertools.islice(self._held.items(), _MOST_BEGUN))
            self._owed = {app: lines for app, lines in self._owed.items() if lines}
            self._note_anew()  # the next apps have the rows of the others

    def _note_anew(self) -> None:
        """Note what is held and owed, and nothing else; all at once, for we may be killed at any moment."""
        notes = [(app, app, lines) for app, lines in self._held.items()]
        notes += [(f"!{app}", app, -lines) for app, lines in self._owed.items()]
        self._rows = {key: index * HAND.size for index, (key, _, _) in enumerate(notes)}
        self._map[:] = b"".join(HAND.pack(app.encode(), count) for _, app, count in notes).ljust(_SIZE, b"\0")


def lines_left(count: int) -> int:
    """Return how many lines a count in hand stands for; where the last chunk was not counted there is one at least."""
    return count and (count % UNCOUNTED or 1)


def _of_apps(counts: dict[str, int]) -> dict[str, int]:
    """Leave out what no logger has noted: the file may be anybody's."""
    return {app: count for app, count in counts.items() if count < 2 * UNCOUNTED and APP_NAME.match(app)}

"""Logger: a log file whose disk may not answer, so that it holds up nobody else's log.

A thread asks the disk, and what comes meanwhile is kept, up to a limit; beyond it lines are lost and counted, as on a full
disk. On a disk of the machine, which has answered once, there is no thread: there it costs ten times as much as a write.
"""

from __future__ import annotations

from pyworker.logger.file import LogFile
from pyworker.protocol.logs import LogsSpec
from pyworker.unix.errand import Errand

PATIENCE = 2.0  # seconds for which all wait for a disk
NO_PATIENCE = 0.02  # ... while one does not answer, and for the next word of one that did not
MOST_KEPT = 256 * 1024  # bytes
WHY = "its disk did not answer"
NEXT = f"{MOST_KEPT >> 10} KB are kept, then lines are lost (dmesg may say why; or reload with another logs.file)"


class PatientFile:
    """What LogFile is. While its disk does not answer, a `write` of nothing asks whether it has."""

    def __init__(self, spec: LogsSpec, app: str, hanging: list[PatientFile]) -> None:
        """`hanging`: all files whose disk does not answer, kept up to date here."""
        self.app = app
        self.lost = 0  # lines, since the logger started
        self.error = ""  # why lines are lost now, or soon
        self.unsaid = 0  # lines that would be missing without a word if the logger were killed now
        self._hanging = hanging
        self._file = LogFile(spec, app)
        self._is_direct = False
        self._was_late = False  # at least once
        self._errand: Errand[None] | None = None
        self._kept: list[bytes] = []
        self._room = MOST_KEPT
        self._owed = 0  # lines that the file is to mention once it can be written
        self._why = ""
        self._missed = 0  # lines that never came as far as the file
        self._closes = False

    @property
    def spec(self) -> LogsSpec:
        return self._file.spec

    @spec.setter
    def spec(self, spec: LogsSpec) -> None:
        self._file.spec = spec

    def write(self, records: bytes, now: float, stamp: str) -> None:
        """Have records written, and before them what was kept."""
        if self._is_direct:
            file = self._file
            file.write(records, now, stamp)
            self.lost, self.unsaid, self.error = file.lost + self._missed, file.unsaid, file.error
            self._is_direct = file.is_local
        elif self._errand is None or self._errand.is_over():
            self._begin(records, now, stamp)
        else:
            self._keep(records)

    def missed(self, count: int, why: str) -> None:
        """Count lines that never came as far as this; the file mentions them before the next record."""
        self._missed += count
        self.lost += count
        self.owe(count, why)

    def owe(self, count: int, why: str) -> None:
        """Mention, before the next record, lines that were counted as lost before."""
        self.unsaid += count
        self._owed += count
        self._why = why
        self._is_direct = False

    def close(self) -> None:
        """Close it, once all that is kept is written."""
        self._closes = True
        if self not in self._hanging:
            Errand(self._file.close)  # nobody needs to know when

    def _begin(self, records: bytes, now: float, stamp: str) -> None:
        file, kept, owed, why, closes = self._file, b"".join(self._kept), self._owed, self._why, self._closes
        self._kept, self._room, self._owed = [], MOST_KEPT, 0
        if self._errand is not None:
            self._errand.result()

        def carry_out() -> None:
            if kept:
                file.write(kept, now, stamp)
            if owed:
                file.owe(owed, why)
            if records or file.unsaid:
                file.write(records, now, stamp)
            if closes:
                file.close()

        unsaid = file.unsaid + kept.count(b"\n") + owed + records.count(b"\n")
        self._errand = Errand(carry_out)
        patience = NO_PATIENCE if self._hanging else PATIENCE
        if self in self._hanging:
            self._hanging.remove(self)
        if self._errand.is_over(patience):
            self._errand.result()
            self._errand = None
            self.lost, self.unsaid, self.error = file.lost + self._missed, file.unsaid, file.error
            self._is_direct = file.is_local and not self._was_late
        else:
            self._hanging.append(self)
            self._was_late = True
            self.unsaid = unsaid
            self.error = f"the disk of {file.spec.file} does not answer: {NEXT}"

    def _keep(self, records: bytes) -> None:
        """Lose all from the first on that has no room: who reads the log finds one hole, and not many."""
        lines = records.count(b"\n")
        if self._owed or len(records) > self._room:
            self.missed(lines, WHY)
        else:
            self.unsaid += lines
            self._kept.append(records)
            self._room -= len(records)

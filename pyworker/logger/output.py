"""Logger: what was read, until it is written: the specs of all apps, their files, and who else is told.

Blocks for a moment in the disk, or until stdout's reader takes something. Knows no pipe and no channel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Literal

from pyworker import failpoint
from pyworker.logger.file import point_to
from pyworker.logger.hands import Hands, lines_left
from pyworker.logger.journal import Journal
from pyworker.logger.lines import CHUNK
from pyworker.logger.patient import PatientFile
from pyworker.logger.stdout import Stdout
from pyworker.protocol.logs import IN_HAND, STDOUT, UNCOUNTED, Format, LogsSpec, stamp
from pyworker.protocol.names import LOGS_DIR
from pyworker.protocol.store import LogStats

DEFAULT_SIZE, DEFAULT_FILES = 50 * 1024 * 1024, 5


class Output:
    """Where lines go. What is killed with them in its hands is counted by the next one."""

    def __init__(self, home: str, stdout: Literal["", "short", "json", "plain"], wait: Callable[[], None]) -> None:
        """`stdout`: see Logger. `wait` returns when its reader takes something."""
        self.specs: dict[str, LogsSpec] = {}
        self._home = home
        self._stdout = stdout
        self._wait = wait
        self._files: dict[str, PatientFile | Stdout] = {}
        self._batch: dict[PatientFile | Stdout, list[bytes]] = {}
        self._hanging: list[PatientFile] = []
        self._hands = Hands(os.path.join(home, LOGS_DIR, IN_HAND) if home else "")
        self._journal = Journal()
        self._for_journal: list[bytes] = []
        self._said: dict[str, tuple[int, str]] = {}  # app -> what the last LogStats told
        self._in_hand = 0  # bytes that are read and not written
        self._begun: dict[str, int] = {}  # app -> lines of which only the beginning has been read

    # ---- what is read --------------------------------------------------------------------------------
    def take_in_hand(self, app: str) -> int:
        """Note that a chunk is read, before its bytes are out of the pipe; return how many they may be."""
        if not self._hands.has_room(app):
            self.write()
        self._hands.hold(app, UNCOUNTED)
        return CHUNK - self._in_hand

    def has_taken(self, app: str, size: int = 0, lines: int = 0) -> None:
        self._hands.hold(app, lines - UNCOUNTED)
        self._in_hand += size

    def put(self, app: str, records: bytes, begun: int = 0) -> None:
        """Have an app's records written with the next `write`. `begun`: so many lines more are held unfinished, or fewer."""
        if begun:
            self._begun[app] = self._begun.get(app, 0) + begun
            if not self._begun[app]:
                del self._begun[app]
        if records:
            self._batch.setdefault(self._file(app), []).append(records)
            if self._spec(app).journald:
                self._for_journal.append(records)

    @property
    def is_full(self) -> bool:
        """Whether it is to be written now: however many print at once, a kill costs no more than a chunk."""
        return self._in_hand >= CHUNK

    def write(self) -> None:
        self._in_hand = 0
        if self._batch:
            failpoint.hit("logger.write")
        for hanging in self._hanging:
            self._batch.setdefault(hanging, [])
        for file, records in self._batch.items():
            file.write(b"".join(records), time.monotonic(), stamp(time.time()))
            self._hands.owe(file.app, file.unsaid)
        self._batch = {}
        self._hands.empty(self._begun)
        if self._for_journal:
            self._journal.write(b"".join(self._for_journal))
            self._for_journal = []

    @property
    def hangs(self) -> bool:
        """Whether `write` is to be called soon: a disk that does not answer may do so by then."""
        return bool(self._hanging)

    # ---- where it goes -------------------------------------------------------------------------------
    def format(self, app: str) -> Format:
        return self._spec(app).format

    def configure(self, app: str, spec: LogsSpec, printing: Iterable[str]) -> None:
        """Write an app's records as the spec says. `printing`: the apps that have a pipe."""
        self.write()  # what was read before belongs to the file before
        before = self._spec(app).file
        self.specs[app] = spec
        if self._home and spec.file != STDOUT:
            point_to(self._home, app, spec.file)
        self._go_on_for(app)
        file = self._files.get(spec.file)
        if file is not None:
            file.spec = spec
        if before != spec.file:
            self._drop_unused_files(printing)

    def _go_on_for(self, app: str) -> None:
        """Have the app's log say what the logger before this one has lost."""
        left, unsaid = self._hands.left.pop(app, 0), self._hands.unsaid.pop(app, 0)
        if not left and not unsaid:
            return
        file = self._file(app)
        if left:
            how_many = "or more: it had not counted the last" if left >= UNCOUNTED else "at most"
            file.missed(lines_left(left), f"the logger was killed with them in its hands ({how_many})")
        if unsaid:
            file.owe(unsaid, "the logger before this one could not write them")
        self._hands.owe(file.app, file.unsaid)
        if file.app != app:
            self._hands.owe(app, 0)

    def forget(self, app: str, printing: Iterable[str]) -> None:
        self.write()
        self.specs.pop(app, None)
        self._drop_unused_files(printing)

    def _spec(self, app: str) -> LogsSpec:
        found = self.specs.get(app)
        if found is None and self._stdout:
            return LogsSpec(STDOUT, self._stdout, 0, 0, compress=False)
        if found is None:
            path = os.path.join(self._home, LOGS_DIR, f"{app}.log")
            return LogsSpec(path, "text", DEFAULT_SIZE, DEFAULT_FILES, compress=False)
        return found

    def _file(self, app: str) -> PatientFile | Stdout:
        spec = self._spec(app)
        file = self._files.get(spec.file)
        if file is None:
            file = Stdout(spec, app, self._wait) if spec.file == STDOUT else PatientFile(spec, app, self._hanging)
            self._files[spec.file] = file
        return file

    def _drop_unused_files(self, printing: Iterable[str]) -> None:
        used = {self._spec(app).file for app in {*self.specs, *printing}}
        for path in [p for p in self._files if p not in used]:
            self._files.pop(path).close()

    # ---- what it has cost ----------------------------------------------------------------------------
    def has_news(self) -> bool:
        return bool(self._unreported())

    def news(self) -> list[LogStats]:
        """Return what has changed since the last call: lines that were lost, and why."""
        told = self._unreported()
        self._said |= {file.app: (file.lost, file.error) for file in told}
        return [LogStats(file.app, file.lost, 0, file.error) for file in told]

    def tell_again(self) -> None:
        """Have `news` tell what is wrong now: there is a daemon that has not heard it."""
        self._said = {app: (lost, error) for app, (lost, error) in self._said.items() if not error}

    def _unreported(self) -> list[PatientFile | Stdout]:
        return [f for f in self._files.values() if (f.lost, f.error) != self._said.get(f.app, (0, ""))]

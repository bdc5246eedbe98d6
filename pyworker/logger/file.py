"""Logger: one log file. Appends whole records, rotates by size, goes on after a full disk and says what was lost.

Never raises for what the disk does: lines that cannot be written are counted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from pyworker.logger.rotation import rotation_of
from pyworker.protocol.logs import LogRecord, LogsSpec, format_record
from pyworker.protocol.names import LOGS_DIR
from pyworker.unix import files
from pyworker.unix.errand import is_local

LOOK_EVERY = 2.0  # seconds between looks whether somebody has moved or removed the file
RETRY_OPEN = 0.5


class LogFile:
    """The file of one path; apps may share it."""

    def __init__(self, spec: LogsSpec, app: str) -> None:
        self.spec = spec
        self.app = app  # the one that is told of losses
        self.lost = 0  # lines, since the logger started
        self.error = ""  # why lines are lost now; "" while all is well
        self.unsaid = 0  # lost lines that the file does not mention yet
        self.is_local = False  # it is open, and on a disk of the machine
        self._why = ""
        self._torn = False  # the file ends in the middle of a record
        self._fd = -1
        self._size = 0
        self._rotation = rotation_of(spec.file)
        self._next_look = 0.0
        self._next_open = 0.0
        if spec.compress:
            self._rotation.compress()

    def write(self, records: bytes, now: float, stamp: str) -> None:
        """Append records (complete lines). `stamp` is the time of a record about lost lines, if one is due."""
        if self._fd >= 0 and now >= self._next_look:
            self._look(now)
        if self._fd < 0 and not self._open(now):
            self._lose(records)
            return
        if self.unsaid:
            lines = "1 line was" if self.unsaid == 1 else f"{self.unsaid} lines were"
            text = f"{lines} lost here: {self._why}".encode()
            note = LogRecord(stamp, self.app, 0, os.getpid(), "err", partial=False, msg=text)
            if not self._append(format_record(note, self.spec.format), count=False):
                self._lose(records)
                return
            self.unsaid = 0
        while records:
            cut = self._room_for(records)
            self._append(records[:cut])
            records = records[cut:]
            if records and not self._rotate(now):
                why = self.error
                self._append(records) if self._fd >= 0 else self._lose(records)
                self.error = self.error or why
                return

    def _room_for(self, records: bytes) -> int:
        """Return how many bytes of the records, whole ones, still fit; one that fits nowhere gets a file of its own."""
        room = self.spec.max_size - self._size
        if len(records) <= room:
            return len(records)
        fits = records.rfind(b"\n", 0, max(0, room)) + 1
        return fits if fits or self._size else records.find(b"\n") + 1

    def owe(self, count: int, why: str) -> None:
        """Mention, before the next record, lines that were counted as lost before."""
        self.unsaid += count
        self._why = why

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a network's disk says here what it could not keep
                os.close(self._fd)
            self._fd = -1
            self.is_local = False

    def _append(self, records: bytes, *, count: bool = True) -> bool:
        """Write it all, or whole records only: what was torn by a full disk is cut off again, or ended before the next."""
        data = b"\n" + records if self._torn else records
        view = memoryview(data)
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, view[done:])
        except OSError as error:
            self.error = self._why = error.strerror or str(error)
            whole = data.rfind(b"\n", 0, done) + 1
            if count:
                self._lose(data[max(whole, len(data) - len(records)) :])
            self._torn = self._torn and not whole
            if whole < done:
                try:
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - (done - whole))
                except OSError:  # nothing is cut off a file with chattr +a, or a named pipe
                    self._torn = True
            self._size += whole
            return False
        self._size += done
        self._torn = False
        self.error = ""
        return True

    def _lose(self, records: bytes) -> None:
        count = records.count(b"\n")
        self.lost += count
        self.unsaid += count

    def _open(self, now: float) -> bool:
        if now < self._next_open:
            return False
        path = self.spec.file
        try:
            self._fd = _opened(path)
            found = os.fstat(self._fd)
            if why := _planted(path, found):
                raise PermissionError(errno.EPERM, why)
        except OSError as error:
            self.close()
            self.error = self._why = f"cannot open {path}: {_cause(path, error)}"
            self._next_open = now + RETRY_OPEN
            return False
        self._size = found.st_size
        self._next_look = now + LOOK_EVERY
        self.is_local = is_local(found)
        is_file = stat.S_ISREG(found.st_mode)
        # a logger was killed, or a disk full, in the middle of a record
        self._torn = self._size > 0 and is_file and not _ends_with_newline(path, found)
        return True

    def _look(self, now: float) -> None:
        """Open the file again when its name is another file's (logrotate), and learn its size (copytruncate)."""
        self._next_look = now + LOOK_EVERY
        try:
            ours = os.fstat(self._fd)  # on a network's disk it can be gone, too
            named = os.stat(self.spec.file, follow_symlinks=False)
        except OSError:
            self.close()
            return
        self._size = ours.st_size
        if (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
            self.close()

    def _rotate(self, now: float) -> bool:
        """Go on in a new file; False when that is not possible (the old one grows on, or there is none)."""
        self._look(now)  # never rotate what somebody else has just rotated
        if self._fd >= 0 and self._size > 0:
            try:
                self._rotation.shift(self.spec.max_files)
            except OSError as error:
                self.error = f"cannot rotate {self.spec.file}: {error.strerror}"  # better too long than lost
                return False
            self.close()
            if self.spec.compress:
                self._rotation.compress()
        return self._fd >= 0 or self._open(now)


def _opened(path: str) -> int:
    try:
        return files.open_append(path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return files.open_append(path)


def _cause(path: str, error: OSError) -> str:
    """Return why a file cannot be opened. A kernel that protects against planted ones only says no."""
    planted = ""
    if error.errno == errno.ELOOP and os.path.islink(path):
        return "it is a symbolic link, and none is followed; set logs.file to what it points to"
    if error.errno == errno.EACCES:
        with contextlib.suppress(OSError):
            planted = _planted(path, os.lstat(path))
    return planted or error.strerror or str(error)


def _planted(path: str, found: os.stat_result) -> str:
    """Say why a file cannot be ours that lies where everybody may make files (/tmp), "" if it may be.

    Kernels can be told to look at this (fs.protected_regular, protected_fifos, protected_hardlinks); not all are.
    """
    folder = os.stat(os.path.dirname(path))
    if not (folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH):
        return ""
    if found.st_uid not in (os.geteuid(), folder.st_uid):
        return f"user {found.st_uid} has put it there, where everybody may; remove it, or log to another folder"
    return "it has another name elsewhere; remove this one, or log to another folder" if found.st_nlink > 1 else ""


def _ends_with_newline(path: str, found: os.stat_result) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(fd, 1, found.st_size - 1) == b"\n"
        finally:
            os.close(fd)
    except OSError:
        return True


def point_to(home: str, app: str, file: str) -> None:
    """Leave a link logs/APP.path to a log that is elsewhere, for those who look for it while no daemon runs."""
    folder = os.path.join(home, LOGS_DIR)
    link = os.path.join(folder, f"{app}.path")
    with contextlib.suppress(OSError):
        if os.path.dirname(file) == folder and os.path.basename(file) == f"{app}.log":
            os.unlink(link)
        elif not os.path.islink(link) or os.readlink(link) != file:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link + ".new")  # of a logger that was killed before the next line but one
            os.symlink(file, link + ".new")
            os.rename(link + ".new", link)

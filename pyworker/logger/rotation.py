"""Logger: file.log → file.log.1 → file.log.2 …, compressed in a thread when asked. Loses and tears nothing.

Names are shifted under a lock, and a compressed file takes the place of the one with the same inode: a rotation
in the middle of a compression does not confuse it. Errors of compression leave the file as it was.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import weakref

from pyworker import failpoint
from pyworker.protocol.names import ROTATED


class Rotation:
    """The rotated files of one log file; `rotation_of` finds the one that there is."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names = threading.Lock()
        self._thread: threading.Thread | None = None
        self._temporary = f"{path}.compressing"

    def shift(self, max_files: int) -> None:
        """Move file.log out of the way: it becomes file.log.1, or is removed when no rotated file is to be kept."""
        failpoint.hit("rotate.before_rename")
        with self._names:
            rotated = sorted(self._rotated(), reverse=True)
            numbers = {number for number, _ in rotated}
            # what is beyond it need not move: a shift that fails at its end, again and again, must not cost all of them
            free = next(number for number in itertools.count(1) if number not in numbers)
            for number, name in rotated:
                if number > max_files or number == max_files < free:
                    os.unlink(name)
                elif number < free:
                    suffix = ".gz" if name.endswith(".gz") else ""
                    os.rename(name, f"{self._path}.{number + 1}{suffix}")
            if max_files > 0:
                os.rename(self._path, f"{self._path}.1")
            else:
                os.unlink(self._path)
        failpoint.hit("rotate.after_rename")

    def compress(self) -> None:
        """Start to compress what is not yet; one thread at a time."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._compress_all, daemon=True, name="compress")
            with contextlib.suppress(RuntimeError):  # there are too many: at the next rotation
                self._thread.start()

    def _compress_all(self) -> None:
        with contextlib.suppress(OSError):  # not now: at the next rotation
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)  # of a logger that was killed
            while True:
                with self._names:
                    rotated = [name for _, name in sorted(self._rotated(), reverse=True) if not name.endswith(".gz")]
                # where everybody may make files (/tmp) somebody may have put a pipe there, or a link to a file that is not his
                plain = [name for name in rotated if os.path.isfile(name) and not os.path.islink(name)]
                if not plain or not self._compress_one(plain[0]):
                    return

    def _compress_one(self, name: str) -> bool:
        try:
            import gzip  # here: with what they import they cost a logger's start 5 ms
            import shutil

            with open(name, "rb", opener=_open_no_link) as source:
                before = os.fstat(source.fileno())
                fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                # the file itself says when: gzip has 32 bits for it, too few for a clock that is wrong
                with open(fd, "wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as target:
                    shutil.copyfileobj(source, target, 1024 * 1024)
                os.utime(self._temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
        except FileNotFoundError:
            return True  # rotated away before it was opened: look again
        except (OSError, ImportError):
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            return False
        with self._names, contextlib.suppress(FileNotFoundError):  # somebody else may remove them at any moment
            for _, now in self._rotated():
                found = os.stat(now)
                if (found.st_dev, found.st_ino) == (before.st_dev, before.st_ino):
                    os.rename(self._temporary, now + ".gz")
                    os.unlink(now)
                    return True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)  # it was the oldest and is gone
        return True

    def _rotated(self) -> list[tuple[int, str]]:
        folder, name = os.path.split(self._path)
        pattern = re.compile(re.escape(name) + ROTATED + r"\Z")
        # raises OSError: who took an unread folder for an empty one would rename the log over another
        matches = [(pattern.match(entry), entry) for entry in os.listdir(folder)]
        return [(int(match[1]), os.path.join(folder, entry)) for match, entry in matches if match]


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


_all: weakref.WeakValueDictionary[str, Rotation] = weakref.WeakValueDictionary()


def rotation_of(path: str) -> Rotation:
    """Return the rotation of a log file: one for all that write it, or two threads would compress into one file."""
    return _all.setdefault(path, Rotation(path))

"""CLI: the log files of a home: which there are, read from their end or their start, followed across rotation.

Reads only, and asks nobody: it works while the daemon is down. Lines are bytes without their newline.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from pyworker.cli.lines import LONGEST, backwards, last_first, open_file
from pyworker.protocol.inherited import APP_NAME
from pyworker.protocol.names import DAEMON_LOG, LOGS_DIR, ROTATED

_BLOCK = 256 * 1024
_TURN = 4 * 1024 * 1024  # bytes that a follower takes at a time
_TURN_LINES = 50_000  # lines of a compressed file that it takes at a time
_A_ROTATION = 0.05  # seconds, more than one takes to give all files their new names


def find(home: str) -> dict[str, str]:
    """Return app → log file. An app whose log is elsewhere has a link `logs/APP.path` that the logger has made."""
    folder = os.path.join(home, LOGS_DIR)
    found: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(folder), reverse=True):  # APP.path before APP.log
            app, _, kind = name.rpartition(".")
            if kind == "path" and APP_NAME.match(app):
                found[app] = os.path.realpath(os.path.join(folder, name))
            elif kind == "log" and APP_NAME.match(app) and app not in found and f"{LOGS_DIR}/{name}" != DAEMON_LOG:
                found[app] = os.path.join(folder, name)
    return dict(sorted(found.items()))


def rotated(path: str) -> list[str]:
    """Return the rotated files of a log, newest first: file.log.1, file.log.2.gz…"""
    folder, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + ROTATED + r"\Z")
    found = []
    with contextlib.suppress(OSError):
        found = [(int(m[1]), e) for e in os.listdir(folder) if (m := pattern.match(e))]
    return [os.path.join(folder, entry) for _, entry in sorted(found)]


class Log:
    """One log file, opened once: its past up to now, then what is added. `close` it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.refused: dict[str, PermissionError] = {}  # files that may not be opened: they are passed over
        self._fd = self._open(path)
        self._is_hidden = path in self.refused
        self._at = 0  # where `more` goes on
        if self._fd is not None:
            self._at = _after_last_newline(self._fd, os.fstat(self._fd).st_size)
        self._before = rotated(path)
        self._end = self._at
        self._rest = b""
        self._last = b""
        self._lost = False
        self.gap: tuple[bytes, bytes] | None = None  # lines between which some are missing: for who reads `more`
        self._unpacked: Iterator[bytes] = iter(())

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def is_outdated(self) -> bool:
        """True for one that might not be opened and may be now: its past is not known, so it is to be made anew."""
        return self._is_hidden and os.access(self.path, os.R_OK)

    def _open(self, path: str) -> int | None:
        try:
            return open_file(path)
        except PermissionError as error:
            self.refused[path] = error
            return None

    def _if_allowed(self, path: str, lines: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from lines
        except PermissionError as error:
            self.refused[path] = error

    # ---- the past -----------------------------------------------------------------------------------
    def backwards(self) -> Iterator[bytes]:
        """Yield the lines that were there when the log was opened, the newest first, older files too."""
        if self._fd is not None:
            yield from backwards(self._fd, self._end)
        for path in self._before:
            if path.endswith(".gz"):
                yield from reversed(list(self._if_allowed(path, _forwards(path))))
            else:
                yield from self._if_allowed(path, last_first(path))

    def forwards(self, since: float) -> Iterator[bytes]:
        """Yield these lines oldest first, without files last written before `since` (seconds of the epoch)."""
        for path in reversed(self._before):
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_mtime >= since:
                    yield from self._if_allowed(path, _forwards(path))
        if self._fd is not None:
            with open(f"/proc/self/fd/{self._fd}", "rb") as file:  # by its fd: it may have been renamed
                yield from _split(file, self._end)

    # ---- what is added ------------------------------------------------------------------------------
    def more(self) -> list[bytes]:
        """Return the lines added since the last call (a part of a long batch at a time); [] when there are none.

        `gap`: what came between the line before and the first of these was rotated away before it was looked at.
        """
        lines = self._more()
        self.gap = None
        if lines:
            if self._lost:
                self.gap, self._lost = (self._last, lines[0]), False
            self._last = lines[-1]
        return lines

    def _more(self) -> list[bytes]:
        if unpacked := list(itertools.islice(self._unpacked, _TURN_LINES)):
            return unpacked
        data = self._read()
        if not data and self._is_replaced():
            data = self._read()  # written between the look and the rotation
            if not data:
                if self._rest:
                    ending, self._rest = self._rest, b""
                    return [ending]
                self._next()
                return self._lines(self._read())
        return self._lines(data)

    def _lines(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            lines.append(self._rest)
            self._rest = b""
        return lines

    def _read(self) -> bytes:
        if self._fd is None:
            self._fd = None if self._is_hidden else self._open(self.path)
            if self._fd is None:
                return b""
        data = os.pread(self._fd, _TURN, self._at)
        self._at += len(data)
        return data

    def _is_replaced(self) -> bool:
        """True when this file is at its end for good: another one has its name, or it was cut."""
        if self._fd is None:
            return False
        ours = os.fstat(self._fd)
        if ours.st_size < self._at:
            return True
        try:
            now = os.stat(self.path)
        except OSError:
            return False  # moved away, and the next one is not made yet
        # an empty one is logrotate's: the logger goes on in ours until it has looked
        return now.st_size > 0 and (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)

    def _next(self) -> None:
        """Go on in the file that comes after this one: more than one rotation may have happened."""
        assert self._fd is not None
        ours = os.fstat(self._fd)
        following = newer = self.path
        is_there = ours.st_nlink > 0
        moved: list[float] = []
        for path in rotated(self.path) if ours.st_size >= self._at else ():
            with contextlib.suppress(OSError):
                found = os.stat(path)
                is_compressed = path.endswith(".gz") and found.st_mtime_ns == ours.st_mtime_ns
                if is_compressed or (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                    is_there, following = True, newer  # whatever the times say: the clock may have been set back
                    break
                newer = path
                if found.st_mtime_ns >= ours.st_mtime_ns:
                    following = path
                moved.append(found.st_ctime)
        # the rotation that removed ours has moved all others; one after it has removed the file that came next
        self._lost = not is_there and bool(moved) and min(moved) > ours.st_ctime + _A_ROTATION
        if self._lost and not self._last:
            self._last = next(backwards(self._fd, self._at), b"")
        self.close()
        self._fd = self._open(following)
        self._at = 0
        if following.endswith(".gz") and self._fd is not None:
            self._unpacked = _unzipped(f"/proc/self/fd/{self._fd}")  # by its fd: it may be renamed
            self._at = os.fstat(self._fd).st_size


def _forwards(path: str) -> Iterator[bytes]:
    if path.endswith(".gz"):
        yield from _unzipped(path)
        return
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), open(path, "rb") as file:
        yield from _split(file, None)


def _unzipped(path: str) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            yield from _split(cast("BinaryIO", file), None)
    except (FileNotFoundError, IsADirectoryError, EOFError, gzip.BadGzipFile, zlib.error):
        return  # gone, or damaged: what could be read was


def _split(file: BinaryIO, left: int | None) -> Iterator[bytes]:
    rest = b""
    while left is None or left > 0:
        data = file.read(_BLOCK if left is None else min(_BLOCK, left))
        if not data:
            break
        if left is not None:
            left -= len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > LONGEST:
            yield rest
            rest = b""
    if rest:
        yield rest


def _after_last_newline(fd: int, size: int) -> int:
    """Return the offset after the last whole line: what is being written now belongs to what is added."""
    at = size
    while at > 0:
        start = max(0, at - _BLOCK)
        found = os.pread(fd, at - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0

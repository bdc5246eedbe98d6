"""Worker: what an app in the loop has said and its client has not taken yet: in memory, past 1 MiB in a temporary file."""

from __future__ import annotations

import contextlib
import os

from pyworker.errors import NO_DESCRIPTOR
from pyworker.worker.engines.files import PIECE

IN_MEMORY = 1 << 20  # bytes
MOST = 16 << 20  # bytes that an app may be ahead of its client, as far as the disk has room
ROOM = 256 << 20  # bytes that must be free there


class Ahead:
    """Parts that are put in, and taken out in the same order. `close` frees the file."""

    __slots__ = ("_at", "_file")

    def __init__(self) -> None:
        import tempfile  # few ever need it, and it costs every start

        self._at = 0
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY if _has_disk() else 0)  # noqa: SIM115 - 0: as much as there is

    def put(self, part: bytes) -> None:
        try:
            self._file.write(part)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise  # for a file there is no descriptor: what was written stays in memory

    def take(self) -> bytes:
        """Return the next piece, b"" when all was taken."""
        self._file.seek(self._at)
        piece = self._file.read(PIECE)
        self._at += len(piece)
        self._file.seek(0, os.SEEK_END)
        return piece

    def may_grow(self) -> bool:
        """Whether an app may be asked for more: what was taken counts, too."""
        size = self._file.tell()
        return size < IN_MEMORY // 2 or (size < MOST and _has_disk())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # there is no room for what is in its buffer, and nobody wants it
            self._file.close()


def _has_disk() -> bool:
    import tempfile

    try:
        disk = os.statvfs(tempfile.gettempdir())
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize >= ROOM

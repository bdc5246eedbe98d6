"""Worker: a request's body collected before a wsgi app runs: in memory, past 1 MiB in a temporary file."""

from __future__ import annotations

import contextlib
import io
from typing import IO

IN_MEMORY = 1024 * 1024


class Body:
    """Bytes that arrive in parts. `close` frees the file."""

    __slots__ = ("_file", "size")

    def __init__(self) -> None:
        self._file: IO[bytes] = io.BytesIO()
        self.size = 0

    def append(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > IN_MEMORY and isinstance(self._file, io.BytesIO):
            spooled = _temporary()
            spooled.write(self._file.getvalue())
            self._file = spooled
        self._file.write(data)

    def rewound(self) -> IO[bytes]:
        """Return the file that the app reads, at its start."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        with contextlib.suppress(OSError):  # there is no room for what is in its buffer, and nobody wants it
            self._file.close()


def _temporary() -> IO[bytes]:
    import tempfile  # few ever need it, and it costs every start

    try:
        return tempfile.TemporaryFile()
    except FileNotFoundError:
        # $TMPDIR was removed: that of a login which has ended, say. Python looks for another one only once
        return tempfile.TemporaryFile(dir="/tmp")

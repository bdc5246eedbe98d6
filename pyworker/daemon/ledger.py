"""Daemon: its memo of one app, in a memfd that outlives it.

What the fd names and the scoreboard cannot say: each worker's state and since when, the soak, the restart record.
Two halves are written in turn, each with a number and a checksum: a daemon killed in the middle of a write leaves
the half before intact. Monotonic instants stay true, the machine has not booted in between (a memfd would be gone).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from typing import Any

from pyworker import failpoint
from pyworker.unix.fds import memfd_fixed

# A reload of 1,000 workers, of whom each has ended once with much to say, takes 3 MB; what is not touched is no memory.
HALF = 4 * 1024 * 1024
_HEAD = struct.Struct("<QII")  # number, length, crc of the content


class Ledger:
    """A JSON value that survives its writer. Owns the mapping, not the fd."""

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size  # a daemon of another version may have made it
        self._map = mmap.mmap(fd, size)
        self._half = size // 2
        self._number = 0
        self._last = b""
        for offset in (0, self._half):
            number, length, crc = _HEAD.unpack_from(self._map, offset)
            if number > self._number and length <= self._half - _HEAD.size:
                content = self._map[offset + _HEAD.size : offset + _HEAD.size + length]
                if zlib.crc32(content) == crc:
                    self._number, self._last = number, content

    @staticmethod
    def create(app: str) -> int:
        """Return a new, empty ledger's memfd (the caller's)."""
        return memfd_fixed(f"pyworker-ledger-{app}", 2 * HALF)

    def read(self) -> dict[str, Any]:
        """Return what was written last, {} for a new ledger or one that nobody can read."""
        try:
            value = json.loads(self._last) if self._last else {}
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def write(self, value: dict[str, Any]) -> None:
        """Write a value; one equal to the last costs no write. A value too large for a half is an OSError."""
        content = json.dumps(value, separators=(",", ":")).encode()
        if content == self._last:
            return
        if len(content) > self._half - _HEAD.size:
            raise OSError(f"ledger of {len(content)} bytes")
        self._number += 1
        offset = self._half * (self._number % 2)
        # the number goes in last: until then this half is older than the other
        _HEAD.pack_into(self._map, offset, 0, len(content), zlib.crc32(content))
        self._map[offset + _HEAD.size : offset + _HEAD.size + len(content)] = content
        failpoint.hit("ledger.half")
        struct.pack_into("<Q", self._map, offset, self._number)
        self._last = content

    def close(self) -> None:
        self._map.close()

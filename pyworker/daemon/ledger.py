"""Daemon: its memo of one app, in a memfd that outlives it.

What the fd names and the scoreboard cannot say: each worker's state and since when, the soak, the restart record.
Two halves are written in turn, each with a number and a checksum: a daemon killed in the middle of a write leaves
the half before intact. Monotonic instants stay true, the machine has not booted in between (a memfd would be gone).
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import Any

from pyworker import failpoint
from pyworker.unix.fds import allocate, memfd_fixed

# A reload of 1,000 workers, of whom each has ended once with much to say, takes 3 MB; what is not touched is no memory.
HALF = 4 * 1024 * 1024
_HEAD = struct.Struct("<QII")  # number, length, crc of the content


class Ledger:
    """A JSON value that survives its writer. Has a descriptor of its own, and no mapping: one that the kernel has no memory
    for (vm.overcommit_memory = 2) would be a SIGBUS.
    """

    _fd = -1

    def __init__(self, fd: int) -> None:
        self._half = os.fstat(fd).st_size // 2  # a daemon of another version may have made it
        self._number = 0
        self._last = b""
        for offset in (0, self._half):
            number, length, crc = _HEAD.unpack(os.pread(fd, _HEAD.size, offset))
            if number > self._number and length <= self._half - _HEAD.size:
                content = os.pread(fd, length, offset + _HEAD.size)
                if zlib.crc32(content) == crc:
                    self._number, self._last = number, content
        self._fd = os.dup(fd)

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
        """Write a value; one equal to the last costs no write. OSError: it is too large for a half, or there is no memory."""
        content = json.dumps(value, separators=(",", ":")).encode()
        if content == self._last:
            return
        if len(content) > self._half - _HEAD.size:
            raise OSError(f"ledger of {len(content)} bytes")
        number = self._number + 1
        offset = self._half * (number % 2)
        # the number goes in last: until then this half is older than the other
        data = _HEAD.pack(0, len(content), zlib.crc32(content)) + content
        allocate(self._fd, offset, len(data))
        os.pwrite(self._fd, data, offset)
        failpoint.hit("ledger.half")
        os.pwrite(self._fd, struct.pack("<Q", number), offset)
        self._number, self._last = number, content

    def close(self) -> None:
        """Close its descriptor; the one that it was given stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

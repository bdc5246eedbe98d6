"""Pages of memory that this process still shares with the one that it was forked from."""

from __future__ import annotations

import ctypes
import os
import re

from pyworker.unix.procfs import read_all

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14: copies what a write would copy, and writes nothing
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ENTRY = 8  # bytes of /proc/PID/pagemap for each page; all that is asked here stands in the last of them
_PIECE = 1 << 26  # bytes of memory that are looked at at once: some programs reserve a terabyte
_IS_SHARED = bytes(byte == 0x80 for byte in range(256))  # in memory
_IS_OWN = bytes(byte == 0x81 for byte in range(256))  # the same, and in nobody else's

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def copy_like(pid: int, most: int) -> int:
    """Have those shared pages copied now that `pid` has had copied by writing to them; return how many bytes, at most `most`.

    `pid` is another fork of the same process: its addresses mean the same. OSError: it is gone (0 on older kernels, while it
    is not reaped), or the kernel is too old or lets nobody look.
    """
    room = most // _PAGE
    left = room
    own = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, end in _writable():
                ours = int.from_bytes(_flags(own, start, end).translate(_IS_SHARED), "little")
                theirs = int.from_bytes(_flags(other, start, end).translate(_IS_OWN), "little")
                for run in re.finditer(b"\1+", (ours & theirs).to_bytes((end - start) // _PAGE, "little")):
                    pages = min(run.end() - run.start(), left)
                    if _libc.madvise(start + run.start() * _PAGE, pages * _PAGE, _POPULATE_WRITE) != 0:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                    left -= pages
                    if not left:
                        return room * _PAGE
        finally:
            os.close(other)
    finally:
        os.close(own)
    return (room - left) * _PAGE


def _flags(pagemap: int, start: int, end: int) -> bytes:
    entries = os.pread(pagemap, (end - start) // _PAGE * _ENTRY, start // _PAGE * _ENTRY)
    return entries[_ENTRY - 1 :: _ENTRY]


def _writable() -> list[tuple[int, int]]:
    found = []
    for line in read_all("/proc/self/maps").splitlines():
        area, rights = line.split(b" ", 2)[:2]
        if rights == b"rw-p":
            start, end = (int(each, 16) for each in area.split(b"-"))
            found += [(at, min(at + _PIECE, end)) for at in range(start, end, _PIECE)]
    return found

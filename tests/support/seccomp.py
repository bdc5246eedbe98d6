"""`python -m tests.support.seccomp NUMBER... -- COMMAND...`: runs a command for which these system calls do not exist.

What an old kernel or a container's filter does. Numbers from 424 on are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

PIDFD_SEND_SIGNAL = 424
PIDFD_OPEN = 434

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD_NUMBER = struct.pack("HBBI", 0x20, 0, 0, 0)  # linux/filter.h: BPF_LD | BPF_W | BPF_ABS, seccomp_data.nr
_ALLOW = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)


def refuse(numbers: list[int]) -> None:
    """From here on these calls fail with ENOSYS, in this process and in all that it starts. OSError: not possible here."""
    program = _LOAD_NUMBER
    for number in numbers:
        program += struct.pack("HBBI", 0x15, 0, 1, number)  # BPF_JMP | BPF_JEQ | BPF_K: else skip the next
        program += struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | errno.ENOSYS)
    program += _ALLOW
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    split = sys.argv.index("--")
    refuse([int(number) for number in sys.argv[1:split]])
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])

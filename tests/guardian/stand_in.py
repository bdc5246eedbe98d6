"""Test program: stands in for daemon or logger. Hands its channel to the test and waits until the test lets it go.

    stand_in.py ROLE SOCKET

The test speaks the real protocol on the channel; this process is only there to be alive, to be killed, to be reaped.
The first byte that the test sends is its exit code; end-of-file exits 0. Byte 255 asks for an orphan instead: a
process whose parent ended at once, so that the guardian becomes its parent. Its pid is the answer; TERM ends it with
code 15.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import sys


def main() -> None:
    role, address = sys.argv[1:]
    test = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        test.connect(address)
    except OSError:
        sys.exit(0)  # the test is over
    fds = array.array("i", [3, 4] if role == "logger" else [3])
    words = json.dumps({"role": role, "pid": os.getpid()}).encode() + b"\n"
    test.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    for fd in fds:
        os.close(fd)
    while (order := test.recv(1)) == b"\xff":
        test.sendall(b"%d\n" % make_orphan())
    sys.exit(order[0] if order else 0)


def make_orphan() -> int:
    reads, writes = os.pipe()
    # blocked and waited for: with a handler and pause() a signal could come right before the pause
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    middle = os.fork()
    if middle == 0:
        orphan = os.fork()
        if orphan == 0:
            for fd in range(3, 64):
                with contextlib.suppress(OSError):
                    os.close(fd)
            signal.sigwait({signal.SIGTERM})
            os._exit(15)
        os.write(writes, b"%d" % orphan)
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.waitpid(middle, 0)
    os.close(writes)
    orphan = int(os.read(reads, 32))
    os.close(reads)
    return orphan


main()

"""A disk that does not answer, as a network's whose server has gone: FUSE, and a program that reads all questions and answers none."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator

_INIT, _MINOR, _FOLDER, _DETACH = 26, 12, 0o40000, 2  # so old a minor version that its answer is short


@contextlib.contextmanager
def silent_disk(folder: str) -> Iterator[None]:
    """Have all who ask what is in the folder wait until the end; SIGKILL does not end them either."""
    import pytest  # not in the program

    argv = [sys.executable, "-I", __file__, folder]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        problem = server.stdout.readline().strip()
        if problem:
            pytest.skip(f"no FUSE file system can be mounted here: {problem}")
        try:
            yield
        finally:
            server.kill()  # who waits is told that nobody will answer
            ctypes.CDLL(None).umount2(folder.encode(), _DETACH)


def _serve(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode={_FOLDER:o},user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"silent", folder.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    print(flush=True)
    while True:
        _, operation, number = struct.unpack_from("=IIQ", os.read(fuse, 1 << 20))
        if operation == _INIT:
            os.write(fuse, struct.pack("=IiQIIIIHHI", 40, 0, number, 7, _MINOR, 0, 0, 0, 0, 4096))


if __name__ == "__main__":
    try:
        _serve(sys.argv[1])
    except OSError as reason:
        print(reason)

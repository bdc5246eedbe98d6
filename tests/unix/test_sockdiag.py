from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from pyworker.unix.sockdiag import listening_inode, parse_queue, unix_queue


def test_waiting_connections_of_a_unix_listener_are_counted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a.sock"))
        listener.listen(7)
        if unix_queue(listener) is None:
            pytest.skip("this kernel has no unix_diag")
        assert unix_queue(listener) == (0, 7)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(tmp_path / "a.sock"))
            second.connect(str(tmp_path / "a.sock"))
            assert unix_queue(listener) == (2, 7)


def test_the_socket_that_listens_at_a_file_is_found_by_its_file_whatever_that_is_called_now(tmp_path: Path) -> None:
    bound, now = tmp_path / "a.sock", tmp_path / "b.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bound))
        bound.rename(now)
        assert listening_inode(now.stat()) == 0, "it does not listen yet"
        listener.listen()
        if unix_queue(listener) is None:
            pytest.skip("this kernel has no unix_diag")
        assert listening_inode(now.stat()) == os.fstat(listener.fileno()).st_ino
    assert listening_inode(now.stat()) == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 15,
        struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -2) + b"\0" * 16,  # NLMSG_ERROR: ENOENT
        struct.pack("=IHHII", 32, 20, 0, 1, 0) + struct.pack("=BBBBIII", 1, 1, 10, 0, 99, 0, 0),  # of another socket
        struct.pack("=IHHII", 36, 20, 0, 1, 0) + struct.pack("=BBBBIII", 1, 1, 10, 0, 5, 0, 0) + b"\0\0\4\0",  # no length
        struct.pack("=IHHII", 36, 20, 0, 1, 0) + struct.pack("=BBBBIII", 1, 1, 10, 0, 5, 0, 0) + b"\x0c\0\4\0",  # cut
    ],
)
def test_an_answer_that_is_none_says_nothing(answer: bytes) -> None:
    assert parse_queue(answer, 5) is None

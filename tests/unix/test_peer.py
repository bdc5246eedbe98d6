"""Who has the other end of a socket."""

from __future__ import annotations

import os
import socket
import struct
from unittest.mock import Mock

from pyworker.unix.peer import peer


def test_the_other_end_is_named() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer(ours) == (os.getpid(), os.geteuid())


def test_a_user_of_the_upper_half_is_no_negative_number() -> None:
    sock = Mock(getsockopt=lambda *_: struct.pack("=III", 7, 3_000_000_000, 0))
    assert peer(sock) == (7, 3_000_000_000)

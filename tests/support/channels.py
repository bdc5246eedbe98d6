"""A channel as our processes have them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pyworker.unix import fds


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a SOCK_SEQPACKET pair."""
    ours, theirs = fds.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()

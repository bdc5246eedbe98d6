"""One that stands by: when it has to be the guardian, and when it may leave."""

from __future__ import annotations

import os
import socket

import pytest

from pyworker.guardian import standby
from pyworker.protocol import store as protocol
from pyworker.protocol import wire
from pyworker.unix import fds
from tests.support.channels import ends as ends
from tests.support.descriptors import open_fds


@pytest.mark.parametrize("is_told", [True, False])
def test_it_is_needed_when_everybody_else_is_gone_and_not_when_the_next_daemon_has_all(
    ends: tuple[socket.socket, socket.socket], is_told: bool
) -> None:
    """What was still meant for the daemon is no answer, and what came with it is not kept: it would hold a port open."""
    ours, theirs = ends
    with open(os.devnull, "rb") as null:
        fds.send_packet(theirs, wire.encode(protocol.Restore(("listen.api.0",))), [null.fileno()])
        fds.send_packet(theirs, b"rubbish", [null.fileno()])
        fds.send_packet(theirs, b"", [null.fileno()])
    if is_told:
        fds.send_packet(theirs, wire.encode(protocol.Leave()))
    else:
        theirs.shutdown(socket.SHUT_WR)
    number = ours.detach()
    before = len(open_fds())
    assert standby.is_needed(number) is not is_told
    assert len(open_fds()) == before - 1
    said = fds.recv_packet(theirs, wire.MAX_MESSAGE, 0)
    assert said is not None
    assert wire.decode(protocol.FromDaemon, said.data) == protocol.StandsBy()


def test_it_is_needed_also_when_everybody_is_gone_before_it_could_say_that_it_stands_by(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.close()
    assert standby.is_needed(ours.detach())

"""Guardian: one that stands by. In an upgrade the daemon becomes it by exec, instead of ending, with all its descriptors.

Between two daemons the guardian alone has them; were it killed there, every port would close. So this process waits on
what was the daemon's channel. Its other end is the guardian's, which hands it to the next daemon like every other fd:
its end says that nobody is left who has everything, and Leave that the next daemon has.
"""

from __future__ import annotations

import contextlib
import socket

from pyworker import failpoint
from pyworker.protocol.store import BATCH, Leave, StandsBy, ToDaemon
from pyworker.protocol.wire import MAX_MESSAGE, WireError, decode, encode
from pyworker.unix import fds


def is_needed(number: int) -> bool:
    """Wait on the channel, which is closed then, and return whether this process has to be the guardian."""
    with socket.socket(fileno=number) as channel:
        channel.setblocking(False)
        failpoint.hit("guardian.stands_by")
        with contextlib.suppress(OSError):  # it has gone: that is read below
            fds.send_packet(channel, encode(StandsBy()))
        while True:
            packet = fds.recv_surely(channel, MAX_MESSAGE, BATCH)
            fds.close_all(packet.fds)
            if not packet.data and not packet.fds:
                return True
            with contextlib.suppress(WireError):  # the rest was for the daemon, and the next one is told again
                if isinstance(decode(ToDaemon, packet.data), Leave):
                    return False

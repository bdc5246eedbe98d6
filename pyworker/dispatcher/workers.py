"""Dispatcher: those who can be given connections, as it sees them: how many each has, and how one is handed over."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Protocol

from pyworker.dispatcher.inbox import Inbox
from pyworker.dispatcher.relay import Relay
from pyworker.policy.balance import open_connections
from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import F

if TYPE_CHECKING:
    from pyworker.dispatcher.main import Dispatcher

_ACCEPTED, _OPEN = int(F.ACCEPTED), int(F.OPEN)
LINGER = 10.0  # seconds for a client to end a connection, too, that its worker has ended


class Worker(Protocol):
    """One that connections can be given to."""

    serial: int
    slot: int
    stuck: bool

    def load(self) -> int:
        """Return how many connections it has, those on their way to it included."""

    def take(self, connection: int) -> bool:
        """Give it a connection, which is its own from here on; False (then it is not) when it takes none now."""

    def shut(self) -> bool:
        """Stop giving; True when nothing of it is left in here."""


class InboxWorker:
    """One that reads its slot's inbox. What it has open it counts itself, in its row."""

    def __init__(self, serial: int, inbox: Inbox, cells: memoryview) -> None:
        self.serial, self.slot = serial, inbox.slot
        self.inbox = inbox
        self.stuck = False
        self._cells = cells
        self.waited = 0  # what it had accepted when it was last looked at with something in its inbox
        self.handed = 0
        self.count_anew()

    def count_anew(self) -> None:
        """Begin to count from what can be seen now."""
        self.handed = self._cells[_ACCEPTED] + self.inbox.queued()
        self.waited = -1

    @property
    def accepted(self) -> int:
        return self._cells[_ACCEPTED]

    def load(self) -> int:
        return open_connections(self.handed, self._cells[_ACCEPTED], self._cells[_OPEN])

    def take(self, connection: int) -> bool:
        if not self.inbox.put(connection):
            return False
        self.handed += 1
        os.close(connection)
        return True

    def shut(self) -> bool:
        return True


class PortWorker:
    """One with a port of its own: everything goes through us, so we count, and write its row for `ps` to read."""

    def __init__(
        self, serial: int, slot: int, port: int, proxy_protocol: bool, cells: memoryview, owner: Dispatcher
    ) -> None:
        self.serial, self.slot, self.port, self.proxy_protocol = serial, slot, port, proxy_protocol
        self.stuck = False
        self._cells = cells
        self._owner = owner
        self._relays: set[Relay] = set()
        self._half_ended: dict[Relay, float] = {}  # when its client was last heard of; in that order
        self._looking = False
        self._accepted = 0
        cells[_OPEN] = 0  # those of a dispatcher before us have ended with it
        self._told_to_shut = False

    def load(self) -> int:
        return len(self._relays)

    def take(self, connection: int) -> bool:
        owner = self._owner
        if owner.relays >= owner.most_relays:
            owner.too_many_relays()
            return False
        client = socket.socket(fileno=connection)
        try:
            client.setblocking(False)
            relay = Relay(owner.loop, owner.pipes, client, self, owner.deal_again)
        except OSError:
            client.detach()  # it is the caller's still, who gives this number to another
            raise
        self._relays.add(relay)
        owner.relays += 1
        self._accepted += 1
        self._cells[_ACCEPTED] = self._accepted
        self._cells[_OPEN] = len(self._relays)
        relay.begin()
        return True

    def half_ended(self, relay: Relay) -> None:
        """The program has ended this one; its client, who has just been told or has sent on, has its time to do so, too.

        Many look at a connection only when they use it again. Nobody else ends it: the program believes that it is closed.
        """
        self._half_ended.pop(relay, None)
        self._half_ended[relay] = time.monotonic()
        if not self._looking:
            self._looking = True
            self._owner.loop.later(LINGER, self._look)

    def _look(self) -> None:
        self._looking = False
        now = time.monotonic()
        while self._half_ended and not self._looking:
            relay, since = next(iter(self._half_ended.items()))
            if since + LINGER > now:
                self._looking = True
                self._owner.loop.later(since + LINGER - now, self._look)
            elif relay.holds_back_client:
                del self._half_ended[relay]
                self._half_ended[relay] = now  # behind those whose time is over, too
            else:
                relay.close()

    def lost(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._half_ended.pop(relay, None)
        self._owner.relays -= 1
        self._cells[_OPEN] = len(self._relays)
        if self._told_to_shut and not self._relays:
            self._owner.say(d.Empty(self.serial))

    def no_port_left(self) -> None:
        self._owner.no_port_left()

    def shut(self) -> bool:
        self._told_to_shut = True
        return not self._relays

    def reopen(self) -> None:
        self._told_to_shut = False

    def forget(self) -> None:
        """Its row may be another worker's from here on; what it had sent may still be on its way to slow clients."""
        self._cells = memoryview(bytearray(self._cells.nbytes)).cast("Q")

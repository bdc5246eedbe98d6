"""Daemon <-> dispatcher: a SOCK_SEQPACKET pair; what the dispatcher is given at birth.

The dispatcher accepts connections and hands each to one worker: as a file descriptor through the *inbox* of the
worker's slot (a SOCK_SEQPACKET pair, both ends in the guardian's store), by relaying bytes to the worker's own port,
or as a Node primary does, over the worker's ipc channel.

It remembers nothing that the daemon does not know. A dispatcher that starts is told everything again, and a daemon
that starts says `Begin`, everything again, and `Settled`: what was not said again in between is over.
"""

from __future__ import annotations

from typing import Literal, Union

from pyworker.protocol.node import MAX_TEXT
from pyworker.record import record

CHANNEL_FD = 3  # of the dispatcher: its end of the pair
BOARD_FD = 4  # the app's scoreboard
SPEC_FD = 5  # a memfd with a DispatcherSpec

HAND_OVER = b"c"  # a packet in an inbox: the connection rides along
LAST = b"."  # ... nothing follows this one: the app stops
MAX_TOLD = 2 * MAX_TEXT + 1024  # bytes of a packet of the daemon: a Tell, each of whose characters may need escaping
MAX_QUERIES = 64  # of one Node worker, that are remembered; what is more is answered, and forgotten with the dispatcher


@record
class DispatcherSpec:
    app: str
    uid: int | None
    gid: int | None
    groups: tuple[int, ...]


# ---- daemon -> dispatcher ----------------------------------------------------------------------------
@record
class Begin:
    """All that follows, up to Settled, is everything there is."""


@record
class Settled:
    pass


@record
class Listen:
    """Accept on the listener that rides along. The index is the daemon's name for it."""

    index: int


@record
class Unlisten:
    index: int


@record
class Inbox:
    """The inbox of a slot: its writing and its reading end ride along, in this order."""

    slot: int


@record
class CloseInbox:
    """The slot is no more: what nobody has taken out of its inbox is handed to others."""

    slot: int


@record
class Open:
    """A worker takes connections from now on, in the way that `via` says."""

    serial: int
    slot: int
    row: int  # of the scoreboard
    via: Literal["inbox", "port", "node"]  # "node": announced by Attach
    port: int = 0
    proxy_protocol: bool = False


@record
class Attach:
    """A Node worker; its ipc channel rides along. `queries`: what it has Asked before."""

    serial: int
    queries: tuple[str, ...]


@record
class Bound:
    """The answer to Wants. errno 0: the listener rides along."""

    key: str
    errno: int


@record
class Tell:
    """A message for a Node worker's program."""

    serial: int
    text: str  # its line, of at most MAX_TEXT bytes


@record
class Shut:
    """A worker gets no connection any more. Answered by Empty when it has none left that are relayed; a Node worker is asked
    to leave, and this is answered when it has been: asked twice, it would end with an error."""

    serial: int


@record
class Gone:
    """A worker has ended: what is still relayed to it is over."""

    serial: int


@record
class Finish:
    """The app stops: hand out what is queued, say LAST in every inbox, accept no more."""


@record
class Ping:
    """A sign of life is asked for; answered by Pong with the same number."""

    number: int


@record
class Leave:
    """Exit now."""


# ---- dispatcher -> daemon ----------------------------------------------------------------------------
@record
class Up:
    """The first message: it runs, with its rights dropped. Later: it could not take something, all is to be said again."""

    version: str  # read by nobody


@record
class Empty:
    """The answer to Shut."""

    serial: int


@record
class Wants:
    """A Node worker listens: its listener is asked for, by the key that Node's cluster gives it."""

    key: str
    kind: str  # tcp4, tcp6, any, unix
    address: str
    port: int


@record
class Asked:
    """What a Node worker asked to listen on, to be said again to the next dispatcher."""

    serial: int
    text: str


@record
class Listening:
    """A Node worker's server listens."""

    serial: int


@record
class Said:
    """A message of a Node worker's program."""

    serial: int
    text: str  # JSON, of a long message its beginning
    size: int  # characters of all of it


@record
class Pong:
    number: int


@record
class Trouble:
    """Something that the operator should know."""

    text: str


@record
class Over:
    """What a Trouble has said is so no more."""

    text: str


ToDispatcher = Union[
    Begin, Settled, Listen, Unlisten, Inbox, CloseInbox, Open, Attach, Bound, Tell, Shut, Gone, Finish, Ping, Leave
]
FromDispatcher = Union[Up, Empty, Wants, Asked, Listening, Said, Pong, Trouble, Over]

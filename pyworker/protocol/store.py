"""Guardian <-> daemon and guardian <-> logger: a SOCK_SEQPACKET pair, one message a packet.

fds ride in SCM_RIGHTS beside the message that names them, in the order named, at most BATCH in one packet.
The daemon's end and the logger's end are fd CHANNEL_FD of the new process. First the guardian sends
`Restore` packets and `RestoreDone`; nothing else is acted on before that.

Two versions of pyworker may meet here for a moment (an upgrade, or files that were replaced under a running daemon). A
message that the other side does not know is ignored, so what is new is a new message, never a new field of an old one,
and a field that nobody reads any more is still said.
"""

from __future__ import annotations

from typing import Union

from pyworker.record import record

CHANNEL_FD = 3  # of daemon and logger: their end of the pair
LIFELINE_FD = 4  # of the logger: the read end of the pipe LIFELINE
BATCH = 200  # fds a packet; the kernel takes 253
TICK = 11.0  # seconds between two questions for a sign of life; a hang is found within three of these
MISSED = 2  # unanswered ones, and whoever was asked hangs


# ---- guardian -> daemon / logger --------------------------------------------------------------------
@record
class Restore:
    """fds from the store; the logger gets these at any time, for each new fd of LOGGER_KINDS."""

    names: tuple[str, ...]


@record
class RestoreDone:
    count: int  # read by nobody
    reason: str  # why this process was started: "boot", "exited with code 1", "killed by KILL", "hung", "upgrade"
    guardian_pid: int
    guardian_version: str


@record
class Forget:
    """To the logger: the store has dropped these names (the logger closes them after reading to the end)."""

    names: tuple[str, ...]


@record
class Exited:
    """A child of the guardian has ended and stays unreaped until `Collected(pid)`; said again to a new daemon."""

    pid: int
    code: int | None  # exit code, or None when a signal ended it
    signal: int | None
    core: bool


@record
class Ping:
    """Asked by either side, answered by Pong with the same number."""

    number: int


@record
class Pong:
    number: int


@record
class NoneStopped:
    """To the daemon, just before a Ping: no child of the guardian is stopped by a signal, so it need not look at each.

    A message of its own: a daemon of an earlier version ignores it, and still answers the Ping.
    """


@record
class Relay:
    """To the daemon: what the logger said (LogStats as JSON text)."""

    text: str


@record
class LoggerState:
    """To the daemon: the logger's pid."""

    pid: int
    restarts: int  # read by nobody, as the next
    reason: str


@record
class DaemonState:
    """To the logger: the daemon's pid. A guardian that dies has nobody else to wake its daemon, should that be stopped."""

    pid: int


@record
class LoggerVersion:
    """To the daemon: the version that the running logger is."""

    version: str


@record
class Leave:
    """An upgrade: store what is not stored yet, answer who waits, and exit; another one is started at once.

    A daemon does not exit, it stands by until it is told this again: by the next daemon, which has everything then.
    """


@record
class UpgradeFailed:
    """To the daemon: the guardian stays what it is."""

    why: str


@record
class Missing:
    """To the daemon: the fds of these could not be taken (no descriptor was free); store them again later."""

    names: tuple[str, ...]


# ---- daemon -> guardian ----------------------------------------------------------------------------
@record
class Store:
    """Keep the fds that ride along under these names (a name that exists is replaced)."""

    names: tuple[str, ...]


@record
class Remove:
    names: tuple[str, ...]


@record
class Collected:
    """The daemon knows how these ended; the guardian may reap them now."""

    pids: tuple[int, ...]


@record
class Fate:
    """In the foreground: exit with this code when all has ended. Said before Stopping; without it the code is 0."""

    code: int


@record
class Stopping:
    """Deliberate end: the guardian starts nothing any more, and exits when daemon and logger are gone."""


@record
class Hello:
    """Of daemon and logger: running, and this version."""

    version: str


@record
class Upgrade:
    """Become the pyworker that is installed for this interpreter, then have daemon and logger replaced by its own."""

    python: str


@record
class StandsBy:
    """It has left, says nothing any more, and keeps its descriptors; the channel is from here its link to the next."""


# ---- logger -> guardian ----------------------------------------------------------------------------
@record
class LogStats:
    """Lines of an app that could not be written (disk full), since the logger started."""

    app: str
    dropped: int
    written: int  # read by nobody
    error: str  # "" or why lines are dropped, e.g. "No space left on device"


@record
class Closed:
    """The logger has read these pipes to their end, and written down what was in them. The guardian drops them, and tells the daemon."""

    names: tuple[str, ...]


ToDaemon = Union[
    Restore,
    RestoreDone,
    Exited,
    NoneStopped,
    Ping,
    Pong,
    Relay,
    Closed,
    LoggerState,
    LoggerVersion,
    Leave,
    UpgradeFailed,
    Missing,
]
FromDaemon = Union[Store, Remove, Collected, Stopping, Ping, Pong, Hello, Upgrade, StandsBy, Fate]
ToLogger = Union[Restore, RestoreDone, DaemonState, Forget, Ping, Stopping, Leave]
FromLogger = Union[LogStats, Closed, Pong, Hello]

"""Daemon <-> worker: the `ctl` channel (SOCK_SEQPACKET), a small closed set of messages.

The worker's end is given to the process that becomes the worker; the daemon's end is in the store. The daemon
takes the sender's pid from SCM_CREDENTIALS (SO_PASSCRED), never from the message; it accepts no fds from here.
Everything a worker says is untrusted: no message can name another worker, a path to open, a pid or a command.
"""

from __future__ import annotations

from typing import Literal, Union

from pyworker.record import record

MAX_WORKER_MESSAGE = 32 * 1024
STACKS_SIGNAL = 62  # a real-time signal that asgi and wsgi workers answer with the stacks of all threads on stderr
DUMP_SIGNAL = 61  # a real-time signal that Python workers answer with the same, written into their stacks memfd
TASKS_SIGNAL = 60  # a real-time signal on which the loop of an asgi worker writes there in what its tasks wait
CHECK_HEADER = "x-pyworker-check"  # marks a health check's request: not counted, not in the access log


# ---- worker -> daemon ------------------------------------------------------------------------------
@record
class Hello:
    """First message, before any app code of this worker runs (a command: right before its exec; one started directly: none)."""

    version: str


@record
class Ready:
    """Could accept now; accepts nothing before Go unless it was born with held=False.

    `serving`: True when it accepts already (a command on an inherited socket, or one with its own port).
    """

    serving: bool = False


@record
class Accepting:
    """The answer to Go: the listener is registered."""


@record
class Failed:
    """Could not start: what went wrong, and the traceback cut to the user's frames (24 KiB at most)."""

    kind: Literal["import", "lifespan", "config", "engine", "bind", "other"]
    message: str  # the line that names the exception: "ModuleNotFoundError: No module named 'redis'"
    traceback: str
    hint: str = ""


@record
class Recycle:
    """Asks to be replaced (successor first): max_requests and the like."""

    reason: str


@record
class Drained:
    """Serves nothing any more and is about to exit."""

    requests: int  # finished during the drain
    cancelled: int  # cut off, at the drain time-out or by `stop --now`


@record
class Bind:
    """A script asks for the shared listener of the address it wants to bind; answered by Bound (on Go)."""

    family: Literal["inet", "inet6", "unix"]
    host: str  # "" = any; the path for unix
    port: int


@record
class Notice:
    """Something the operator should know: an event and a note in `describe`."""

    text: str


# ---- daemon -> worker ------------------------------------------------------------------------------
@record
class Go:
    """Start to accept."""


@record
class Kick:
    """A sibling died or drains: try one accept per listener, it may have been woken for a connection."""


@record
class Drain:
    """Stop accepting, finish, exit 0. `to_empty`: nobody else will accept, so take all that is queued (1 s at most).

    Said again (not to scripts, which listen no more): so much of the time-out is left from now on.
    """

    timeout: float  # seconds until requests are cancelled
    to_empty: bool


@record
class Check:
    """Serve the connected stream socket that rides along as if it had been accepted (a health check)."""


@record
class Bound:
    """The answer to Bind. errno 0: the listener rides along."""

    errno: int
    message: str = ""


FromWorker = Union[Hello, Ready, Accepting, Failed, Recycle, Drained, Bind, Notice]
ToWorker = Union[Go, Kick, Drain, Check, Bound]

"""What `pyworker run` hands to the guardian that it becomes, and the guardian to every daemon: a sealed memfd.

It is to a foreground pyworker what apps.json is to one in the background: it says what is wanted, in no file.
"""

from __future__ import annotations

import signal
from typing import Any, Literal

from pyworker.record import field, record

STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})  # each means SIGTERM
RELOAD = signal.SIGHUP
_NOT_OURS = {
    signal.SIGKILL, signal.SIGSTOP,  # nobody can take them
    signal.SIGCHLD,  # about our own children
    signal.SIGPIPE, signal.SIGXFSZ,  # come of our own writes
    signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS,  # faults
    signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,  # job control: it is the guardian that the shell stops
}  # fmt: skip


def orders(*, at_a_terminal: bool) -> frozenset[int]:
    """Return the signals that a foreground pyworker takes: those above, and all that it forwards to programs of others.

    At a terminal a changed window size is no word of a person, and to some programs SIGWINCH means to leave.
    """
    return frozenset(signal.valid_signals() - _NOT_OURS - ({signal.SIGWINCH} if at_a_terminal else set()))


@record
class RunSpec:
    """Content of the memfd `run`."""

    request: dict[str, Any] = field(default_factory=dict)  # a control.Start: what runs, with the options of the command
    home: str = ""  # absolute, writable and ours; "" = there is none: no control socket, nothing is written anywhere
    logs: Literal["short", "json", "plain"] = "short"
    probe: str = ""  # address of the probe endpoint
    lame_duck: float = 0.0  # seconds from the wish to stop until the drain: readyz says no, all else goes on

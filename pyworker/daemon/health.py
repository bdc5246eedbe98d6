"""Daemon: the health of one worker, checked again and again until it is stopped. One check at a time.

`begin` makes a check and is called with what the check must call when it is done; `on_verdict` hears of every change
("ok" for the first time too). What follows from a verdict is the brain's.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from pyworker.config.address import Address
from pyworker.config.schema import HealthConfig, ResolvedApp
from pyworker.daemon import check
from pyworker.daemon.check import Check, Done
from pyworker.daemon.loop import Loop, Timer
from pyworker.daemon.shortage import is_want
from pyworker.policy.health import Health, Verdict, after_check, begin
from pyworker.unix import fds as unix_fds

Begin = Callable[[Done], Check]
OnVerdict = Callable[[Verdict, str], None]


class HealthWatch:
    """Checks from now on, the first time at once; `stop` ends it."""

    def __init__(self, loop: Loop, config: HealthConfig, begin_check: Begin, on_verdict: OnVerdict) -> None:
        self.health: Health = begin(loop.clock())
        self._loop = loop
        self._config = config
        self._begin = begin_check
        self._on_verdict = on_verdict
        self._check: Check | None = None
        self._started_at = 0.0
        self._stopped = False
        self._timer: Timer = loop.call_at(self.health.next_at, self._ask)

    def stop(self) -> None:
        """Check no more; nothing is called back after this."""
        self._stopped = True
        self._timer.cancel()
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _ask(self) -> None:
        self._started_at = self._loop.clock()
        try:
            self._check = self._begin(self._done)
        except OSError as error:  # out of fds, or the worker's channel is gone
            ok = None if is_want(error.errno) else False
            self._done(ok, f"cannot begin a check: {error.strerror or error}")

    def _done(self, ok: bool | None, reason: str) -> None:
        if self._stopped:
            return
        self._check = None
        now = self._loop.clock()
        before = self.health.verdict
        self.health = after_check(self.health, ok, reason, started_at=self._started_at, now=now, config=self._config)
        self._timer = self._loop.call_at(self.health.next_at, self._ask)
        if self.health.verdict != before:
            self._on_verdict(self.health.verdict, self.health.reason)


def check_of(
    loop: Loop, resolved: ResolvedApp, hand_over: Callable[[socket.socket], bool], where: check.Address | None
) -> Begin:
    """Return what begins one check of a worker of this app, as its [app.health] says.

    `hand_over` gives a connected socket to the worker, to be served as if accepted (protocol.worker.Check), and says
    whether that worked, or raises OSError; the socket stays ours and is closed here. Only asked for an asgi or wsgi app.
    All others are asked at `where`, or by a command.
    """
    config = resolved.config.health
    assert config is not None

    def begin_check(done: Done) -> Check:
        if config.type == "exec":
            return check.Command(loop, resolved, config, done)
        if resolved.config.target is not None:
            return _privately(loop, config, hand_over, done)
        assert where is not None  # config/check.py: there is a port to ask
        return check.at(loop, where, config, done)

    return begin_check


def where_to_ask(health: HealthConfig, port: int, bound: tuple[Address, socket.socket] | None) -> check.Address | None:
    """Return where a script or a command is asked: at its own `port`, at `health.port`, or at the first listener of the app."""
    if port or health.port:
        return "127.0.0.1", port or health.port or 0
    if bound is None:
        return None
    address, listener = bound
    if address.family == "unix":
        return address.path
    # a name was looked up when it was bound, and the kernel may have chosen the port
    host, number = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), number


def _privately(loop: Loop, config: HealthConfig, hand_over: Callable[[socket.socket], bool], done: Done) -> Check:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    unix_fds.refuse_fds(ours)
    try:
        with theirs:
            theirs.setblocking(False)
            if not hand_over(theirs):
                raise BlockingIOError(0, "the worker does not take messages")
    except OSError:
        ours.close()
        raise
    return check.http(loop, ours, config, done)

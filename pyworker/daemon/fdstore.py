"""Daemon: its side of the guardian's store. The guardian's side is guardian/.

`fds` is the daemon's copy of every stored fd (these ints are owned here). Sends never block: what the channel does
not take now is kept in order and sent when it is writable. A store operation that is still queued when the daemon
dies was never promised to anybody.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NoReturn, assert_never

from pyworker import __version__, failpoint
from pyworker.daemon.loop import READ, WRITE, Loop
from pyworker.daemon.shortage import step_for
from pyworker.protocol import store
from pyworker.protocol.inherited import STANDBY, FdName, parse_fd_name
from pyworker.protocol.wire import MAX_MESSAGE, WireError, decode, encode
from pyworker.unix import fds as unix_fds
from pyworker.unix import stderr
from pyworker.unix.process import exec_with, spawn_watched
from pyworker.unix.ready import ready

RETRY = 0.05  # seconds until a send that the kernel has no room for is tried again
ALIVE_EVERY = 1.0  # seconds between two signs of life while all that is wanted is restored
STORE_AGAIN = 0.5  # seconds until what the guardian had no descriptor for is sent to it again
NO_ROOM = (errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS)  # fds in flight, memory: both pass


class FdStore:
    """Named fds that outlive the daemon, and the guardian's news."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.fds: dict[str, int] = {}
        self.guardian_pid = 0
        self.reason = "boot"
        self.logger_pid = 0
        self.on_exited: Callable[[store.Exited], None] = lambda message: None
        self.on_log_stats: Callable[[store.LogStats], None] = lambda stats: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_leave: Callable[[], None] = lambda: None
        self.on_upgrade_failed: Callable[[str], None] = lambda why: None
        self.guardian_version = self.logger_version = ""
        self._outbox: deque[store.FromDaemon] = deque()
        self._loop: Loop | None = None
        self._early: list[store.ToDaemon] = []
        self._held: list[str] | None = None  # names that are to be sent together
        self._said_alive_at = 0.0
        self.may_be_stopped = True  # a child of the guardian's, as far as it has said in this tick
        self.unanswered = 1  # signs of life that the guardian owes; of the last moment it has shown one: it started us

    # ---- start -------------------------------------------------------------------------------------
    def restore(self) -> None:
        """Block until the guardian has handed over everything. Raises EOFError when it dies before, or all cannot be taken."""
        done: store.RestoreDone | None = None
        while done is None:
            packet = unix_fds.recv_surely(self.channel, MAX_MESSAGE, store.BATCH)
            if not packet.data:
                raise EOFError("the guardian is gone")
            if packet.truncated:
                step = step_for(errno.EMFILE, os.getppid())
                raise EOFError(f"no descriptor is left for what the guardian hands over: {step}")
            try:
                message = decode(store.ToDaemon, packet.data)
            except WireError as error:  # of a guardian of another version
                stderr.say("daemon", f"the guardian said what version {__version__} does not know, ignored: {error}")
                unix_fds.close_all(packet.fds)
                continue
            match message:
                case store.Restore(names=names):
                    if len(names) != len(packet.fds):
                        raise EOFError(f"{len(packet.fds)} fds came for {len(names)} names")
                    self.fds.update(zip(names, packet.fds, strict=True))
                case store.RestoreDone():
                    done = message
                case _:
                    self._early.append(message)
        self.guardian_pid = done.guardian_pid
        self.guardian_version = done.guardian_version
        self.reason = done.reason
        self._dismiss()

    def _dismiss(self) -> None:
        """Let the guardian that stands by go: from here this daemon becomes the guardian when there is none."""
        channel = self.fds.get(STANDBY)
        if channel is None:
            return
        try:
            os.write(channel, encode(store.Leave()))
        except BlockingIOError:
            return  # it is stopped: an end of the channel, before it is told, would have it act
        except OSError:
            pass  # it has gone
        self.remove(STANDBY)

    def attach(self, loop: Loop) -> None:
        """Go on in the daemon's loop."""
        self._loop = loop
        loop.add(self.channel.fileno(), READ, self._on_channel)
        self._flush()
        early, self._early = self._early, []
        for message in early:
            self._take(message)

    # ---- what the daemon does ------------------------------------------------------------------------
    def put(self, name: str, fd: int) -> None:
        """Keep `fd` (owned by the store from here) under `name`, here and in the guardian."""
        self.put_all({name: fd})

    def put_all(self, named: dict[str, int]) -> None:
        """Keep several fds at once: one message, one wake-up of the guardian and of the logger."""
        for name, fd in named.items():
            old = self.fds.get(name)
            self.fds[name] = fd
            if old is not None and old != fd:
                unix_fds.close_all([old])
        if self._held is not None:
            self._held.extend(named)
        elif named:
            self.send(store.Store(tuple(named)))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send what is put in here at the end, in few messages: hundreds of apps start at once."""
        if self._held is not None:
            yield
            return
        held: list[str] = []
        self._held = held
        try:
            yield
        finally:
            self._held = None
            for begin in range(0, len(held), store.BATCH):
                self.send(store.Store(tuple(held[begin : begin + store.BATCH])))

    def get(self, name: str) -> int | None:
        return self.fds.get(name)

    def remove(self, *names: str) -> None:
        """Drop fds here and in the guardian; names that are not there are no error."""
        known = tuple(n for n in names if n in self.fds)
        unix_fds.close_all([self.fds.pop(n) for n in known])
        # all of an app with a thousand workers is more than a packet takes
        for begin in range(0, len(known), store.BATCH):
            self.send(store.Remove(known[begin : begin + store.BATCH]))

    def forget(self, *names: str) -> None:
        """Drop our copy only: the guardian keeps its own until the logger has read the pipe to its end."""
        unix_fds.close_all([self.fds.pop(n) for n in names if n in self.fds])

    def names(self, kind: str, app: str | None = None) -> list[FdName]:
        """Return the parsed names of one kind, of one app or of all."""
        begins = f"{kind}.{app or ''}"
        found = []
        for name in [n for n in self.fds if n.startswith(begins)]:  # there may be thousands, and each app asks
            parsed = parse_fd_name(name)
            if parsed is not None and parsed.kind == kind and app in (None, parsed.app):
                found.append(parsed)
        return sorted(found, key=lambda n: (n.app, n.numbers))

    def collected(self, pid: int) -> None:
        self.send(store.Collected((pid,)))

    def alive(self) -> None:
        """Answer what the guardian may ask while nothing is read: restoring hundreds of apps is no hang."""
        if (now := time.monotonic()) >= self._said_alive_at + ALIVE_EVERY:
            self._said_alive_at = now
            self.send(store.Pong(1))  # an answer to its first question is as good as one to the latest

    def flush_blocking(self, deadline: float) -> None:
        """Send what is queued, waiting at most `deadline` seconds; only for the daemon's own end."""
        end = time.monotonic() + deadline
        while self._outbox and (left := end - time.monotonic()) > 0:
            self._flush()
            if self._outbox:
                ready(self.channel.fileno(), select.POLLOUT, min(left, RETRY))

    # ---- the channel ---------------------------------------------------------------------------------
    def send(self, message: store.FromDaemon) -> None:
        """Say it in its turn: what the channel does not take now waits."""
        self._outbox.append(message)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox and self._send_one(self._outbox[0]):
                self._outbox.popleft()
        except OSError as error:
            if error.errno in NO_ROOM:
                self._flush_later()
                return
            self._outbox.clear()  # the guardian is gone: the end-of-file on the channel says so, too
        if self._loop is not None and self._loop.watches(self.channel.fileno()):
            self._loop.modify(self.channel.fileno(), READ | WRITE if self._outbox else READ)

    def _store_later(self, names: tuple[str, ...]) -> None:
        assert self._loop is not None

        def again() -> None:
            for name in names:
                if name in self.fds:  # else it was removed meanwhile
                    self.send(store.Store((name,)))

        self._loop.call_later(STORE_AGAIN, again)

    def _flush_later(self) -> None:
        if self._loop is None:
            return  # attach() flushes, too
        if self._loop.watches(self.channel.fileno()):
            self._loop.modify(self.channel.fileno(), READ)  # it is writable all the time
        self._loop.call_once("flush the store", RETRY, self._flush)

    def _send_one(self, message: store.FromDaemon) -> bool:
        fds: list[int] = []
        if isinstance(message, store.Store):
            names = tuple(n for n in message.names if n in self.fds)
            if not names:
                return True  # removed again before it could be sent
            fds = [self.fds[n] for n in names]
            message = store.Store(names)
        return unix_fds.send_packet(self.channel, encode(message), fds)

    def _on_channel(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        for _ in range(64):
            packet = unix_fds.recv_packet(self.channel, MAX_MESSAGE, store.BATCH)
            if packet is None:
                return
            if not packet.data and not packet.fds:
                assert self._loop is not None
                self._loop.remove(self.channel.fileno())
                self.on_lost()
                return
            unix_fds.close_all(packet.fds)  # none are due after the restore
            try:
                self._take(decode(store.ToDaemon, packet.data))
            except WireError:
                continue

    def _take(self, message: store.ToDaemon) -> None:
        match message:
            case store.Exited():
                self.on_exited(message)
            case store.NoneStopped():
                self.may_be_stopped = False
            case store.Ping(number=number):
                self.unanswered = 0
                self.send(store.Pong(number))
            case store.Pong():
                self.unanswered = 0
            case store.Relay(text=text):
                self.on_log_stats(decode(store.LogStats, text.encode()))
            case store.Closed(names=names):
                # the word may be about pipes that had these names before: those here now are asked
                self.forget(*[n for n in names if n in self.fds and unix_fds.at_end(self.fds[n])])
            case store.LoggerState():
                self.logger_pid, self.logger_version = message.pid, ""
            case store.LoggerVersion(version=version):
                self.logger_version = version
            case store.Leave():
                self.on_leave()
            case store.Missing(names=names):
                self._store_later(names)
            case store.UpgradeFailed(why=why):
                self.on_upgrade_failed(why)
            case store.Restore() | store.RestoreDone():
                pass
            case _:
                assert_never(message)


def become_guardian(home: str, fds: dict[str, int], *, standby: bool = False) -> NoReturn:
    """Replace this process by a guardian that has all of these fds, their names in a memfd. OSError: not yet.

    `standby`: by one that waits on our channel until it is needed, or not.
    """
    memo, argv = _adopting(home, fds)
    passed = [memo, *fds.values()]
    if standby:
        argv += ["--standby", str(store.CHANNEL_FD)]
        passed.append(store.CHANNEL_FD)
    try:
        if not standby:
            failpoint.hit("daemon.become_guardian")
        exec_with(argv, passed)
    finally:
        os.close(memo)


def start_guardian(home: str, fds: dict[str, int]) -> int:
    """Start one that has all of these fds, and return its pid: an exec waits for a thread that waits for a disk."""
    memo, argv = _adopting(home, fds)
    try:
        pid, pidfd = spawn_watched(argv, dict(os.environ), {fd: fd for fd in (0, 1, 2, memo, *fds.values())})
    finally:
        os.close(memo)
    os.close(pidfd)
    return pid


def _adopting(home: str, fds: dict[str, int]) -> tuple[int, list[str]]:
    """Return a memfd with the names of these, and the command of a guardian that takes them over."""
    memo = unix_fds.memfd("pyworker-adopt", json.dumps({"names": fds}).encode())
    return memo, [sys.executable, "-I", "-m", "pyworker.guardian", "--home", home, "--adopt", str(memo)]

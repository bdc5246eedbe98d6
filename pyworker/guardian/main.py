"""Guardian: the loop. Keeps what the daemon stores, hands it to the next daemon and logger, reports ended children.

Blocks in one place (epoll) and wakes up for a message, a dead child, or its tick. Decides nothing about apps.
Level-triggered: every turn looks at what is, and does what is missing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from pyworker import __version__, failpoint
from pyworker.guardian import boot
from pyworker.guardian.children import Children
from pyworker.guardian.program import Backoff, Program
from pyworker.guardian.store import FdStore
from pyworker.protocol import inherited, run, wire
from pyworker.protocol.store import (
    LIFELINE_FD,
    Closed,
    Collected,
    Exited,
    Fate,
    Forget,
    FromDaemon,
    FromLogger,
    Hello,
    LoggerState,
    LoggerVersion,
    LogStats,
    Missing,
    Ping,
    Pong,
    Relay,
    Remove,
    RestoreDone,
    Stopping,
    Store,
    Upgrade,
    UpgradeFailed,
)
from pyworker.record import record
from pyworker.unix import fds, process

MESSAGES_A_TURN = 64
FIXED_NAMES = frozenset(
    {inherited.LOCK, inherited.LIFELINE, inherited.RUN}
)  # the daemon can neither replace nor remove these
REST = 0.05  # seconds after a turn that failed: a lasting mistake must not cost a core
MAX_COMPLAINTS = 20  # lines about a peer's nonsense, per process


@record
class Times:
    """Seconds. Tests make them short."""

    tick: float = 8.0  # pings (a hang is found within four), and a look at the children in case a signal was missed
    logger_end: float = 5.0  # how long the logger may read the pipes to their end
    half_dead: float = 2.0  # from the end of a channel to SIGKILL
    leave: float = 5.0  # an upgrade: how long a program may take to make room
    too_many_fds: float = 0.05


class Guardian:
    """Daemon, logger, store, children, and one epoll."""

    def __init__(
        self,
        store: FdStore,
        commands: dict[str, list[str]],
        *,
        reason: str = "boot",
        times: Times | None = None,
        backoff: Backoff | None = None,
        program: list[str] | None = None,
        taken_over: dict[str, dict[str, Any]] | None = None,
        foreground: bool = False,
    ) -> None:
        """`commands`: the argv of "daemon" and of "logger"; `reason` is what they are told why they were started.

        `program`: our own argv, for an upgrade. `taken_over`: what ran under the version before this one, see boot.
        """
        self._foreground = foreground  # somebody waits for us, and signals are orders
        self._code = 0
        self._orders: list[int] = []  # signals that came before a daemon was there who could take them
        self._program = program
        self._taken_over = taken_over or {}
        self._to_replace: list[Program] = []
        self._upgrade: str | None = None  # the interpreter to become a guardian of
        self._upgrade_by = 0.0
        self._store = store
        self._times = times or Times()
        backoff = backoff or Backoff()
        self._daemon = Program("daemon", commands["daemon"], store, backoff)
        self._logger = Program("logger", commands["logger"], store, backoff)
        self._reasons = {self._daemon: reason, self._logger: reason}
        self._children = Children()
        self._stopping = False
        self._logger_told = False
        self._look_at_children = True
        self._epoll = select.epoll()
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._waker = wake
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._next_tick = 0.0
        self._retry_sends_at: float | None = None

    def run(self, started: Callable[[], None]) -> int:
        """Run until the daemon's deliberate end and return the exit code. `started` is called once the daemon runs."""
        self._catch_signals()
        self._watch(self._wake.fileno(), select.EPOLLIN, self._on_signal)
        now = time.monotonic()
        self._next_tick = (now // self._times.tick + 1) * self._times.tick  # the same moments as the daemon's
        self._take_over()
        is_first = True
        while not self._finished():
            try:
                for fd, _ in self._epoll.poll(0 if is_first else self._timeout(time.monotonic())):
                    known = self._watched.get(fd)
                    if known is not None:
                        known[1]()
                self._turn(time.monotonic())
                if is_first:
                    is_first = False
                    started()
            except Exception:  # noqa: BLE001  a mistake of ours: every turn looks at all there is, so the next may do it
                say(f"a turn failed: {traceback.format_exc()}")
                time.sleep(REST)
        return self._code

    # ---- signals ------------------------------------------------------------------------------------
    def _catch_signals(self) -> None:
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        if self._foreground:  # each is an order, which the daemon is passed
            orders = run.orders(at_a_terminal=os.isatty(0))
        elif os.environ.get("NOTIFY_SOCKET"):  # a service manager's SIGHUP is a reload, not the end of a terminal
            orders = frozenset({signal.SIGTERM, signal.SIGHUP})
        else:
            orders = frozenset({signal.SIGTERM})
        for number in (signal.SIGCHLD, *orders):
            signal.signal(number, lambda *_: None)
        for number in {signal.SIGHUP, signal.SIGINT, signal.SIGPIPE}.difference(orders):
            signal.signal(number, signal.SIG_IGN)
        # held over the exec of an upgrade, or since the command began; no child should begin with any of it held
        held = signal.valid_signals() if self._foreground else boot.HELD_SIGNALS.union(orders)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def _on_signal(self) -> None:
        try:
            numbers = self._wake.recv(4096)
        except BlockingIOError:
            return
        self._look_at_children = True
        if self._foreground:
            for number in numbers:
                self._order(number)
        elif signal.SIGTERM in numbers:
            say("SIGTERM: asking the daemon to stop everything")
            self._stopping = True
            self._daemon.signal(signal.SIGTERM)
        elif signal.SIGHUP in numbers and self._daemon.version:
            self._daemon.signal(signal.SIGHUP)

    def _order(self, number: int) -> None:
        """In the foreground: pass a signal on, once the daemon has said that it can take it."""
        if number == signal.SIGCHLD:
            return
        number = signal.SIGTERM if number in run.STOPS else number
        if self._daemon.version:
            self._daemon.signal(number)
        else:
            self._orders.append(number)

    # ---- one turn -----------------------------------------------------------------------------------
    def _turn(self, now: float) -> None:
        if now >= self._next_tick:
            self._next_tick = (now // self._times.tick + 1) * self._times.tick  # the same moments as the daemon's
            self._look_at_children = True
            self._ping(now)
        if self._look_at_children:
            self._look_at_children = False
            self._find_ended(now)
        for program in (self._daemon, self._logger):
            if program.kill_at is not None and now >= program.kill_at:
                program.kill_at = None
                if self._stopping:
                    program.kill("did not end in time")
                else:
                    program.kill("upgrade" if program.leaving else "closed its channel and stayed")
        self._replace(now)
        # the logger first: the pipes of a daemon that starts at once should have a reader
        if not self._logger.pid and now >= self._logger.next_start and not self._stopping:
            self._start_logger(now)
        if not self._daemon.pid and now >= self._daemon.next_start and not self._stopping:
            self._start_daemon(now)
        if self._stopping and not self._daemon.pid and self._logger.pid and not self._logger_told:
            self._logger_told = True
            self._logger.outbox.say(Stopping())
            self._logger.kill_at = now + self._times.logger_end
        if self._retry_sends_at is not None and now >= self._retry_sends_at:
            self._retry_sends_at = None
        for program in (self._daemon, self._logger):
            self._flush(program, now)
        if self._upgrade is not None:
            self._become(now)

    def _timeout(self, now: float) -> float:
        deadlines = [self._next_tick]
        for program in (self._daemon, self._logger):
            if program.kill_at is not None:
                deadlines.append(program.kill_at)
            if not program.pid and not self._stopping:
                deadlines.append(program.next_start)
        if self._retry_sends_at is not None:
            deadlines.append(self._retry_sends_at)
        if self._upgrade is not None:
            deadlines.append(self._upgrade_by)
        if self._to_replace:
            deadlines.append(now + 0.5)
        return max(0.0, min(deadlines) - now)

    def _finished(self) -> bool:
        return self._stopping and not self._daemon.pid and not self._logger.pid

    def _ping(self, now: float) -> None:
        for program in (self._daemon, self._logger):
            if program.channel is not None and program.may_be_asked(now) and not program.ping():
                say(f"the {program.name} (pid {program.pid}) does not answer: killed, to be started again")
                program.kill("hung")

    # ---- upgrade ------------------------------------------------------------------------------------
    def _become(self, now: float) -> None:
        """Exec the version that is installed now, once nothing waits to be sent: what is queued would be lost."""
        assert self._upgrade is not None
        waiting = [p.name for p in (self._daemon, self._logger) if p.pid and len(p.outbox)]
        if waiting and now < self._upgrade_by and not self._stopping:
            return
        python, self._upgrade = self._upgrade, None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, boot.HELD_SIGNALS)
        self._on_signal()  # one that came before it was held would be forgotten by the exec
        why = "the daemon is stopping" if self._stopping else ""
        if waiting:
            why = f"the {waiting[0]} does not take what the guardian has to say"
        if not why and self._program is not None:
            say(f"upgrade: becoming the guardian of {python}")
            try:
                boot.become([python, *self._program[1:]], self._store, {"daemon": self._daemon, "logger": self._logger})
            except Exception as error:  # noqa: BLE001  whatever it was, nothing has changed and who waits is to know
                why = f"cannot execute {python}: {error.strerror if isinstance(error, OSError) else error!r}"
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        why = why or "this guardian cannot be upgraded"
        say(f"upgrade: not done, {why}")
        if self._daemon.pid:
            self._daemon.outbox.say(UpgradeFailed(why))
            self._flush(self._daemon, now)

    def _take_over(self) -> None:
        """Go on with the programs of the guardian that this process was; they are to be replaced, one by one."""
        if not self._taken_over:
            return
        failpoint.hit("guardian.execed")
        for program, handler in ((self._daemon, self._on_daemon), (self._logger, self._on_logger)):
            memo = self._taken_over.get(program.name)
            if memo is None:
                continue
            program.take_over(memo)
            self._reasons[program] = "upgrade"
            self._to_replace.append(program)
            if program.channel is not None:
                self._watch_channel(program, handler)

    def _replace(self, now: float) -> None:
        """Ask the first of those that are to be replaced to leave; go on to the next when its successor runs."""
        while self._to_replace and not self._stopping:
            program = self._to_replace[0]
            memo = self._taken_over[program.name]
            if program.pid == memo["pid"]:
                if not program.leaving:
                    failpoint.hit("guardian.leave")
                    say(f"upgrade: the {program.name} (pid {program.pid}) makes room")
                    program.leave(now, self._times.leave)
                return
            if not program.is_settled(now):
                return
            del self._to_replace[0]

    # ---- starting -----------------------------------------------------------------------------------
    def _start_daemon(self, now: float) -> None:
        daemon = self._daemon
        failpoint.hit("guardian.start_daemon")
        if not daemon.start(now, {}):
            say("the daemon cannot be started now (too many processes, or no memory); trying again")
            return
        try:
            failpoint.hit("guardian.daemon_started")
            self._watch_channel(daemon, self._on_daemon)
        except Exception:
            daemon.close_channel()  # it would wait for ever
            daemon.kill("could not be given its descriptors")
            raise
        daemon.outbox.restore(self._store)
        daemon.outbox.say(self._restore_done(daemon))
        daemon.outbox.say(self._logger_state())
        if self._logger.version:
            daemon.outbox.say(LoggerVersion(self._logger.version))
        for pid, status in self._children.ended.items():
            daemon.outbox.say(Exited(pid, status.code, status.signal, status.core))

    def _start_logger(self, now: float) -> None:
        logger = self._logger
        failpoint.hit("guardian.start_logger")
        lifeline = self._open_lifeline()
        try:
            if not logger.start(now, {LIFELINE_FD: lifeline}):
                say("the logger cannot be started now (too many processes, or no memory); trying again")
                return
        finally:
            os.close(lifeline)
        self._watch_channel(logger, self._on_logger)
        logger.outbox.restore(name for name in self._store if _is_for_logger(name))
        logger.outbox.say(self._restore_done(logger))
        if self._daemon.pid:
            self._daemon.outbox.say(self._logger_state())

    def _open_lifeline(self) -> int:
        """Return a new read end of the lifeline (its write end is in the store, and so with the daemon, too)."""
        write_end = self._store.get(inherited.LIFELINE)
        if write_end is None:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._store.put(inherited.LIFELINE, write_end)
            return read_end
        return os.open(f"/proc/self/fd/{write_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _restore_done(self, program: Program) -> RestoreDone:
        return RestoreDone(0, self._reasons[program], os.getpid(), __version__)

    def _logger_state(self) -> LoggerState:
        return LoggerState(self._logger.pid, max(0, self._logger.starts - 1), self._reasons[self._logger])

    # ---- ended children -----------------------------------------------------------------------------
    def _find_ended(self, now: float) -> None:
        for pid, status in self._children.find().items():
            if pid == self._daemon.pid:
                self._ended(self._daemon, now, status)
            elif pid == self._logger.pid:
                self._ended(self._logger, now, status)
            elif self._daemon.pid:
                failpoint.hit("guardian.exited")
                self._daemon.outbox.say(Exited(pid, status.code, status.signal, status.core))

    def _ended(self, program: Program, now: float, status: process.ExitStatus) -> None:
        # what it said last is still in its channel: an fd it stored right before it was killed must not be lost
        handle = self._daemon_said if program is self._daemon else self._logger_said
        while program.channel is not None and self._receive(program, handle):
            pass
        if program.channel is not None:
            self._unwatch(program.channel.fileno())
        self._children.reap(program.pid)
        pid = program.pid
        self._reasons[program] = why = program.ended(now, status)
        how = "made room" if why == "upgrade" else why
        if not (self._foreground and self._stopping):  # an orderly end needs no word there
            say(f"the {program.name} (pid {pid}) {how}" + ("" if self._stopping else ": starting it again"))

    # ---- messages -----------------------------------------------------------------------------------
    def _on_daemon(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if not self._receive(self._daemon, self._daemon_said):
                break

    def _on_logger(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if not self._receive(self._logger, self._logger_said):
                break

    def _receive(self, program: Program, handle: Callable[[fds.Packet], None]) -> bool:
        """Take one packet; False when there is none, or no channel any more. Closes the fds that nobody took."""
        if program.channel is None:
            return False
        try:
            packet = fds.recv_packet(program.channel, wire.MAX_MESSAGE, 253)
        except OSError:
            packet = fds.Packet(b"", [], 0, False)
        if packet is None:
            return False
        if not packet.data and not packet.fds:
            self._unwatch(program.channel.fileno())
            program.close_channel()
            program.kill_at = time.monotonic() + self._times.half_dead
            return False
        try:
            if packet.truncated:
                self._ask_again(program, packet.data)
                raise wire.WireError("cut: too long, or the guardian is out of file descriptors")
            handle(packet)
        except wire.WireError as error:
            self._complain(program, str(error))
        finally:
            fds.close_all(packet.fds)
        return True

    def _ask_again(self, program: Program, data: bytes) -> None:
        """What was to be stored is the daemon's alone until it is: have it sent again when there may be room."""
        message = wire.decode(FromDaemon, data) if program is self._daemon else None
        if isinstance(message, Store):
            program.outbox.say(Missing(message.names))

    def _daemon_said(self, packet: fds.Packet) -> None:
        message = wire.decode(FromDaemon, packet.data)
        match message:
            case Store(names):
                self._keep(names, packet.fds)
            case Remove(names):
                self._drop(names)
            case Collected(pids):
                failpoint.hit("guardian.collect")
                for pid in pids:
                    self._children.reap(pid)
            case Stopping():
                self._stopping = True
            case Fate(code):
                self._code = code
            case Ping(number):
                self._daemon.outbox.say(Pong(number), droppable=True)
            case Pong(number):
                self._daemon.ponged(number)
            case Hello(version):
                self._daemon.version = version
                orders, self._orders = self._orders, []
                for number in orders:
                    self._daemon.signal(number)
            case Upgrade(python):
                self._upgrade = python
                self._upgrade_by = time.monotonic() + self._times.leave

    def _logger_said(self, packet: fds.Packet) -> None:
        message: Any = wire.decode(FromLogger, packet.data)
        match message:
            case LogStats():
                text = wire.encode(message).decode()
                if self._daemon.pid:
                    self._daemon.outbox.say(Relay(text), droppable=True)
            case Closed(names):
                for name in names:
                    fd = self._store.get(name)
                    if fd is not None and _is_for_logger(name) and _at_end(fd):
                        self._store.remove(name)
            case Pong(number):
                self._logger.ponged(number)
            case Hello(version):
                self._logger.version = version
                if self._daemon.pid:
                    self._daemon.outbox.say(LoggerVersion(version))

    def _keep(self, names: tuple[str, ...], received: list[int]) -> None:
        if len(names) != len(received):
            raise wire.WireError(f"store: {len(names)} names with {len(received)} fds")
        for name in names:
            if name in FIXED_NAMES or not inherited.may_be_stored(name):  # of a later version's kind, maybe: kept, too
                raise wire.WireError(f"store: not a name that can be stored: {name!r:.60}")
        failpoint.hit("guardian.store")
        for name in names:
            self._store.put(name, received.pop(0))
        if self._logger.pid:
            self._logger.outbox.restore(name for name in names if _is_for_logger(name))

    def _drop(self, names: tuple[str, ...]) -> None:
        gone = [name for name in names if name not in FIXED_NAMES and self._store.remove(name)]
        forgotten = tuple(name for name in gone if _is_for_logger(name))
        if forgotten and self._logger.pid:
            self._logger.outbox.say(Forget(forgotten))

    def _complain(self, program: Program, text: str) -> None:
        program.complaints += 1
        if program.complaints <= MAX_COMPLAINTS:
            say(f"the {program.name} (pid {program.pid}) sent nonsense, ignored: {text}")

    # ---- epoll --------------------------------------------------------------------------------------
    def _flush(self, program: Program, now: float) -> None:
        if program.channel is None or (self._retry_sends_at is not None and len(program.outbox)):
            return
        flushed = program.outbox.flush(program.channel)
        if flushed == "later":
            self._retry_sends_at = now + self._times.too_many_fds
        fd = program.channel.fileno()
        wanted = select.EPOLLIN | (select.EPOLLOUT if flushed == "full" else 0)
        if self._watched[fd][0] != wanted:
            self._epoll.modify(fd, wanted)
            self._watched[fd] = (wanted, self._watched[fd][1])

    def _watch_channel(self, program: Program, handler: Callable[[], None]) -> None:
        assert program.channel is not None
        self._watch(program.channel.fileno(), select.EPOLLIN, handler)

    def _watch(self, fd: int, mask: int, handler: Callable[[], None]) -> None:
        self._epoll.register(fd, mask)
        self._watched[fd] = (mask, handler)

    def _unwatch(self, fd: int) -> None:
        del self._watched[fd]
        self._epoll.unregister(fd)


def _is_for_logger(name: str) -> bool:
    parsed = inherited.parse_fd_name(name)
    return parsed is not None and parsed.kind in inherited.LOGGER_KINDS


def _at_end(pipe: int) -> bool:
    """True for a pipe that nobody can write to any more and that is empty.

    The logger's word may be about a pipe that had this name before: the one in the store now is asked.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    found = dict(poll.poll(0)).get(pipe, 0)
    return bool(found & select.POLLHUP) and not found & select.POLLIN


def say(text: str) -> None:
    """Write one line to the program's own log; a full disk is no reason to fail."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{stamp} guardian[{os.getpid()}]: {text}\n")
        sys.stderr.flush()

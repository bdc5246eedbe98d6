"""Guardian: the loop. Keeps what the daemon stores, hands it to the next daemon and logger, reports ended children.

Blocks in one place (epoll) and wakes up for a message, a dead child, or its tick. Decides nothing about apps.
Level-triggered: every turn looks at what is, and does what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from pyworker import __version__, failpoint
from pyworker.guardian import keep, upgrade
from pyworker.guardian.children import Children, any_is_stopped
from pyworker.guardian.orders import Orders
from pyworker.guardian.program import HUNG, Backoff, Program
from pyworker.guardian.say import say
from pyworker.guardian.signals import Signals
from pyworker.guardian.store import FdStore
from pyworker.guardian.watch import Handler, Watch
from pyworker.policy.faults import Faults, place_of
from pyworker.policy.pulse import NOTICED, stood_still
from pyworker.protocol import inherited, wire
from pyworker.protocol import store as m
from pyworker.protocol.names import DOES_NOT_END, GUARDIAN_DIED, NOT_STARTED
from pyworker.record import record
from pyworker.unix import fds, process, stderr

MESSAGES_A_TURN = 64
AHEAD = 0.01  # seconds; less than the daemon's loop may make its lazy calls early
REST = 0.05  # seconds after a turn that failed: a lasting mistake must not cost a core
_MORE_FILES = (
    "Raise the limit of open files: prlimit --pid {} --nofile=65536 (above its hard limit: as root) for what runs, "
    "and for the next start ulimit -Hn where it is started (LimitNOFILE= of its service)"
)


@record
class Times:
    """Seconds. Tests make them short."""

    tick: float = m.TICK  # pings, and a look at the children in case a signal was missed
    logger_end: float = 30.0  # how long the logger may write what it has read, on a slow disk
    half_dead: float = 2.0  # from the end of a channel to SIGKILL
    undying: float = 5.0  # from SIGKILL until another takes the place of one that does not end
    leave: float = 5.0  # an upgrade: how long the daemon may take to make room
    too_many_fds: float = 0.05


class Guardian:
    """Daemon, logger, store, children."""

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
        before_start: Callable[[], None] = lambda: None,
    ) -> None:
        """`commands`: the argv of "daemon" and of "logger"; `reason` is what they are told why they were started.

        `program`, `taken_over`: see upgrade. `before_start` is called before each start of the two.
        """
        self._before_start = before_start
        self._foreground = foreground  # somebody waits for us, and signals are orders
        self.unstarted: OSError | None = None  # why the daemon could not be started the last time
        self._code = 0
        self._left = False
        self._store = store
        self._times = times or Times()
        backoff = backoff or Backoff()
        self._daemon = Program("daemon", commands["daemon"], store, backoff, reason)
        self._logger = Program("logger", commands["logger"], store, backoff, reason)
        self._programs = (self._daemon, self._logger)
        self._upgrade = upgrade.Upgrade(program, taken_over or {})
        self._faults = Faults()
        self._stopping = False
        self._all_ended = False  # by the daemon's word, before it ended
        self._logger_told = False
        self._relieves = False  # a logger of the guardian before us is there until ours has its descriptors
        self._look_at_children = True
        self._signals = Signals(foreground=foreground)
        self._orders = Orders(self._daemon, self._signals, self._upgrade)
        self._watch = Watch()
        self._children = Children()  # does without a descriptor that the others need
        self._next_tick = 0.0
        self._retry_sends_at: float | None = None

    def run(self, started: Callable[[], None]) -> int:
        """Run until the daemon's deliberate end and return the exit code. `started` is called once the daemon runs."""
        self._signals.catch()
        self._watch.add(self._signals.fileno(), self._on_signal)
        self._schedule_tick(time.monotonic())
        for running in self._upgrade.take_over(self._programs):
            if running.channel is not None:
                self._watch_channel(running)
        is_first = True
        while not self._finished():
            ready = self._wait(0.0 if is_first else self._timeout(time.monotonic()))
            all_done = all([self._tried(handler) for handler in ready])  # noqa: C419  as in _turn
            all_done &= self._turn(time.monotonic())
            if not all_done:
                time.sleep(REST)
            elif is_first:
                is_first = False
                started()
        self._dismiss()
        if self._daemon.undying:
            keep.free(self._store)
        return self._code

    def _wait(self, timeout: float) -> list[Handler]:
        """Wait for what is ready. A time in which all may have stood still is none that anybody had to leave."""
        began = time.monotonic()
        ready = self._watch.wait(timeout)
        late = time.monotonic() - began - timeout
        if late > NOTICED:
            for program in self._programs:
                if program.kill_at is not None:
                    program.kill_at += late
            self._upgrade.by += late
        return ready

    def _tried(self, step: Callable[..., None], *arguments: float) -> bool:
        """Do something; False when it failed. The next turn looks at all there is, and so may do it."""
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001  a mistake of ours, or want of descriptors or memory: both may pass
            if self._trouble(place_of(error), "a turn failed, and is tried again:"):
                stderr.trace(error)
            return False
        return True

    def _trouble(self, fault: str, text: str) -> bool:
        """Say it once while it lasts; whether it was said."""
        is_new = self._faults.is_new(fault, time.monotonic())
        if is_new:
            say(text)
        return is_new

    # ---- signals ------------------------------------------------------------------------------------
    def _on_signal(self) -> None:
        numbers = self._signals.read()
        self._look_at_children = True
        if self._foreground:
            for number in numbers:
                if number != signal.SIGCHLD and not self._all_ended:  # ... of that nothing is left to be done
                    self._left |= not self._orders.take(number)
        elif signal.SIGTERM in numbers:
            say("SIGTERM: asking the daemon to stop everything")
            self._stopping = True
            self._orders.pass_on(signal.SIGTERM)
        elif signal.SIGHUP in numbers:
            self._orders.pass_on(signal.SIGHUP)

    # ---- one turn -----------------------------------------------------------------------------------
    def _turn(self, now: float) -> bool:
        """Do what is due, each for itself: a logger that cannot be started is no reason to leave a ping unanswered."""
        steps = (
            self._tick,
            self._find_ended,
            self._kill_late,
            self._replace,
            self._start_logger,  # first: the pipes of a daemon that starts at once should have a reader
            self._start_daemon,
            self._stop_logger,
            self._flush,
            self._become,
        )
        return all([self._tried(step, now) for step in steps])  # noqa: C419  all of them, also after one that failed

    def _timeout(self, now: float) -> float:
        deadlines = [now if self._look_at_children else self._next_tick]  # still to do: the last look has failed
        for program in self._programs:
            if program.kill_at is not None:
                deadlines.append(program.kill_at)
            if (moment := self._undying_at(program)) is not None:
                deadlines.append(moment)
            if not program.pid and not self._starts_no_more(program):
                deadlines.append(program.next_start)
        if self._retry_sends_at is not None:
            deadlines.append(self._retry_sends_at)
        if self._upgrade.is_wanted:
            deadlines.append(self._upgrade.by)
        if self._upgrade.goes_on:
            deadlines.append(now + 0.5)
        return max(0.0, min(deadlines) - now)

    def _finished(self) -> bool:
        return self._left or (not any(p.pid for p in self._programs) and all(map(self._starts_no_more, self._programs)))

    def _starts_no_more(self, program: Program) -> bool:
        """The logger is needed until the end: workers that leave still print, and it ends those that the daemon has not."""
        return self._stopping if program is self._daemon else self._all_ended or self._logger_told

    def _tick(self, now: float) -> None:
        if now < self._next_tick:
            return
        frozen = stood_still(now - self._next_tick, self._times.tick)
        self._schedule_tick(now)
        self._look_at_children = True
        for text in self._faults.over(now):
            say(text)
        for program in self._programs:
            if program.channel is None or not program.may_be_asked(now):
                continue
            if program.name == "daemon" and not any_is_stopped():
                program.say(m.NoneStopped(), droppable=True)
            if not frozen and not program.ping():
                next_one = "" if self._stopping else ", to be started again"
                say(f"the {program.name} (pid {program.pid}) does not answer: killed{next_one}")
                program.kill(HUNG)

    def _schedule_tick(self, now: float) -> None:
        # just before the daemon's own moments, so that one wake-up of it does for both
        self._next_tick = ((now + AHEAD) // self._times.tick + 1) * self._times.tick - AHEAD

    def _kill_late(self, now: float) -> None:
        for program in self._programs:
            if (moment := self._undying_at(program)) is not None and now >= moment:
                self._do_without(program, now)
            if program.kill_at is not None and now >= program.kill_at:
                program.kill_at = None
                if self._stopping:
                    program.kill("did not end in time")
                else:
                    program.kill("upgrade" if program.leaving else "closed its channel and stayed")

    def _undying_at(self, program: Program) -> float | None:
        """Return when one that was killed has had its time to end. Where one before does not end either, and it has hung
        from its start on, so would the next.
        """
        hopeless = program.undying and not program.has_lived
        if program.killed_at is None or (hopeless and not self._stopping):
            return None
        return program.killed_at + self._times.undying

    def _do_without(self, program: Program, now: float) -> None:
        """Go on as if it had ended: it does nothing any more, and is gone as soon as the kernel lets it."""
        if not process.is_kept(program.pid):
            program.killed_at = now
            return
        say(f"the {program.name} (pid {program.pid}) {DOES_NOT_END}")
        program.undying.add(program.pid)
        self._ended(program, now, process.UNKNOWN)

    def _stop_logger(self, now: float) -> None:
        if not self._stopping or self._daemon.pid or not self._logger.pid or self._logger_told:
            return
        if self._all_ended:
            self._logger_told = True
            self._logger.say(m.Stopping())
            self._logger.kill_at = now + self._times.logger_end
            return
        self._flush(now)
        if len(self._logger.outbox):  # it has not been given everything yet
            return
        self._logger_told = True
        # the daemon died before it had stopped everything: workers leave when nobody has their channels any more, and
        # whoever does not is ended by the logger, which the end of its lifeline tells that
        self._dismiss()
        for name in self._store:
            if name not in (inherited.LOCK, inherited.CONTROL) and not keep.is_for_logger(name):
                self._store.remove(name)

    # ---- upgrade ------------------------------------------------------------------------------------
    def _become(self, now: float) -> None:
        """Exec the version that is installed now, once nothing waits to be sent: what is queued would be lost."""
        if not self._upgrade.is_wanted:
            return
        waiting = [program.name for program in self._programs if program.pid and len(program.outbox)]
        if waiting and now < self._upgrade.by and not self._stopping:
            return
        with self._signals.held():
            self._on_signal()  # one that came before it was held would be forgotten by the exec
            why = "the daemon is stopping" if self._stopping else ""
            if waiting:
                why = f"the {waiting[0]} does not take what the guardian has to say"
            why = self._upgrade.become(self._store, self._programs, why)
        say(f"upgrade: not done, {why}")
        self._daemon.say(m.UpgradeFailed(why))
        self._flush(now)

    def _replace(self, now: float) -> None:
        if not self._stopping:
            self._upgrade.replace(now, {"daemon": self._times.leave, "logger": self._times.logger_end})

    def _set_aside(self) -> None:
        """The daemon stands by: the next one may start, and is handed what tells this one that it is not needed."""
        daemon = self._daemon
        if not daemon.leaving or daemon.channel is None:
            raise wire.WireError("nobody has asked it to stand by")
        self._watch.remove(daemon.channel.fileno())
        self._store.put(inherited.STANDBY, daemon.channel.detach())
        daemon.channel = None
        self._ended(daemon, time.monotonic(), process.UNKNOWN)

    def _dismiss(self) -> None:
        """A deliberate end between two daemons: nobody is to go on."""
        channel = self._store.get(inherited.STANDBY)
        if channel is not None:
            with contextlib.suppress(OSError):
                os.write(channel, wire.encode(m.Leave()))

    # ---- starting -----------------------------------------------------------------------------------
    def _start_logger(self, now: float) -> None:
        logger = self._logger
        if not self._may_start(logger, now):
            return
        failpoint.hit("guardian.start_logger")
        try:
            lifeline = self._open_lifeline()
        except OSError as error:
            self._not_started(logger, now, error)
            return
        try:
            if not self._start(logger, now, {m.LIFELINE_FD: lifeline}):
                return
        finally:
            os.close(lifeline)
        self._relieves |= logger.reason == GUARDIAN_DIED
        logger.restore(filter(keep.is_for_logger, self._store))
        logger.say(self._restore_done(logger))
        self._name_daemon()
        self._flush(now)  # before anything can happen to us: without them it could end nothing
        self._daemon.say(self._logger_state())

    def _start_daemon(self, now: float) -> None:
        daemon = self._daemon
        if not self._may_start(daemon, now):
            return
        failpoint.hit("guardian.start_daemon")
        if not self._start(daemon, now, {}):
            return
        daemon.restore(self._store)
        daemon.say(self._restore_done(daemon))
        daemon.say(self._logger_state())
        self._name_daemon()
        if self._logger.version:
            daemon.say(m.LoggerVersion(self._logger.version))
        for pid, status in self._children.ended.items():
            daemon.say(m.Exited(pid, status.code, status.signal, status.core))

    def _may_start(self, program: Program, now: float) -> bool:
        return not program.pid and now >= program.next_start and not self._starts_no_more(program)

    def _start(self, program: Program, now: float, extra_fds: dict[int, int]) -> bool:
        try:
            self._before_start()
            self._lifeline()
            program.start(now, extra_fds)
        except OSError as error:
            self._not_started(program, now, error)
            return False
        try:
            if program is self._daemon:
                failpoint.hit("guardian.daemon_started")
            self._watch_channel(program)
        except Exception:
            program.close_channel()  # it would wait for ever
            program.kill("could not be given its descriptors")
            raise
        return True

    def _not_started(self, program: Program, now: float, error: OSError) -> None:
        """Try again, the later the more often it has failed; said once."""
        program.try_later(now)
        if self._stopping and not self._daemon.pid:  # the logger, to end what is left: nobody else would
            self._left = True
        why = f"the {program.name} {NOT_STARTED}: {error.strerror}"
        if program is self._daemon:
            self.unstarted = error
        told = self._foreground and error.errno == errno.EAGAIN  # else a command reads this, and says it
        hint = " (raise the limit of processes: ulimit -u, pids.max of its cgroup)" if told else ""
        self._trouble(why, f"{why}; trying again{hint}")

    def _open_lifeline(self) -> int:
        """Return a new read end of the lifeline."""
        return os.open(f"/proc/self/fd/{self._lifeline()}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _lifeline(self) -> int:
        """Return the write end of the lifeline. It is made before any program is: without it, a daemon that outlives us
        would be as dead to the logger as we are.
        """
        write_end = self._store.get(inherited.LIFELINE)
        if write_end is None:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.close(read_end)
            self._store.put(inherited.LIFELINE, write_end)
        return write_end

    def _relieve(self) -> None:
        """Let the logger go that the guardian before us has left: it could have ended all that has no end of its own."""
        self._relieves = False
        lifeline = self._store.get(inherited.LIFELINE)
        if lifeline is not None:
            with contextlib.suppress(OSError):  # it has gone
                os.write(lifeline, b"\n")

    def _restore_done(self, program: Program) -> m.RestoreDone:
        return m.RestoreDone(0, program.reason, os.getpid(), __version__)

    def _logger_state(self) -> m.LoggerState:
        return m.LoggerState(self._logger.pid, 0, "")

    def _name_daemon(self) -> None:
        """Tell the logger the daemon's pid; one that is about to be replaced may be of a version that does not know the word."""
        if self._daemon.pid and not self._upgrade.is_to_replace(self._logger):
            self._logger.say(m.DaemonState(self._daemon.pid))

    # ---- ended children -----------------------------------------------------------------------------
    def _find_ended(self, now: float) -> None:
        if not self._look_at_children:
            return
        for pid, status in self._children.find().items():
            program = next((p for p in self._programs if pid == p.pid or pid in p.undying), None)
            if program is not None and pid in program.undying:
                program.undying.remove(pid)
            elif program is not None:
                self._ended(program, now, status)
            elif self._daemon.pid:
                failpoint.hit("guardian.exited")
                self._daemon.say(m.Exited(pid, status.code, status.signal, status.core))
            self._children.ended[pid] = status  # not before: what failed above is tried again
            if program is not None:
                self._children.reap(pid)
        self._look_at_children = False

    def _ended(self, program: Program, now: float, status: process.ExitStatus) -> None:
        # what it said last is still in its channel: an fd it stored right before it was killed must not be lost
        while program.channel is not None and self._receive(program):
            pass
        if not program.pid:  # its last word was that it stands by, and that has been its end
            return
        if program.channel is not None:
            self._watch.remove(program.channel.fileno())
        pid = program.pid
        program.ended(now, status)
        if program is self._daemon:
            self._orders.remind()
        if program is self._logger and status.code != 0 and not self._all_ended:
            # the next one is told, and ends what is left, unless it fails over it, too
            self._logger_told &= status.code is not None and program.dies_young
        how = "made room" if program.reason == "upgrade" else program.reason
        text = f"the {program.name} (pid {pid}) {how}"
        if not self._stopping:
            # one that always dies young is said to once
            fault = f"the {program.name} {how}"
            if self._faults.is_new(fault, now) or not program.dies_young:
                say(f"{text}: starting it again")
        elif not self._foreground:  # an orderly end needs no word there
            say(text)

    # ---- messages -----------------------------------------------------------------------------------
    def _on_message(self, program: Program) -> None:
        for _ in range(MESSAGES_A_TURN):
            if not self._receive(program):
                break

    def _receive(self, program: Program) -> bool:
        """Take one packet; False when there is none, or no channel any more. Closes the fds that nobody took."""
        if program.channel is None:
            return False
        # what fails is no end: a daemon that lives and whose channel is closed takes its guardian for dead, and becomes another
        packet = fds.recv_packet(program.channel, wire.MAX_MESSAGE, 253)
        if packet is None:
            return False
        if not packet.data and not packet.fds:
            self._watch.remove(program.channel.fileno())
            program.close_channel()
            program.kill_at = time.monotonic() + self._times.half_dead
            return False
        try:
            if packet.truncated:
                self._make_good(program, packet.data)
                if program is self._logger:  # it sends no descriptors: its words were cut
                    raise wire.WireError("cut: too long")
                fault = "no file descriptor is left for what the daemon stores"
                self._trouble(fault, f"{fault}: it sends it again. {_MORE_FILES.format(os.getpid())}")
            elif program is self._daemon:
                self._daemon_said(packet)
            else:
                self._logger_said(packet)
        except wire.WireError as error:
            text = f"the {program.name} (pid {program.pid}) sent nonsense, ignored: {error}"
            self._trouble(text, text)
        except Exception:
            self._make_good(program, packet.data)
            raise
        finally:
            fds.close_all(packet.fds)
        return True

    def _make_good(self, program: Program, data: bytes) -> None:
        """See to what the daemon says once and a failure has left undone."""
        message = wire.decode(m.FromDaemon, data) if program is self._daemon else None
        if isinstance(message, m.Store):
            # its descriptors are the daemon's alone: it sends them when that may go better
            program.say(m.Missing(message.names))
        elif isinstance(message, m.Collected):  # or they would stay zombies
            self._reap(message.pids)

    def _reap(self, pids: tuple[int, ...]) -> None:
        for pid in pids:
            self._children.reap(pid)

    def _daemon_said(self, packet: fds.Packet) -> None:
        message = wire.decode(m.FromDaemon, packet.data)
        match message:
            case m.Store(names):
                failpoint.hit("guardian.store")
                keep.put(self._store, names, packet.fds)
                self._logger.restore(filter(keep.is_for_logger, names))
            case m.Remove(names):
                forgotten = tuple(filter(keep.is_for_logger, keep.drop(self._store, names)))
                if forgotten:
                    self._logger.say(m.Forget(forgotten))
            case m.Collected(pids):
                failpoint.hit("guardian.collect")
                self._reap(pids)
            case m.StandsBy():
                self._set_aside()
            case m.Stopping():
                self._stopping = self._all_ended = True
            case m.Fate(code):
                self._code = code
            case m.Ping(number):
                self._daemon.say(m.Pong(number), droppable=True)
            case m.Pong(number):
                self._daemon.ponged(number)
            case m.Hello(version):
                self._daemon.version = version
                self._orders.pass_on_all()
            case m.Upgrade(python):
                if not self._daemon.leaving:  # else it is being replaced
                    self._upgrade.ask(python, time.monotonic() + self._times.leave)

    def _logger_said(self, packet: fds.Packet) -> None:
        message: Any = wire.decode(m.FromLogger, packet.data)
        match message:
            case m.LogStats():
                self._daemon.say(m.Relay(wire.encode(message).decode()), droppable=True)
            case m.Closed(names):
                dropped = keep.drop_closed(self._store, names)
                if dropped:
                    self._daemon.say(m.Closed(dropped), droppable=True)
            case m.Pong(number):
                self._logger.ponged(number)
            case m.Hello(version):
                self._logger.version = version
                self._daemon.say(m.LoggerVersion(version))

    # ---- sending ------------------------------------------------------------------------------------
    def _flush(self, now: float) -> None:
        if self._retry_sends_at is not None and now >= self._retry_sends_at:
            self._retry_sends_at = None
        for program in self._programs:
            if program.channel is None or (self._retry_sends_at is not None and len(program.outbox)):
                continue
            flushed = program.outbox.flush(program.channel)
            if flushed == "later":
                self._retry_sends_at = now + self._times.too_many_fds
            if self._relieves and program is self._logger and flushed != "gone":
                self._relieve()  # also when there is more than fits: it waits for its place before it reads on
            self._watch.until_writable(program.channel.fileno(), wanted=flushed == "full")

    def _watch_channel(self, program: Program) -> None:
        assert program.channel is not None
        self._watch.add(program.channel.fileno(), lambda: self._on_message(program))

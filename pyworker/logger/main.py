"""Logger: the loop. Reads every pipe in turn, hands records to the files, obeys the guardian.

Blocks in one place (epoll) and, for a moment, in the disk. A worker is never slowed by another one's output: each ready pipe gets
one chunk a turn. When guardian and daemon are both gone it sees to the end of what they started (sweep).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from pyworker import __version__, failpoint
from pyworker.errors import NO_ROOM, lacking_in_words
from pyworker.logger.lines import CHUNK
from pyworker.logger.output import Output
from pyworker.logger.pipe import OUTPUT_OF, Life, Pipe
from pyworker.logger.say import say
from pyworker.logger.stdout import FD as STDOUT_FD
from pyworker.logger.sweep import Sweep
from pyworker.policy.faults import Faults
from pyworker.protocol import store as m
from pyworker.protocol import wire
from pyworker.protocol.inherited import PIDFD_KINDS, FdName, fd_name, parse_fd_name
from pyworker.protocol.logs import LogsSpec, stamp
from pyworker.unix import fds, process
from pyworker.unix.ready import ready

HOLD = 0.2  # seconds an unfinished line is held
# seconds a pipe waits for its pid and its app's log file before it is read without them, or for room
WAIT_FOR_NAMES = 2.0
STATS_EVERY = 1.0
STOP_QUIET = 1.0  # seconds without output after Stopping; then pipes that are held open by somebody are left
STOP_LONGEST = 4.0  # ... also while somebody goes on printing
ASK_AGAIN = 0.5  # seconds until a disk that does not answer is asked again
ORPHANED = 10.0  # seconds from the guardian's end: by then its successor has a logger, told or not
STOOD_STILL = 1.0  # seconds after which another logger may read these pipes: the next one waits for two
BEGIN_AGAIN = 0.3  # seconds until it leaves over a pipe that it has not got
UNASKED = 8  # ticks without a question of the guardian's: a daemon that lives has replaced one that hangs after three
MESSAGES_A_TURN = 64
BUSY = 2 * 1024  # bytes that came in one turn
NAP = 0.0005  # seconds between two busy turns: a chatty program then costs a wake-up per 50 KB, not one per 8 KB


class Logger:
    """All pipes, all files, one epoll."""

    def __init__(
        self,
        home: str,
        channel: socket.socket,
        lifeline: int,
        stdout: Literal["", "short", "json", "plain"] = "",
        tick: float = m.TICK,
    ) -> None:
        """`stdout`: the format of a foreground pyworker, whose apps log to our stdout; it may have no home."""
        self._channel: socket.socket | None = channel
        self._lifeline = lifeline
        self._epoll = select.epoll()
        self._pipes: dict[int, Pipe] = {}
        self._named: dict[str, Pipe] = {}  # without those whose name another one has now
        self._waiting: dict[int, Pipe] = {}  # of them, not read yet: no pid, file or room for it
        self._holding: dict[int, Pipe] = {}
        self._lives: dict[tuple[str, str, tuple[int, ...]], Life] = {}
        self._output = Output(home, stdout, self._wait_for_reader)
        self._forgotten: set[str] = set()  # apps that have pipes yet
        self._closed: list[str] = []
        self._outbox: list[Any] = []
        self._put_off: deque[fds.Packet] = deque()  # came while we waited for the reader of our stdout
        self._next_stats = 0.0
        self._read_bytes = 0  # in this turn
        self._quiet_at: float | None = None  # Stopping was said: leave when this is reached
        self._stop_by = 0.0  # ... which is no later than this
        self._leave_at: float | None = None  # for the next one, unless guardian and daemon are both gone
        self._sweep: Sweep | None = None
        self._faults = Faults()
        self._unasked = float("inf") if stdout else UNASKED * tick  # one in the foreground was stopped by Ctrl-Z
        self._asked_at = time.monotonic()
        self._daemon = 0  # its pid, as long as it may need us

    def run(self) -> int:
        """Read until there is nobody to read for; return the exit code."""
        channel = self._channel
        assert channel is not None
        self._epoll.register(channel.fileno(), select.EPOLLIN)
        self._epoll.register(self._lifeline, 0)  # its end; a word on it is for the logger of a dead guardian
        self._outbox.append(m.Hello(__version__))
        now = time.monotonic()
        was_busy = False
        while not self._is_over(now):
            for fd, _ in self._epoll.poll(self._timeout(now)):
                if time.monotonic() >= now + STOOD_STILL:
                    self._look_whether_relieved()
                    now = time.monotonic()
                if self._leave_at is not None and now >= self._leave_at:
                    break
                if fd in self._waiting:
                    continue  # it has the number of one that was closed in this turn, whose event this is
                if fd in self._pipes:
                    self._read(self._pipes[fd])
                elif fd == channel.fileno():
                    self._on_channel()
                elif fd == self._lifeline and self._sweep is None:
                    self._on_lifeline()
            if self._put_off:
                self._on_channel()
            now = time.monotonic()
            self._turn(now)
            busy, self._read_bytes = BUSY <= self._read_bytes < CHUNK, 0
            if busy and was_busy:
                time.sleep(NAP)
            was_busy = busy
        self._leave()
        return 0

    # ---- one turn -----------------------------------------------------------------------------------
    def _turn(self, now: float) -> None:
        for pipe in [p for p in self._waiting.values() if self._may_read(p) or now >= p.born + WAIT_FOR_NAMES]:
            if pipe.forgotten:
                self._drain(pipe)
            else:
                self._listen(pipe, now)
        for pipe in [p for p in self._holding.values() if now >= (p.holding_since or now) + HOLD]:
            self._put(pipe, pipe.lines.part)
            self._holding.pop(pipe.fd)
            pipe.holding_since = None
        self._output.write()
        while self._closed:
            self._outbox.append(m.Closed(tuple(self._closed[: m.BATCH])))
            del self._closed[: m.BATCH]
        if now >= self._next_stats:
            self._next_stats = now + STATS_EVERY
            self._outbox += self._output.news()
        self._flush()
        if self._channel is not None and now >= self._asked_at + self._unasked:
            self._asked_at = now
            _wake("guardian", os.getppid())
        is_left = self._channel is None and self._leave_at is not None and now >= self._leave_at
        if is_left and _wake("daemon", self._daemon):
            self._leave_at = now + ORPHANED
        if self._sweep is not None:
            self._sweep.turn(now, self._lives, self._output.specs)

    def _timeout(self, now: float) -> float:
        deadlines = [now + 30.0]
        if self._channel is not None:
            deadlines.append(self._asked_at + self._unasked)
        if self._waiting:
            deadlines.append(min(p.born for p in self._waiting.values()) + WAIT_FOR_NAMES)
        if self._holding:
            deadlines.append(min(p.holding_since or now for p in self._holding.values()) + HOLD)
        if self._output.hangs:
            deadlines.append(now + ASK_AGAIN)
        if self._output.has_news():
            deadlines.append(self._next_stats)
        due = (self._quiet_at, self._leave_at, self._sweep.next_at if self._sweep else None)
        deadlines.extend(moment for moment in due if moment is not None)
        return max(0.0, min(deadlines) - now)

    def _is_over(self, now: float) -> bool:
        nothing_left = not self._pipes
        if self._sweep is not None:
            return (nothing_left and self._sweep.all_gone(self._lives)) or self._sweep.is_over(now)
        if self._quiet_at is not None and (nothing_left or now >= self._quiet_at):
            return True
        return self._leave_at is not None and now >= self._leave_at

    def _leave(self) -> None:
        """Write what is held. A line that goes on with the next logger is only a part."""
        if self._quiet_at is not None:  # there is no next one: what is in the pipes by now is read, however late it is
            for pipe in list(self._pipes.values()):
                self._drain(pipe)
        goes_on = self._leave_at is not None and self._sweep is None
        for pipe in self._pipes.values():
            if goes_on:
                self._complete(pipe)
            self._put(pipe, pipe.lines.leave if goes_on else pipe.lines.finish)
        self._output.write()
        self._outbox += self._output.news()
        self._flush()
        if self._output.hangs:  # our end closes nothing, as long as a thread waits for the disk
            if self._channel is not None:
                self._channel.close()
            os.close(self._lifeline)  # its lock is the next one's

    def _complete(self, pipe: Pipe) -> None:
        """Take the rest of a character that is held in half: from a JSON log nobody could put it together again."""
        for _ in range(3):
            if not pipe.lines.has_half_a_character or not (byte := pipe.read(1)):
                return
            self._put(pipe, pipe.lines.feed, byte)

    # ---- pipes --------------------------------------------------------------------------------------
    def _listen(self, pipe: Pipe, now: float) -> None:
        """Wait for what comes in a pipe that has waited until now."""
        try:
            self._epoll.register(pipe.fd, select.EPOLLIN)
        except OSError as error:
            if error.errno in NO_ROOM:  # without a reader its writer would stop in its prints
                if self._faults.is_new("no room", now):
                    say(f"{pipe.full_name} cannot be read, trying again: {lacking_in_words(error)}")
                pipe.no_room, pipe.born = True, now
                return
            # not a pipe: a mistake of the daemon's must not end the logger
            say(f"{pipe.full_name} cannot be read, ignored: {error}")
            self._unname(pipe)
            os.close(self._pipes.pop(pipe.fd).fd)
        del self._waiting[pipe.fd]

    def _read(self, pipe: Pipe) -> bool:
        """Take one chunk; False when there is none (any more)."""
        chunk = pipe.read(self._output.take_in_hand(pipe.name.app))
        if not chunk:
            self._output.has_taken(pipe.name.app)
            if chunk is not None:
                self._end(pipe)
            return False
        if self._quiet_at is not None:
            self._quiet_at = min(time.monotonic() + STOP_QUIET, self._stop_by)
        self._read_bytes += len(chunk)
        self._put(pipe, pipe.lines.feed, chunk)
        self._output.has_taken(pipe.name.app, len(chunk), pipe.lines.ended + (not chunk.endswith(b"\n")))
        if not pipe.lines.held:
            self._holding.pop(pipe.fd, None)
            pipe.holding_since = None
        elif pipe.holding_since is None or len(pipe.lines.held) < len(chunk):  # another line than the one held before
            pipe.holding_since = time.monotonic()
            self._holding[pipe.fd] = pipe
        if self._output.is_full:
            self._output.write()
        return True

    def _put(self, pipe: Pipe, take: Callable[..., bytes], *chunk: bytes) -> None:
        """Have written what the pipe's lines give: what is complete by a chunk, or what is held."""
        app, lines = pipe.name.app, pipe.lines
        before = bool(lines.held)
        records = take(*chunk, stamp(time.time()), self._output.format(app))
        self._output.put(app, records, bool(lines.held) - before)

    def _drain(self, pipe: Pipe) -> None:
        """Read what is in a forgotten pipe now, then close it; who still writes to it gets SIGPIPE."""
        for _ in range(32):
            if not self._read(pipe):
                break
            self._output.write()
        if pipe.fd in self._pipes:
            self._end(pipe)

    def _end(self, pipe: Pipe) -> None:
        self._put(pipe, pipe.lines.finish)
        self._holding.pop(pipe.fd, None)
        if self._waiting.pop(pipe.fd, None) is None:
            self._epoll.unregister(pipe.fd)  # closing is not enough: the guardian has a copy of the same pipe
        del self._pipes[pipe.fd]
        os.close(pipe.fd)
        if self._unname(pipe) and not pipe.forgotten:
            self._closed.append(pipe.full_name)
        self._forget_app(pipe.name.app)

    def _unname(self, pipe: Pipe) -> bool:
        """Take a pipe's name away; False when another pipe has it."""
        if self._named.get(pipe.full_name) is not pipe:
            return False
        del self._named[pipe.full_name]
        return True

    def _may_read(self, pipe: Pipe) -> bool:
        """True when all is known of the pipe, and not only a later try could succeed; its source then has the pid."""
        life = self._lives.get(pipe.pid_name)
        if life is not None:
            pipe.lines.source.pid = life.pid
        return life is not None and pipe.name.app in self._output.specs and not pipe.no_room

    # ---- the guardian -------------------------------------------------------------------------------
    def _on_channel(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if self._channel is None:
                return
            packet = self._put_off.popleft() if self._put_off else self._next_packet(self._channel)
            if packet is None:
                return
            if not packet.data and not packet.fds:
                self._guardian_gone()
                return
            try:
                if packet.truncated:
                    self._begin_again("a message was cut")
                    raise wire.WireError("cut: too long, or the logger is out of file descriptors")
                self._obey(wire.decode(m.ToLogger, packet.data), packet.fds)
            except wire.WireError as error:
                say(f"the guardian sent nonsense, ignored: {error}")
            except OSError as error:
                self._begin_again(str(error))
            finally:
                fds.close_all(packet.fds)

    def _next_packet(self, channel: socket.socket) -> fds.Packet | None:
        try:
            return fds.recv_packet(channel, wire.MAX_MESSAGE, m.BATCH)
        except OSError:
            return fds.Packet(b"", [], 0, False)

    def _wait_for_reader(self) -> None:
        """Return when our stdout takes something. The guardian's questions are answered meanwhile: it is not us who hang."""
        poll = select.poll()
        poll.register(STDOUT_FD, select.POLLOUT)
        watched = self._channel
        if watched is not None and len(self._put_off) < MESSAGES_A_TURN:
            poll.register(watched, select.POLLIN)
        while all(fd != STDOUT_FD for fd, _ in poll.poll()):
            assert watched is not None
            packet = self._next_packet(watched)
            if packet is None:
                continue
            with contextlib.suppress(wire.WireError):
                if isinstance(message := wire.decode(m.ToLogger, packet.data), m.Ping):
                    self._outbox.append(m.Pong(message.number))
                    self._flush()
                    continue
            self._put_off.append(packet)
            if not packet.data or len(self._put_off) == MESSAGES_A_TURN:
                poll.unregister(watched)

    def _begin_again(self, why: str) -> None:
        """Some pipe has no reader now, and its writer would wait for one: the next logger is given all of them."""
        if self._leave_at is None:
            say(f"leaves, to be started again with every pipe: {why}")
            self._leave_at = time.monotonic() + BEGIN_AGAIN

    def _obey(self, message: m.ToLogger, received: list[int]) -> None:
        match message:
            case m.Restore(names):
                if len(names) != len(received):
                    raise wire.WireError(f"restore: {len(names)} names with {len(received)} fds")
                failpoint.hit("logger.take")
                for name in names:
                    self._take(name, received.pop(0))
            case m.Forget(names):
                for name in names:
                    self._forget(name)
            case m.Ping(number):
                self._asked_at = time.monotonic()
                self._outbox.append(m.Pong(number))
            case m.Stopping():
                self._quiet_at, self._stop_by = time.monotonic() + STOP_QUIET, time.monotonic() + STOP_LONGEST
            case m.Leave():
                failpoint.hit("logger.leave")
                self._leave_at = time.monotonic()  # what the pipes hold by now is the next one's
            case m.DaemonState(pid):
                self._daemon = pid
                self._output.tell_again()
            case m.RestoreDone():
                pass

    def _take(self, text: str, fd: int) -> None:
        """Use an fd (ours from here) for what its name says."""
        name = parse_fd_name(text)
        match name:
            case FdName(kind="logs", app=app):
                self._configure(app, fd)
            case FdName() if name.kind in PIDFD_KINDS:
                self._forget(text)
                self._lives[name.kind, name.app, name.numbers] = life = Life(fd)
                for kind in OUTPUT_OF.get(name.kind, ()):
                    if (pipe := self._named.get(fd_name(kind, name.app, *name.numbers))) is not None:
                        pipe.lines.source.pid = life.pid
            case FdName(kind="out" | "err" | "tout" | "terr"):
                self._add_pipe(name, fd)
            case _:
                os.close(fd)

    def _add_pipe(self, name: FdName, fd: int) -> None:
        pipe = Pipe(name, fd, time.monotonic())
        other = self._named.get(pipe.full_name)
        if other is not None and other.inode == pipe.inode:
            os.close(fd)
            return
        self._named[pipe.full_name] = self._pipes[fd] = self._waiting[fd] = pipe

    def _configure(self, app: str, fd: int) -> None:
        try:
            spec = wire.decode(LogsSpec, fds.read_whole(fd))
        except (OSError, wire.WireError) as error:
            say(f"logs.{app} cannot be read, ignored: {error}")
            return
        finally:
            os.close(fd)
        self._forgotten.discard(app)
        self._output.configure(app, spec, self._printing())

    def _printing(self) -> set[str]:
        return {pipe.name.app for pipe in self._pipes.values()}

    def _forget(self, text: str) -> None:
        name = parse_fd_name(text)
        match name:
            case FdName(kind="logs", app=app):
                self._forgotten.add(app)
                self._forget_app(app)
            case FdName() if name.kind in PIDFD_KINDS:
                life = self._lives.pop((name.kind, name.app, name.numbers), None)
                if life is not None:
                    os.close(life.fd)
            case FdName():
                forgotten = self._named.get(text)
                if forgotten is not None:
                    forgotten.forgotten = True
                    if forgotten.fd not in self._waiting:
                        self._drain(forgotten)
            case None:
                pass

    def _forget_app(self, app: str) -> None:
        """Forget where a forgotten app's log is, once all that its pipes still hold has been read."""
        if app in self._forgotten and app not in (printing := self._printing()):
            self._forgotten.discard(app)
            self._output.forget(app, printing)

    def _flush(self) -> None:
        if self._channel is None:
            self._outbox.clear()
        while self._outbox and self._channel is not None:
            try:
                if not fds.send_packet(self._channel, wire.encode(self._outbox[0])):
                    return  # tried again at the next turn; nothing here is urgent
            except OSError:
                return
            del self._outbox[0]

    # ---- the end of the others ----------------------------------------------------------------------
    def _guardian_gone(self) -> None:
        """Go on until the next guardian has a logger: who prints needs a reader, and nobody else would end what is left."""
        assert self._channel is not None
        self._epoll.unregister(self._channel.fileno())
        self._channel.close()
        self._channel = None
        if self._sweep is None:
            self._epoll.modify(self._lifeline, select.EPOLLIN)
            self._leave_at = time.monotonic() + ORPHANED

    def _look_whether_relieved(self) -> None:
        """Learn, before a pipe is read, that there is another logger: a disk, or a stop, may have outlasted its patience."""
        self._on_channel()
        if self._channel is None and self._sweep is None and ready(self._lifeline, select.POLLIN):
            self._on_lifeline()

    def _on_lifeline(self) -> None:
        try:
            while os.read(self._lifeline, 64):
                pass
        except BlockingIOError:  # a word, and not its end: the next guardian's logger has everything
            self._daemon = 0
            self._leave_at = time.monotonic()
            return
        self._epoll.unregister(self._lifeline)
        self._leave_at = self._quiet_at = None
        self._sweep = Sweep(time.monotonic())


def _wake(name: str, pid: int) -> bool:
    """Have one that is stopped go on, as the other one has died: nobody else would, or would ever start another."""
    if not process.is_stopped(pid):
        return False
    say(f"the {name} (pid {pid}) is stopped, and nobody is there to replace it: it is to go on (SIGCONT)")
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGCONT)
    return True

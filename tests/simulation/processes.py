"""All processes but daemon, guardian and logger: what each says, and what it does next. They speak the real messages."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pyworker.protocol import dispatcher as d
from pyworker.protocol import template as t
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.names import ENV_BIRTH
from pyworker.protocol.scoreboard import SIZE, F, row_slice
from pyworker.protocol.wire import decode, encode
from pyworker.unix.fds import close_all, read_whole
from pyworker.unix.process import UNKNOWN, ExitStatus
from tests.simulation import kernel

if TYPE_CHECKING:
    from tests.simulation.world import World


class Move(NamedTuple):
    """Something that may happen next."""

    weight: float
    what: str
    do: Callable[[], object]
    of: Process | None = None


class Process:
    """One that lives until `dies`, and then is a zombie until it is reaped."""

    def __init__(self, world: World, parent: str | int, app: str = "", generation: int = 0) -> None:
        self.world, self.rng = world, world.rng
        world.last_pid += 1
        self.pid, self.parent, self.app, self.generation = world.last_pid, parent, app, generation
        self.is_alive, self.is_reaped, self.is_told, self.status = True, False, False, UNKNOWN
        self.pidfd, self.end_of_life = os.pipe()
        self.fds: list[int] = []
        self.channel: socket.socket | None = None
        self.pending: list[int] = []  # signals
        self.stage = "born"
        self.code = world.apps.code.get(app, "good")
        world.processes[self.pid] = self
        world.kernel.knows(self)
        world.say(f"{self} is born")

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {self.pid} ({self.app} {self.generation})"

    # ---- its life ----------------------------------------------------------------------------------------
    def moves(self) -> Iterator[Move]:
        """What it may do next; the weights are of the scheduler's choice."""
        if self.pending:
            yield self.move(3, "takes a signal", self.takes_signal)
        if signal.SIGKILL not in self.pending:
            yield from self.own_moves()
            if self.world.chance("dies"):
                yield self.move(2, "is killed", lambda: self.dies(by=self.rng.choice([9, 9, 11])))

    def own_moves(self) -> Iterator[Move]:
        raise NotImplementedError

    def move(self, weight: float, what: str, do: Callable[[], object]) -> Move:
        return Move(weight, f"{self} {what}", do, self)

    def becomes(self, stage: str) -> None:
        self.stage = stage

    def dies(self, code: int | None = None, by: int | None = None) -> None:
        if not self.is_alive:
            return
        self.world.say(f"{self} ends, " + (f"exit code {code}" if by is None else f"signal {by}"))
        self.is_alive, self.status, self.channel = False, ExitStatus(code, by), None
        close_all(self.fds)
        self.fds = []
        os.write(self.end_of_life, b"x")
        for other in self.world.processes.values():
            if other.parent == self.pid:
                other.parent = "guardian"

    def signalled(self, number: int) -> None:
        if self.is_alive and number:
            self.world.say(f"signal {number} to {self}")
            self.pending.append(int(number))

    def takes_signal(self) -> None:
        number = self.pending.pop(0)
        if number == signal.SIGKILL or signal.SIGKILL in self.pending:
            self.dies(by=signal.SIGKILL)
        elif number == signal.SIGTERM:
            self.told_to_end()
        elif number not in (w.STACKS_SIGNAL, w.DUMP_SIGNAL, w.TASKS_SIGNAL):
            self.dies(by=number)

    def told_to_end(self) -> None:
        if self.world.is_kind or self.rng.random() < 0.9:  # else it does not heed it
            self.dies(code=0) if self.rng.random() < 0.5 else self.dies(by=signal.SIGTERM)

    # ---- its channel -------------------------------------------------------------------------------------
    def takes(self, fd: int) -> int:
        """Have a copy of what it is given."""
        self.fds.append(kernel.dup(fd))
        return self.fds[-1]

    def takes_channel(self, fd: int) -> None:
        self.channel = socket.socket(fileno=self.takes(fd))
        self.channel.setblocking(False)
        self.world.graveyard.append(self.channel)  # the number is closed with all others, not by its __del__

    def says(self, message: object, *, signed: bool = True) -> None:
        if self.channel is not None:
            data = encode(message)
            try:
                kernel.send(self.channel, kernel.signed(self.pid, data) if signed else data)
            except OSError:
                pass

    def hears(self, union: Any) -> tuple[Any, list[int]]:
        """Return the next message and its fds; ("end", []) when the other end is closed."""
        assert self.channel is not None
        packet = kernel.receive(self.channel, 1 << 20, 253)
        assert packet is not None
        return (decode(union, packet.data), packet.fds) if packet.data else ("end", [])

    def has_mail(self) -> bool:
        return self.channel is not None and kernel.is_readable(self.channel)


class Template(Process):
    writes_to = 0  # the pipe of its stdout

    def own_moves(self) -> Iterator[Move]:
        if self.stage == "born":
            if self.code != "hangs":
                yield self.move(2, "imports", self.imports)
        elif self.stage == "failed":
            yield self.move(2, "exits", lambda: self.dies(code=self.rng.choice([1, 1, 78])))
        elif self.has_mail():
            yield self.move(4, "reads", self.reads)

    def imports(self) -> None:
        if self.code == "broken":
            self.becomes("failed")
            self.says(t.LoadFailed("import", "ModuleNotFoundError: No module named 'x'", ""))
        else:
            self.becomes("ready")
            self.says(t.Loaded(0, "3.11.7", "asgi", "uvicorn", "asyncio", True, "", 0.1, "1"))

    def reads(self) -> None:
        message, fds = self.hears(t.ToTemplate)
        match message:
            case "end" | t.Retire():
                self.dies(code=0)
            case t.Ping(number):
                self.says(t.Pong(number))
            case t.Fork() if self.world.chance("no_fork"):
                close_all(fds)
                self.says(t.ForkFailed(message.serial, errno.EAGAIN))
            case t.Fork():
                self.forks(message, fds)

    def forks(self, order: t.Fork, fds: list[int]) -> None:
        identity = WorkerId(self.app, self.generation, order.slot, order.serial)
        child = Worker(self.world, "guardian", identity, order.row, order.held, self.fds[0])
        child.code = self.code
        child.takes_channel(fds[0])
        child.fds += fds[1:]
        os.close(fds[0])
        first = self.rng.random() < 0.5
        if first:
            self.says(t.Forked(order.serial, child.pid))
        if not first or self.rng.random() < 0.5:
            child.says_hello()
        if not first:
            self.says(t.Forked(order.serial, child.pid))


class _AnyWorker(Process):
    """A worker of any kind."""

    is_direct = False

    def __init__(self, world: World, parent: str | int, of: WorkerId, row: int, held: bool, board: int) -> None:
        super().__init__(world, parent, of.app, of.generation)
        self.id, self.held, self._row, self._board = of, held, row, self.takes(board)

    def __str__(self) -> str:
        return f"{super().__str__()} slot {self.id.slot}, serial {self.id.serial}" if hasattr(self, "id") else super().__str__()

    def moves(self) -> Iterator[Move]:
        if self.parent not in ("guardian", "daemon"):
            yield self.move(1, "is the guardian's", self._is_orphaned)
        yield from super().moves()

    def _is_orphaned(self) -> None:
        self.parent = "guardian"

    def says_hello(self) -> None:
        self.becomes("hello")
        self.says(w.Hello("1"))

    def may_crash(self) -> Iterator[Move]:
        if self.code == "crashy" or self.world.chance("dies"):
            yield self.move(0.3, "crashes", lambda: self.dies(code=self.rng.choice([1, 1, 0, 3])))

    def accepts(self) -> None:
        self.becomes("serving")
        self.says(w.Accepting())

    def told_to_leave(self) -> None:
        if self.stage in ("born", "hello", "asking"):
            self.dies(code=0)
        elif self.stage != "left":
            self.becomes("leaving")

    def told_to_end(self) -> None:
        if self.stage in ("serving", "held", "going"):
            self.becomes("leaving")
        elif self.stage != "leaving":
            self.dies(by=signal.SIGTERM)
        elif self.world.is_kind or self.rng.random() < 0.5:
            self.dies(code=0)

    def leaving_moves(self) -> Iterator[Move]:
        if self.stage == "leaving":
            yield self.move(2, "accepts no more", self._leaves)
        elif self.stage == "left" and (self.world.is_kind or self.rng.random() < 0.7):
            yield self.move(1, "has drained", self._has_drained)

    def _leaves(self) -> None:
        self.becomes("left")
        with mmap.mmap(self._board, SIZE) as memory, memoryview(memory).cast("Q") as cells, cells[row_slice(self._row)] as own:
            if own[F.SERIAL] == self.id.serial:
                own[F.LEFT_AT] = 1

    def _has_drained(self) -> None:
        if self.rng.random() < 0.8:
            self.says(w.Drained(1, 0))
        self.dies(code=0)

    def hears_end(self) -> None:
        """Nobody is there any more who could tell it anything."""
        self.channel = None
        self.becomes("leaving")


class Worker(_AnyWorker):
    """Of an asgi app: forked."""

    def own_moves(self) -> Iterator[Move]:
        if self.has_mail():
            yield self.move(3, "reads", self.reads)
        if self.stage == "born":
            yield self.move(2, "says hello", self.says_hello)
        elif self.stage == "hello" and self.code != "never":
            yield self.move(2, "is ready", self.is_ready)
        elif self.stage == "going":
            yield self.move(2, "accepts", self.accepts)
        elif self.stage == "serving":
            yield from self.may_crash()
            if self.world.chance("recycles"):
                yield self.move(1, "asks to be recycled", lambda: self.says(w.Recycle("max_requests")))
        yield from self.leaving_moves()

    def is_ready(self) -> None:
        if self.code == "fails" and self.rng.random() < 0.5:
            self.says(w.Failed("lifespan", "RuntimeError: no database", ""))
            self.dies(code=1)
        else:
            self.becomes("held" if self.held else "serving")
            self.says(w.Ready(serving=not self.held))

    def reads(self) -> None:
        message, fds = self.hears(w.ToWorker)
        close_all(fds)
        match message:
            case "end":
                self.hears_end()
            case w.Go() if self.stage == "held":
                self.becomes("going")
            case w.Drain():
                self.told_to_leave()


class Script(_AnyWorker):
    """One that binds for itself, and is given the app's listener."""

    address = ""

    def own_moves(self) -> Iterator[Move]:
        if self.has_mail():
            yield self.move(3, "reads", self.reads)
        if self.stage == "born":
            yield self.move(2, "says hello", self.says_hello)
        elif self.stage == "hello" and self.code in ("broken", "fails"):
            yield self.move(2, "fails", self.fails)
        elif self.stage == "hello" and self.code != "never":
            yield self.move(2, "binds", self.binds)
        elif self.stage == "bound":
            yield self.move(2, "accepts", self.accepts)
        elif self.stage == "serving":
            yield from self.may_crash()
        yield from self.leaving_moves()

    def fails(self) -> None:
        self.says(w.Failed("import", "ModuleNotFoundError: No module named 'x'", ""))
        self.dies(code=1)

    def binds(self) -> None:
        self.becomes("asking")
        self.says(w.Bind("unix", self.address, 0))

    def reads(self) -> None:
        message, fds = self.hears(w.ToWorker)
        close_all(fds)
        match message:
            case "end":
                self.hears_end()
            case w.Bound(errno=0) if self.stage == "asking":
                self.becomes("bound")
            case w.Bound() if self.stage == "asking":
                self.dies(code=1)
            case w.Drain():
                self.told_to_leave()


class Command(_AnyWorker):
    """Any program: it has a channel until its exec, none if it was started directly."""

    is_job = False

    def own_moves(self) -> Iterator[Move]:
        if self.stage == "born":
            yield self.move(2, "begins", self.begins)
        elif self.stage == "held" and self.has_mail():
            yield self.move(2, "reads", self.reads)
        elif self.stage == "serving" and self.is_job:
            yield self.move(0.3, "is done", lambda: self.dies(code=0 if self.world.is_kind else self.rng.choice([1, 0, 0])))
        elif self.stage == "serving":
            yield from self.may_crash()

    def begins(self) -> None:
        if self.has_mail() and isinstance(self.hears(w.ToWorker)[0], str | w.Drain):
            self.dies(code=0)
            return
        self.says(w.Hello("1"))
        if self.code in ("broken", "fails"):
            self.says(w.Failed("other", "cannot run sleep: gone", ""))
            self.dies(code=78)
            return
        self.says(w.Ready(serving=not self.held))
        if self.held:
            self.becomes("held")
        else:
            self.execs()

    def execs(self) -> None:
        self.becomes("serving")
        if self.channel is not None:
            self.fds.remove(self.channel.fileno())
            os.close(self.channel.fileno())
            self.channel = None

    def reads(self) -> None:
        message, fds = self.hears(w.ToWorker)
        close_all(fds)
        if isinstance(message, str | w.Drain):
            self.dies(code=0)
        elif isinstance(message, w.Go):
            self.says(w.Accepting())
            self.execs()

    told_to_end = Process.told_to_end


class Launcher(Process):
    def own_moves(self) -> Iterator[Move]:
        if self.has_mail():
            yield self.move(4, "reads", self.reads)

    def reads(self) -> None:
        message, fds = self.hears(t.Launch)
        if message == "end":
            self.dies(code=0)
        elif self.world.chance("no_fork"):
            self.says(t.Launched(message.number, errno.EAGAIN), signed=False)
        else:
            self.launches(message, dict(zip(message.places, fds, strict=True)))
        close_all(fds)

    def launches(self, order: t.Launch, at: dict[int, int]) -> None:
        spec: t.LaunchSpec = decode(t.LaunchSpec, read_whole(at[order.spec_fd]))
        with mmap.mmap(at[spec.board_fd], SIZE) as memory, memoryview(memory).cast("Q") as cells, cells[row_slice(spec.row)] as row:
            serial = int(spec.env.get(ENV_BIRTH, f".{row[F.SERIAL]}").rpartition(".")[2])  # a row may be another's by now
        identity = WorkerId(spec.app.name, spec.generation, spec.slot, serial)
        parent = "guardian" if self.rng.random() < 0.7 else self.pid  # it is that one's child for a moment
        child = (Script if spec.role == "script" else Command)(self.world, parent, identity, spec.row, spec.held, at[spec.board_fd])
        child.takes_channel(at[spec.channel_fd])
        for place in (1, 2):
            child.takes(at[place])
        if isinstance(child, Script):
            child.address = spec.app.bind[0].removeprefix("unix:")
        else:
            child.is_job = bool(spec.app.cron)
            child.is_direct = order.direct and not child.has_mail()  # else it was given up by now
            if child.is_direct:
                child.execs()
        tells_itself = order.direct and not child.is_direct
        self.says(t.Launched(order.number, 0, 0 if tells_itself else child.pid), signed=False)


class Dispatcher(Process):
    def own_moves(self) -> Iterator[Move]:
        if self.stage == "born":
            yield self.move(2, "is up", self.is_up)
        elif self.has_mail():
            yield self.move(3, "reads", self.reads)

    def is_up(self) -> None:
        self.becomes("up")
        self.says(d.Up("1"))

    def reads(self) -> None:
        message, fds = self.hears(d.ToDispatcher)
        close_all(fds)
        match message:
            case "end" | d.Leave():
                self.dies(code=0)
            case d.Ping(number):
                self.says(d.Pong(number))
            case d.Shut(serial):
                self.says(d.Empty(serial))


def born_by(world: World, argv: list[str], table: dict[int, int]) -> Process:
    """Return what the daemon has started by this command line."""
    if "--serve" in argv:
        launcher = Launcher(world, "daemon")
        launcher.takes_channel(table[3])
        return launcher
    if "pyworker.dispatcher" in argv:
        named: d.DispatcherSpec = decode(d.DispatcherSpec, read_whole(table[d.SPEC_FD]))
        dispatcher = Dispatcher(world, "daemon", named.app)
        dispatcher.takes_channel(table[d.CHANNEL_FD])
        return dispatcher
    spec: t.LaunchSpec = decode(t.LaunchSpec, read_whole(table[3]))
    template = Template(world, "daemon", spec.app.name, spec.generation)
    template.takes(table[spec.board_fd])  # first, for its workers
    template.takes_channel(table[spec.channel_fd])
    template.writes_to = os.fstat(table[1]).st_ino
    for fd in (table[1], table[2], *(table[place] for place in spec.listener_fds)):
        template.takes(fd)
    return template

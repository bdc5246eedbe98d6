"""A process that this program has started: its pipes, its channel, its end.

It is watched by its pidfd and reaped by nobody else. No signal of this process is touched, and no PDEATHSIG is set: it
would follow the thread that started the child, not the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import shutil
import signal as signals
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import IO, Any, ClassVar, Literal, Self, TypeAlias

from pyworker.cluster import handles
from pyworker.cluster.emitter import Bare, Emitter
from pyworker.cluster.ipc import ChannelClosedError, LoopChannel, Receiver, settling
from pyworker.cluster.pipes import PipeReader, PipeWriter
from pyworker.errors import is_raised_by_program
from pyworker.protocol import node
from pyworker.unix.fds import close_all
from pyworker.unix.process import UNKNOWN, ExitStatus, collect, kill_group, send_signal

Stdio: TypeAlias = "Literal['pipe', 'inherit', 'ignore'] | int | IO[Any] | socket.socket"
Signal: TypeAlias = "int | str | signals.Signals"

_OURS = (node.CHANNEL_FD, node.SERIALIZATION, node.UNIQUE_ID, node.PEER)


class SpawnError(OSError):
    """The command could not be started; `errno`, `filename` and the message say why."""


class ChildProcess(Emitter, Receiver):
    """A process that this program has started.

    Events and what a callback is given:

    spawn       ()                  it runs
    message     (message, handle)   it has sent this; handle is a socket, a file or None, and the callback's to close
    disconnect  ()                  the channel is closed
    error       (exception)         it could not be started, a signal or a message could not be sent
    exit        (code, signal)      it has ended; one of the two is None
    close       (code, signal)      it has ended and all its pipes are closed: they may outlive it in its own children
    """

    EVENTS: ClassVar[tuple[str, ...]] = ("spawn", "message", "disconnect", "error", "exit", "close")
    LAST: ClassVar[str] = "close"

    def __init__(self, args: Sequence[str], *, own_group: bool = False, keep_zombie: bool = False) -> None:
        Emitter.__init__(self)
        self._loop = asyncio.get_running_loop()
        self.args = list(args)
        self.pid: int | None = None
        self.stdin: PipeWriter | None = None
        self.stdout: PipeReader | None = None
        self.stderr: PipeReader | None = None
        self.exit_code: int | None = None
        self.signal_code: str | None = None
        self.killed = False  # a signal of ours has been sent
        self._channel: LoopChannel | None = None
        self._own_group = own_group
        self._keep_zombie = keep_zombie
        self._pidfd = -1
        self._open = 0  # pipes whose end we wait for
        self._error: Exception | None = None
        self._error_raised = False  # to somebody who waited
        self._exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._closed: asyncio.Future[ExitStatus] = self._loop.create_future()

    # ---- what a program asks -------------------------------------------------------------------------
    @property
    def connected(self) -> bool:
        """True while messages can be sent."""
        return self._channel is not None and self._channel.connected

    @property
    def is_running(self) -> bool:
        """True until its exit has been seen."""
        return self.pid is not None and not self._exited.done()

    def send(
        self,
        message: Any,
        handle: handles.Sendable = None,
        *,
        keep_open: bool = False,
        callback: Callable[[Exception | None], None] | None = None,
    ) -> bool:
        """Send a JSON value to a forked child; False when so much waits that `await drain()` is due.

        `handle` is a socket or an open file. It is closed here when the child has it, unless `keep_open`. When it could
        not be delivered, `callback` (or the event `error`) is given a HandleNotDeliveredError with the handle, open.
        """
        if self._channel is None:
            why = "only fork() makes one" if self._error is None else str(self._error)
            error = ChannelClosedError(f"this child has no channel: {why}")
            if callback is None:
                raise error
            callback(error)
            return False
        return self._channel.send(message, handle, keep_open=keep_open, callback=callback)

    async def deliver(self, message: Any, handle: handles.Sendable = None, *, keep_open: bool = False) -> None:
        """Send, and wait until it is in the child's channel; with a handle, until the child has it."""
        done: asyncio.Future[None] = self._loop.create_future()
        self.send(message, handle, keep_open=keep_open, callback=settling(done))
        await done

    async def drain(self) -> None:
        """Wait until little enough waits to be sent."""
        if self._channel is None:
            return
        done: asyncio.Future[None] = self._loop.create_future()
        self._channel.when_calm(lambda: None if done.done() else done.set_result(None))
        await done

    def disconnect(self) -> None:
        """Close the channel, once all that was sent has gone."""
        if self._channel is not None:
            self._channel.disconnect()

    def kill(self, signal: Signal = signals.SIGTERM) -> bool:
        """Send a signal (a number or a name like "SIGINT"); False when the process has ended already."""
        number = signal_number(signal)
        if self._pidfd < 0 or self._exited.done():
            return False
        sent = send_signal(self._pidfd, number)
        self.killed = self.killed or (sent and number != 0)
        return sent

    def kill_group(self, signal: Signal = signals.SIGTERM) -> bool:
        """Signal the child and all that it has started. Only for one with `detached=True`."""
        if not self._own_group:
            raise ValueError("only a child started with detached=True has a group of its own")
        if self.pid is None or self._pidfd < 0 or (self._exited.done() and not self._keep_zombie):
            return False
        kill_group(self.pid, signal_number(signal))
        self.killed = True
        return True

    async def wait(self) -> ExitStatus:
        """Wait for its end; raises SpawnError when it could not be started."""
        return await self._outcome_of(self._exited)

    async def wait_closed(self) -> ExitStatus:
        """Wait for its end and for the end of its pipes."""
        return await self._outcome_of(self._closed)

    async def _outcome_of(self, end: asyncio.Future[ExitStatus]) -> ExitStatus:
        status = await asyncio.shield(end)
        if self._error is not None:
            self._error_raised = True
            raise self._error
        return status

    def messages(self) -> AsyncIterator[Any]:
        """The messages from this call on, up to the end. One that came with a handle is a tuple (message, handle)."""
        return Bare(self.events("message"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave nothing behind: a child that still runs is killed."""
        if self._pidfd >= 0 and not self._exited.done():
            self.kill(signals.SIGKILL)
            await asyncio.shield(self._exited)
        self._close_pipes()
        if self._channel is not None:
            self._channel.disconnect()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.args[0] if self.args else ''} pid={self.pid}>"

    # ---- starting ------------------------------------------------------------------------------------
    def _start(
        self,
        standard: tuple[Stdio, Stdio, Stdio],
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
        user: str | int | None = None,
        group: str | int | None = None,
        *,
        channel: bool = False,
        python: bool = False,
        unique_id: str | None = None,
        pass_fds: Sequence[int] = (),
        new_session: bool = False,
    ) -> None:
        environment = {k: v for k, v in (os.environ if env is None else env).items() if k not in _OURS}
        ours: list[int] = []
        theirs: list[int] = []
        sock: socket.socket | None = None
        inherited = [*pass_fds]
        try:
            if channel:
                sock, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                theirs.append(end.detach())
                inherited.append(theirs[-1])
                environment[node.CHANNEL_FD] = str(theirs[-1])
                environment[node.SERIALIZATION] = "json"
                if python:
                    environment[node.PEER] = "1"
                if unique_id is not None:
                    environment[node.UNIQUE_ID] = unique_id
            files = [_stdio(wanted, ours, theirs, writable=place == 0) for place, wanted in enumerate(standard)]
            self.pid = _run(
                self.args,
                environment,
                cwd,
                user,
                group,
                **dict(zip(("stdin", "stdout", "stderr"), files, strict=True)),
                pass_fds=inherited,
                process_group=0 if self._own_group and not new_session else None,
                start_new_session=new_session,
            )
            self._watch(self.pid)
            self._adopt_pipes(ours, standard)
            if sock is not None:
                self._channel = LoopChannel(sock, self, files=python)
            while theirs:
                os.close(theirs.pop())
            self._loop.call_soon(self.emit, "spawn")
        except BaseException as error:  # of a signal's handler, too: nobody else would end what runs
            self._undo(sock, ours + theirs)
            if not isinstance(error, OSError) or is_raised_by_program(error):
                raise
            if not isinstance(error, SpawnError):  # no descriptor is free, say
                why = f"cannot run {self.args[0]}: {error.strerror}"
                error = SpawnError(error.errno or 0, why, error.filename)
            self._not_started(error)

    def _watch(self, pid: int) -> None:
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.pid = None  # it may be another's by now
            why = "it has ended, and how nobody can say: this program ignores SIGCHLD, or collects all children"
            raise SpawnError(errno.ESRCH, f"cannot watch {self.args[0]}: {why}", self.args[0]) from None
        self._loop.add_reader(self._pidfd, self._on_exit)

    def _undo(self, sock: socket.socket | None, fds: list[int]) -> None:
        """End a child that nobody could wait for (no descriptor is free, or the loop has no room), and close all that is its."""
        if self.pid is not None:
            # the program collects all children, or this one has become another user's (setuid)
            with contextlib.suppress(ProcessLookupError, ChildProcessError, PermissionError):
                os.kill(self.pid, signals.SIGKILL)
                os.waitpid(self.pid, 0)
            self.pid = None
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            self._close_pidfd()
        self._close_pipes()
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()
            self._channel = None
        close_all(fds)

    def _adopt_pipes(self, ours: list[int], wanted: Sequence[Stdio]) -> None:
        if wanted[0] == "pipe":
            self.stdin = PipeWriter(ours.pop(0))
        if wanted[1] == "pipe":
            self.stdout = PipeReader(ours.pop(0), self._pipe_ended)
        if wanted[2] == "pipe":
            self.stderr = PipeReader(ours.pop(0), self._pipe_ended)
        readers = [reader for reader in (self.stdout, self.stderr) if reader is not None]
        self._open = len(readers)
        for reader in readers:
            reader.resume()

    def _not_started(self, error: Exception) -> None:
        self._error = error

        def tell() -> None:
            asked = self._asked()  # a future that is done has forgotten who waits for it
            self._exited.set_result(UNKNOWN)
            self._closed.set_result(UNKNOWN)
            told = self.emit("error", error)
            self.emit("close", None, None)
            if not told and not asked:
                self._loop.call_soon(show)  # a task that waits (of gather, of wait_for) may only just begin

        def show() -> None:
            if not self._error_raised:
                self._loop.call_exception_handler({"message": str(error), "exception": error})

        self._loop.call_soon(tell)

    def _asked(self) -> bool:
        """True when somebody waits for the outcome and is told by exception."""
        return bool(self._streams) or any(getattr(f, "_callbacks", None) for f in (self._exited, self._closed))

    # ---- what happens --------------------------------------------------------------------------------
    def _on_exit(self) -> None:
        status = collect(self._pidfd, reap=not self._keep_zombie)
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        if not self._keep_zombie:
            self._close_pidfd()
        self.exit_code = status.code
        self.signal_code = None if status.signal is None else _signal_name(status.signal)
        if self.stdin is not None:
            self.stdin.abort()
        for reader in filter(None, (self.stdout, self.stderr)):
            reader.child_exited()
        if self._channel is not None:
            # what it said last is read before its exit is told: the channel's end comes after all of it
            for _ in range(1000):
                if self._channel.closed or not self._channel.read_now():
                    break
        self._exited.set_result(status)
        self.emit("exit", self.exit_code, self.signal_code)
        self._check_closed()

    def _pipe_ended(self) -> None:
        self._open -= 1
        self._check_closed()

    def _check_closed(self) -> None:
        if self._exited.done() and self._open == 0 and not self._closed.done():
            if self._pidfd >= 0:
                collect(self._pidfd)
                self._close_pidfd()
            self._closed.set_result(self._exited.result())
            self.emit("close", self.exit_code, self.signal_code)

    def _close_pipes(self) -> None:
        if self.stdin is not None:
            self.stdin.abort()
        for reader in filter(None, (self.stdout, self.stderr)):
            reader.close()

    def _close_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0:
            os.close(self._pidfd)

    # ---- Receiver: what the channel tells ------------------------------------------------------------
    def on_message(self, value: Any, handle: handles.Received | None) -> None:
        if not self.emit("message", value, handle) and not self._streams:
            handles.close(handle)

    def on_closed(self) -> None:
        self.emit("disconnect")

    def on_error(self, error: Exception) -> None:
        """A message that could not be sent, or was none."""
        told = self.emit("error", error) or self._streams
        if not told and not isinstance(error, ChannelClosedError):
            self._loop.call_exception_handler({"message": f"{self!r}: {error}", "exception": error})


def _run(
    args: list[str],
    environment: dict[str, str],
    cwd: str | os.PathLike[str] | None,
    user: str | int | None,
    group: str | int | None,
    **options: Any,
) -> int:
    """Start a command and return its pid, which is the caller's to reap. SpawnError says in words why it cannot be."""
    command = args[0]
    found = command if "/" in command else shutil.which(command, path=environment.get("PATH", os.defpath))
    if found is None:
        raise SpawnError(errno.ENOENT, f"cannot run {command}: no such command on PATH", command)
    try:
        gid, groups = _groups_of(command, user, group)
        process = subprocess.Popen(
            args, executable=found, cwd=cwd, env=environment, user=user, group=gid, extra_groups=groups, **options
        )
    except SpawnError:
        raise
    except OSError as error:
        if is_raised_by_program(error):
            raise
        what = f"the folder {os.fspath(cwd)}" if cwd is not None and error.filename == cwd else command
        if error.errno == errno.EPERM and (user is not None or group is not None):
            what = "only root may run it as another user or group"
        raise SpawnError(error.errno or 0, f"cannot run {command}: {what}: {error.strerror}", error.filename) from None
    except KeyError as error:  # of the modules pwd and grp
        name, kind = (user, "user") if "getpw" in str(error) else (group, "group")
        raise SpawnError(errno.EINVAL, f"cannot run {command}: there is no {kind} {name!r}", command) from None
    process.returncode = 0  # for Popen it is over: it would reap it otherwise
    return process.pid


def _groups_of(
    command: str, user: str | int | None, group: str | int | None
) -> tuple[str | int | None, list[int] | None]:
    """Return the group and all groups of a child that root runs as another: that one's, never root's own."""
    if os.geteuid() != 0 or (user is None and group is None):
        return group, None
    gid = grp.getgrnam(group).gr_gid if isinstance(group, str) else group
    if user is None:
        return gid, None if gid is None else [gid]
    try:
        entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        if isinstance(user, str):
            raise
        if gid is None:
            why = f"cannot run {command}: user {user} has no entry in the user database: say its group, too"
            raise SpawnError(errno.EINVAL, why, command) from None
        return gid, [gid]
    gid = entry.pw_gid if gid is None else gid
    return gid, os.getgrouplist(entry.pw_name, gid)


def signal_number(signal: Signal) -> int:
    """Return a signal's number; ValueError for a name that there is not."""
    if isinstance(signal, str):
        name = signal.upper() if signal.upper().startswith("SIG") else f"SIG{signal.upper()}"
        try:
            return signals.Signals[name]
        except KeyError:
            raise ValueError(f"there is no signal {signal!r}") from None
    if signal and signal not in signals.valid_signals():
        raise ValueError(f"there is no signal {signal!r}")
    return int(signal)


def _stdio(wanted: Stdio, ours: list[int], theirs: list[int], *, writable: bool) -> int | IO[Any] | None:
    if wanted == "inherit":
        return None
    if wanted == "ignore":
        return subprocess.DEVNULL
    if wanted == "pipe":
        read_end, write_end = os.pipe()
        ours.append(write_end if writable else read_end)
        theirs.append(read_end if writable else write_end)
        return theirs[-1]
    if wanted == subprocess.PIPE or not (isinstance(wanted, int) or hasattr(wanted, "fileno")):
        raise ValueError(f"stdin, stdout and stderr are 'pipe', 'inherit', 'ignore' or a file, not {wanted!r}")
    return wanted if isinstance(wanted, int) else wanted.fileno()


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIG{number}"

"""Node's child_process for asyncio: start commands and scripts, talk to them, pass them sockets and files.

`spawn` and `fork` return at once; what happens is told by events, like in Node. `exec` and `exec_file` return something
that can be awaited for the result. A child is watched by its pidfd and reaped by nobody else. No signal of this process
is touched, and no PDEATHSIG is set: it would follow the thread that started the child, not the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal as signals
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from typing import IO, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pyworker.cluster import handles
from pyworker.cluster.emitter import Emitter, Event, bare
from pyworker.cluster.ipc import ChannelClosedError, HandleNotDeliveredError, LoopChannel, Receiver
from pyworker.cluster.pipes import PipeReader, PipeWriter
from pyworker.protocol import node
from pyworker.unix.process import UNKNOWN, ExitStatus, collect, kill_group, send_signal

__all__ = [
    "ChannelClosedError",
    "ChildProcess",
    "Event",
    "ExecError",
    "ExecTimeoutError",
    "Execution",
    "ExitStatus",
    "HandleNotDeliveredError",
    "OutputTooLongError",
    "Result",
    "SpawnError",
    "exec",
    "exec_file",
    "fork",
    "spawn",
]

Stdio: TypeAlias = "Literal['pipe', 'inherit', 'ignore'] | int | IO[Any] | socket.socket"
Signal: TypeAlias = "int | str | signals.Signals"

MAX_BUFFER = 1024 * 1024  # bytes of stdout, and of stderr, that exec keeps
KILL_GRACE = 2.0  # seconds between the kill signal of exec and SIGKILL
PEER = "PYWORKER_CHANNEL"  # tells a Python child that its parent is pyworker: files can be sent
_JS = (".js", ".mjs", ".cjs")
_OURS = (node.CHANNEL_FD, node.SERIALIZATION, node.UNIQUE_ID, PEER)


class SpawnError(OSError):
    """The command could not be started; `errno`, `filename` and the message say why."""


class ExecError(Exception):
    """A command of exec did not end with exit code 0."""

    def __init__(self, message: str, result: Result, command: str, *, killed: bool) -> None:
        super().__init__(message)
        self.code = result.code
        self.signal = result.signal
        self.stdout = result.stdout
        self.stderr = result.stderr
        self.command = command
        self.killed = killed  # by us: time-out, too much output


class ExecTimeoutError(ExecError, TimeoutError):
    """The command was killed at its time-out."""


class OutputTooLongError(ExecError):
    """The command wrote more than `max_buffer` and was killed. stdout and stderr hold the first part."""


class Result(NamedTuple):
    """How a command of exec ended. `stdout` and `stderr` are text, or bytes with `encoding=None`."""

    code: int | None
    signal: str | None
    stdout: Any
    stderr: Any


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
            error = ChannelClosedError("this child has no channel: only fork() makes one")
            if callback is None:
                raise error
            callback(error)
            return False
        return self._channel.send(message, handle, keep_open=keep_open, callback=callback)

    async def deliver(self, message: Any, handle: handles.Sendable = None, *, keep_open: bool = False) -> None:
        """Send, and wait until it is in the child's channel; with a handle, until the child has it."""
        done: asyncio.Future[None] = self._loop.create_future()

        def told(error: Exception | None) -> None:
            if not done.done():
                done.set_exception(error) if error is not None else done.set_result(None)

        self.send(message, handle, keep_open=keep_open, callback=told)
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
        status = await asyncio.shield(self._exited)
        if self._error is not None:
            raise self._error
        return status

    async def wait_closed(self) -> ExitStatus:
        """Wait for its end and for the end of its pipes."""
        status = await asyncio.shield(self._closed)
        if self._error is not None:
            raise self._error
        return status

    def messages(self) -> AsyncIterator[Any]:
        """The messages from this call on, up to the end. One that came with a handle is a tuple (message, handle)."""
        return bare(self.events("message"))

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
        *,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
        channel: bool = False,
        python: bool = False,
        unique_id: str | None = None,
        pass_fds: Sequence[int] = (),
        user: str | int | None = None,
        group: str | int | None = None,
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
                    environment[PEER] = "1"
                if unique_id is not None:
                    environment[node.UNIQUE_ID] = unique_id
            standard = [
                _stdio(wanted, ours, theirs, writable=place == 0)
                for place, wanted in enumerate((stdin, stdout, stderr))
            ]
            command = self.args[0]
            where = environment.get("PATH", os.defpath)
            found = command if "/" in command else shutil.which(command, path=where)
            if found is None:
                raise SpawnError(errno.ENOENT, f"cannot run {command}: no such command on PATH", command)
            try:
                process = subprocess.Popen(
                    self.args,
                    executable=found,
                    stdin=standard[0],
                    stdout=standard[1],
                    stderr=standard[2],
                    cwd=cwd,
                    env=environment,
                    pass_fds=inherited,
                    process_group=0 if self._own_group and not new_session else None,
                    start_new_session=new_session,
                    user=user,
                    group=group,
                )
            except OSError as error:
                what = f"the folder {os.fspath(cwd)}" if cwd is not None and error.filename == cwd else command
                raise SpawnError(
                    error.errno or 0, f"cannot run {command}: {what}: {error.strerror}", error.filename
                ) from None
            self.pid = process.pid
            process.returncode = 0  # it is ours to reap, and Popen's to forget
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:
                # no descriptor is free: nobody could ever say how it ended
                os.kill(self.pid, signals.SIGKILL)
                os.waitpid(self.pid, 0)
                self.pid = None
                raise
        except Exception as error:
            for fd in ours:
                os.close(fd)
            if sock is not None:
                sock.close()
            if not isinstance(error, OSError):
                raise
            self._not_started(error)
            return
        finally:
            for fd in theirs:
                os.close(fd)
        self._adopt_pipes(ours, (stdin, stdout, stderr))
        if sock is not None:
            self._channel = LoopChannel(sock, self, files=python)
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._loop.call_soon(self.emit, "spawn")

    def _adopt_pipes(self, ours: list[int], wanted: Sequence[Stdio]) -> None:
        fds = iter(ours)
        if wanted[0] == "pipe":
            self.stdin = PipeWriter(next(fds))
        readers: list[PipeReader | None] = []
        for stream in wanted[1:]:
            if stream == "pipe":
                self._open += 1
                readers.append(PipeReader(next(fds), self._pipe_ended))
            else:
                readers.append(None)
        self.stdout, self.stderr = readers

    def _not_started(self, error: Exception) -> None:
        self._error = error

        def tell() -> None:
            self._exited.set_result(UNKNOWN)
            self._closed.set_result(UNKNOWN)
            told = self.emit("error", error)
            self.emit("close", None, None)
            if not told and not self._asked():
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
        for reader in (self.stdout, self.stderr):
            if reader is not None:
                reader.child_exited()
        if self._channel is not None:
            # what it said last is read before its exit is told: the channel's end comes after all of it
            self._drain_channel(self._channel)
        self._exited.set_result(status)
        self.emit("exit", self.exit_code, self.signal_code)
        self._check_closed()

    def _drain_channel(self, channel: LoopChannel) -> None:
        for _ in range(1000):
            if channel.closed or not channel.read_now():
                return

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
        for reader in (self.stdout, self.stderr):
            if reader is not None:
                reader.close()

    def _close_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0:
            os.close(self._pidfd)

    # ---- Receiver: what the channel tells ------------------------------------------------------------
    def on_message(self, value: Any, handle: handles.Received | None) -> None:
        """A message of the child."""
        if not self.emit("message", value, handle) and not self._streams:
            handles.close(handle)

    def on_closed(self) -> None:
        """The child has closed its end, or is gone."""
        self.emit("disconnect")

    def on_error(self, error: Exception) -> None:
        """A message that could not be sent, or was none."""
        if not self.emit("error", error) and not isinstance(error, ChannelClosedError):
            self._loop.call_exception_handler({"message": f"{self!r}: {error}", "exception": error})


class Execution(ChildProcess):
    """A command whose result is awaited: `result = await child_process.exec("...")`.

    It runs in a process group of its own, which is killed as a whole at the time-out, at too much output, and when the
    awaiting task is cancelled. Between the two signals, and before the pipes are given up, it has `kill_grace` seconds.
    """

    def __init__(self, args: Sequence[str], command: str, options: _ExecOptions) -> None:
        super().__init__(args, own_group=True, keep_zombie=True)
        self._command = command
        self._options = options
        self._task: asyncio.Task[Result] | None = None

    def _asked(self) -> bool:
        return True  # the result is for whoever awaits it

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # may be awaited late, or never

    def __await__(self) -> Generator[Any, None, Result]:
        return self._outcome().__await__()

    async def _outcome(self) -> Result:
        assert self._task is not None
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task])
            raise

    async def _run(self) -> Result:
        if self._error is not None:
            await asyncio.sleep(0)
            raise self._error
        options = self._options
        collected = [_Collected(reader, options.max_buffer) for reader in (self.stdout, self.stderr) if reader]
        tasks = [self._loop.create_task(each.run()) for each in collected]
        if self.stdin is not None:
            self.stdin.write(options.input)
            self.stdin.close()
        why = ""
        try:
            async with asyncio.timeout(options.timeout):
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                if not any(task.exception() for task in done):
                    await self.wait_closed()
                else:
                    why = "output"
        except TimeoutError:
            why = "timeout"
        finally:
            if not self._closed.done():
                await self._end(gently=bool(why))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._result(collected, why)

    async def _end(self, *, gently: bool) -> None:
        """Kill the group and wait until it is gone and its pipes closed; a cancelled exec is not given time."""
        if gently:
            self.kill_group(self._options.kill_signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.kill_grace):
                    for reader in (self.stdout, self.stderr):
                        if reader is not None:
                            reader.child_exited()
                    await asyncio.shield(self._closed)
        if not self._closed.done():
            self.kill_group(signals.SIGKILL)
            await asyncio.shield(self._exited)
            self._close_pipes()  # one that has left the group may still hold the other ends
            self._check_closed()

    def _result(self, collected: list[_Collected], why: str) -> Result:
        options = self._options
        texts: list[Any] = [bytes(each.data) for each in collected]
        if options.encoding is not None:
            texts = [text.decode(options.encoding, "replace") for text in texts]
        result = Result(self.exit_code, self.signal_code, texts[0], texts[1])
        if why == "timeout":
            message = f"{self._command}: killed, it took more than {options.timeout:g} s"
            raise ExecTimeoutError(message, result, self._command, killed=True)
        if why == "output":
            message = f"{self._command}: killed, it wrote more than max_buffer = {options.max_buffer} bytes"
            raise OutputTooLongError(message, result, self._command, killed=True)
        if result.code != 0:
            how = f"exit code {result.code}" if result.code is not None else f"killed by {result.signal}"
            last = [line for line in _text(result.stderr).splitlines() if line.strip()][-1:]
            message = ": ".join([self._command, how, *last])
            raise ExecError(message, result, self._command, killed=self.killed)
        return result


class _ExecOptions(NamedTuple):
    timeout: float | None
    kill_signal: Signal
    kill_grace: float
    max_buffer: int
    encoding: str | None
    input: bytes


class _TooLongError(Exception):
    pass


class _Collected:
    def __init__(self, reader: PipeReader, limit: int) -> None:
        self.data = bytearray()
        self._reader = reader
        self._limit = limit

    async def run(self) -> None:
        while chunk := await self._reader.read(64 * 1024):
            room = self._limit - len(self.data)
            self.data += chunk[:room]
            if len(chunk) > room:
                raise _TooLongError


# ---- the four calls ----------------------------------------------------------------------------------
def spawn(
    command: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    stdin: Stdio = "pipe",
    stdout: Stdio = "pipe",
    stderr: Stdio = "pipe",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    shell: bool | str = False,
    detached: bool = False,
    pass_fds: Sequence[int] = (),
    user: str | int | None = None,
    group: str | int | None = None,
) -> ChildProcess:
    """Start a command. What happens to it is told by events; one that cannot be started is the event `error`.

    `env` replaces the environment. `detached` gives it a session of its own, so that it outlives a Ctrl-C here.
    `shell=True` lets /bin/sh read the command line.
    """
    line = [os.fspath(command), *args]
    if shell:
        line = [shell if isinstance(shell, str) else "/bin/sh", "-c", " ".join(line)]
    child = ChildProcess(line, own_group=detached)
    child._start(
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        user=user,
        group=group,
        new_session=detached,
    )
    return child


def exec(  # noqa: A001  Node's name; nobody looks for Python's own in here
    command: str,
    *,
    timeout: float | None = None,
    max_buffer: int = MAX_BUFFER,
    kill_signal: Signal = signals.SIGTERM,
    kill_grace: float = KILL_GRACE,
    encoding: str | None = "utf-8",
    input: bytes | str = b"",
    shell: str = "/bin/sh",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
) -> Execution:
    """Run a shell command line; `await` gives its Result, or raises ExecError when it does not end with 0.

    Never put into it what a user has typed: that is `exec_file`, which has no shell.
    """
    options = _ExecOptions(timeout, kill_signal, kill_grace, max_buffer, encoding, _bytes(input))
    return _execute([shell, "-c", command], command, options, cwd, env, user, group)


def exec_file(
    path: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    timeout: float | None = None,
    max_buffer: int = MAX_BUFFER,
    kill_signal: Signal = signals.SIGTERM,
    kill_grace: float = KILL_GRACE,
    encoding: str | None = "utf-8",
    input: bytes | str = b"",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    user: str | int | None = None,
    group: str | int | None = None,
) -> Execution:
    """Run an executable file with arguments, without a shell; else like `exec`."""
    options = _ExecOptions(timeout, kill_signal, kill_grace, max_buffer, encoding, _bytes(input))
    line = [os.fspath(path), *args]
    return _execute(line, " ".join(line), options, cwd, env, user, group)


def fork(
    script: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    exec_path: str | None = None,
    exec_args: Sequence[str] = (),
    stdin: Stdio = "inherit",
    stdout: Stdio = "inherit",
    stderr: Stdio = "inherit",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    detached: bool = False,
    pass_fds: Sequence[int] = (),
    user: str | int | None = None,
    group: str | int | None = None,
) -> ChildProcess:
    """Start a Python script (or a Node one: *.js) with a channel for messages and handles.

    The script is run by this interpreter, or by `node`; `exec_path` names another. Nothing of this process is copied.
    """
    path = os.fspath(script)
    is_node = path.endswith(_JS) if exec_path is None else is_node_path(exec_path)
    interpreter = exec_path or ("node" if is_node else sys.executable)
    child = ChildProcess([interpreter, *exec_args, path, *args], own_group=detached)
    child._start(
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        channel=True,
        python=not is_node,
        pass_fds=pass_fds,
        user=user,
        group=group,
        new_session=detached,
    )
    return child


def is_node_path(path: str) -> bool:
    """True for the path of a Node (or Bun) interpreter."""
    return os.path.basename(path).startswith(("node", "bun"))


def signal_number(signal: Signal) -> int:
    """Return a signal's number; ValueError for a name that there is not."""
    if isinstance(signal, str):
        name = signal.upper() if signal.upper().startswith("SIG") else f"SIG{signal.upper()}"
        try:
            return signals.Signals[name]
        except KeyError:
            raise ValueError(f"there is no signal {signal!r}") from None
    return int(signal)


def _execute(
    line: list[str],
    command: str,
    options: _ExecOptions,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    user: str | int | None,
    group: str | int | None,
) -> Execution:
    child = Execution(line, command, options)
    child._start(
        stdin="pipe" if options.input else "ignore",
        stdout="pipe",
        stderr="pipe",
        cwd=cwd,
        env=env,
        user=user,
        group=group,
    )
    child._begin()
    return child


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
    if isinstance(wanted, str):
        raise ValueError(f"stdin, stdout and stderr are 'pipe', 'inherit', 'ignore' or a file, not {wanted!r}")
    return wanted if isinstance(wanted, int) else wanted.fileno()


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _text(data: Any) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)

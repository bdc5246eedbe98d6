"""A command whose result is awaited: it runs in a group of its own, within limits, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import math
import os
import signal as signals
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from pyworker.cluster.parent import ChildProcess, Signal, signal_number
from pyworker.cluster.pipes import PipeReader

MAX_BUFFER = 1024 * 1024  # bytes of stdout, and of stderr, that exec keeps
KILL_GRACE = 2.0  # seconds between the kill signal of exec and SIGKILL


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


class Options(NamedTuple):
    timeout: float | None
    kill_signal: Signal
    kill_grace: float
    max_buffer: int
    encoding: str | None
    input: bytes


class Execution(ChildProcess):
    """A command whose result is awaited: `result = await child_process.exec("...")`.

    It runs in a process group of its own, which is killed as a whole at the time-out, at too much output, and when the
    awaiting task is cancelled. Between the two signals, and before the pipes are given up, it has `kill_grace` seconds.
    """

    def __init__(self, args: Sequence[str], command: str, options: Options) -> None:
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
        try:
            if gently:
                self.kill_group(self._options.kill_signal)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._options.kill_grace):
                        for reader in (self.stdout, self.stderr):
                            if reader is not None:
                                reader.child_exited()
                        await asyncio.shield(self._closed)
        finally:  # it may be cancelled here, too
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


def execute(
    line: list[str],
    command: str,
    options: Options,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    user: str | int | None,
    group: str | int | None,
) -> Execution:
    """Start it. What makes no sense is refused before it runs."""
    for name in ("timeout", "kill_grace"):
        if (seconds := getattr(options, name)) is not None:
            check_seconds(name, seconds)
    if type(options.max_buffer) is not int or options.max_buffer < 0:
        raise ValueError(f"max_buffer is a whole number of bytes, not {options.max_buffer!r}")
    signal_number(options.kill_signal)
    if options.encoding is not None:
        codecs.lookup(options.encoding)
    child = Execution(line, command, options)
    child._start(("pipe" if options.input else "ignore", "pipe", "pipe"), cwd, env, user, group)
    child._begin()
    return child


def _text(data: Any) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)


def check_seconds(name: str, value: Any) -> None:
    """ValueError: this is no span of time."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is a number of seconds, not {value!r}")

"""Node's child_process for asyncio: start commands and scripts, talk to them, pass them sockets and files.

`spawn` and `fork` return at once; what happens is told by events, like in Node. `exec` and `exec_file` return something
that can be awaited for the result.
"""

from __future__ import annotations

import os
import signal as signals
import sys
from collections.abc import Mapping, Sequence

from pyworker.cluster.emitter import Event
from pyworker.cluster.execution import (
    KILL_GRACE,
    MAX_BUFFER,
    ExecError,
    ExecTimeoutError,
    Execution,
    Options,
    OutputTooLongError,
    Result,
    execute,
)
from pyworker.cluster.ipc import ChannelClosedError, HandleNotDeliveredError
from pyworker.cluster.parent import ChildProcess, Signal, SpawnError, Stdio
from pyworker.unix.process import ExitStatus

__all__ = [
    "ChannelClosedError", "ChildProcess", "Event", "ExecError", "ExecTimeoutError", "Execution", "ExitStatus",
    "HandleNotDeliveredError", "OutputTooLongError", "Result", "SpawnError", "exec", "exec_file", "fork", "spawn",
]  # fmt: skip

_JS = (".js", ".mjs", ".cjs")


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
    Run by root as another `user`, it has that user's groups and none of root's.
    `shell=True` lets /bin/sh read the command line.
    """
    line = [os.fspath(command), *as_list(args)]
    if shell:
        line = [shell if isinstance(shell, str) else "/bin/sh", "-c", " ".join(line)]
    child = ChildProcess(line, own_group=detached)
    child._start((stdin, stdout, stderr), cwd, env, user, group, pass_fds=pass_fds, new_session=detached)
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
    options = Options(timeout, kill_signal, kill_grace, max_buffer, encoding, _bytes(input))
    return execute([shell, "-c", command], command, options, cwd, env, user, group)


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
    options = Options(timeout, kill_signal, kill_grace, max_buffer, encoding, _bytes(input))
    line = [os.fspath(path), *as_list(args)]
    return execute(line, " ".join(line), options, cwd, env, user, group)


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
    interpreter, is_node = interpreter_of(path, exec_path)
    child = ChildProcess([interpreter, *as_list(exec_args), path, *as_list(args)], own_group=detached)
    standard = stdin, stdout, stderr
    child._start(
        standard, cwd, env, user, group, channel=True, python=not is_node, pass_fds=pass_fds, new_session=detached
    )
    return child


def interpreter_of(script: str | None, exec_path: str | None) -> tuple[str, bool]:
    """Return what runs a script (`exec_path`, when that is given), and whether it is Node or Bun."""
    if exec_path:
        return exec_path, os.path.basename(exec_path).startswith(("node", "bun"))
    is_node = script is not None and script.endswith(_JS)
    return "node" if is_node else sys.executable, is_node


def as_list(args: Sequence[str]) -> list[str]:
    """Return arguments as a list. One text would be taken apart into its letters."""
    if isinstance(args, str):
        raise TypeError(f"arguments are a list of texts, not one text: [{args!r}]")
    return [*args]


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data

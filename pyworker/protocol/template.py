"""Daemon <-> template, and what launcher and template are given at birth.

The daemon starts `python -I -m pyworker.template SPEC_FD` (the *launcher*) with a LaunchSpec in a memfd; for scripts and
commands one with `--serve`, which is asked by Launch for as many as are due. The launcher drops rights and then execs the
app's interpreter: for a template once, for a script or command after two forks and after Go; commands that need none of
this are started directly (template/direct.py), and a template that has no rights to give up does without the launcher
(template/enter.py). The channels are SOCK_SEQPACKET.
"""

from __future__ import annotations

from typing import Literal, Union

from pyworker.config.schema import AppConfig
from pyworker.record import record


@record
class Engine:
    """Where pyworker's own HTTP libraries are, for interpreters of the same ABI (a closed list is served)."""

    path: str  # a site-packages folder
    abi: str  # sysconfig SOABI of the interpreter they were built for, e.g. "cpython-311-x86_64-linux-gnu"


def boot_command(spec: LaunchSpec, spec_fd: int, room: str) -> list[str]:
    """Return the command line of an app's interpreter as a template or script: it runs the runtime zip (template/boot.py)."""
    return [spec.python, f"/proc/self/fd/{spec.runtime_fd}", spec.role, str(spec_fd), str(spec.channel_fd), room]


@record
class LaunchSpec:
    """Everything a launcher needs. fd fields are numbers inherited at exact those places, -1 = absent."""

    role: Literal["template", "script", "command"]
    app: AppConfig  # resolved: absolute cwd, script, bind paths
    generation: int
    slot: int  # 0 for a template
    serial: int  # read by nobody
    held: bool  # wait for Go before serving (a command: before its exec)
    python: str
    env: dict[str, str]  # complete, without PYWORKER_* and LISTEN_FDS, which the launcher and the worker add
    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    engine: Engine
    channel_fd: int  # template: its channel; script and command: the ctl channel
    runtime_fd: int  # memfd with the zip of pyworker's own runtime
    board_fd: int  # scoreboard memfd
    row: int  # of the scoreboard; templates: 0, each Fork names one
    listener_fds: tuple[int, ...]  # in the order of app.bind
    cert_fd: int = -1  # memfds with the PEM files, read by the daemon
    key_fd: int = -1
    ca_fd: int = -1
    ipc_fd: int = -1  # script and command: the worker's message channel
    notify_socket: str = ""  # for commands
    stacks_fd: int = -1  # memfd for the stacks of `pyworker stack`
    workers: int = 1


MAX_LAUNCH_FDS = 240  # the kernel takes 253 with one message


# ---- daemon <-> launcher ---------------------------------------------------------------------------
@record
class Launch:
    """Start what the spec says in a process of its own; the fds that come with it are put at `places`, in this order."""

    number: int
    spec_fd: int  # one of the places
    places: tuple[int, ...]
    direct: bool = False  # a command that needs nothing done between fork and exec


@record
class Launched:
    """The process was made; or it was not, and `errno` says why."""

    number: int
    errno: int = 0
    pid: int = 0  # 0: it says Hello


# ---- daemon -> template ----------------------------------------------------------------------------
@record
class Fork:
    """Fork worker `serial` for `slot`; fds: ctl, out, err, then its ipc channel and the slot's inbox if it has those.

    Answered by Forked or ForkFailed.
    """

    slot: int
    serial: int
    row: int
    held: bool
    workers: int
    inbox: bool = False
    ipc: bool = False


@record
class Retire:
    """Exit now: no worker will be asked for any more."""


@record
class Ping:
    """A sign of life is asked for; answered by Pong with the same number."""

    number: int


# ---- template -> daemon ----------------------------------------------------------------------------
@record
class Loaded:
    """The app is imported. With preload=False each worker imports it for itself, and `why` says the reason."""

    pid: int  # read by nobody
    python: str  # version: "3.11.7"
    interface: Literal["asgi", "wsgi"]
    engine: str  # e.g. "uvicorn 0.54.0, httptools 0.9.0, uvloop 0.23.0 (from the app's environment)"
    loop: Literal["asyncio", "uvloop"]
    preload: bool
    why: str
    took: float  # seconds
    version: str = ""  # of the runtime that it and its workers are: read by nobody
    code: str = ""  # changes when a file that it has imported changes, or it imports others
    newest: str = ""  # the file of them that was changed last, but for what the import itself has written
    newest_at: int = 0  # in ns since the epoch
    looked_at: int = 0  # when `code` was
    # from when to when its TLS certificate is valid, in seconds since the epoch; 0: it has none, or that cannot be told
    cert_from: float = 0.0
    cert_until: float = 0.0


@record
class LoadFailed:
    """The app could not be imported; the template exits after this (78 where a retry is useless)."""

    kind: Literal["import", "target", "engine", "config", "rights", "exec", "other"]
    message: str
    traceback: str
    hint: str = ""


@record
class Forked:
    serial: int
    pid: int


@record
class ForkFailed:
    serial: int
    errno: int


@record
class Parked:
    """A worker was forked ahead of need. One that has been stopped (SIGSTOP) would not notice its template's end."""

    pid: int


@record
class Pong:
    number: int


ToTemplate = Union[Fork, Retire, Ping]
FromTemplate = Union[Loaded, LoadFailed, Forked, ForkFailed, Parked, Pong]

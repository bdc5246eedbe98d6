"""Launcher, for a command of any language: hand it its listeners by systemd's convention and become it.

No process of ours stays beside it: its end of the channel closes at the exec, which is no sign of death.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from pyworker.errors import Exit
from pyworker.protocol import node, wire
from pyworker.protocol import worker as w
from pyworker.protocol.template import LaunchSpec
from pyworker.unix.process import dup_above
from pyworker.worker.birth import default_signals, name_slot, worker_env
from pyworker.worker.channel import Channel, Closed
from pyworker.worker.say import say

FIRST = 3  # SD_LISTEN_FDS_START


def run(spec: LaunchSpec, channel: Channel) -> int:
    """Become the command (after Go when held); returns an exit code when there is nothing to become."""
    env = environment(spec)
    argv = list(spec.app.command)
    try:
        path = find(argv[0], env)
    except OSError as error:
        return _fail(channel, argv[0], error)
    if spec.held:
        channel.send(w.Ready())
        if not _wait_for_go(channel):
            return Exit.OK
        channel.send(w.Accepting())
    else:
        if spec.app.ready != "notify":
            channel.send(w.Ready(serving=True))
    wanted = [*spec.listener_fds, *([spec.ipc_fd] if spec.ipc_fd >= 0 else [])]  # in the order that `environment` says
    above = FIRST + len(wanted)
    try:
        moved = [dup_above(fd, above) for fd in wanted]
        # the channel may sit on a number that a listener needs; above them all it still closes at the exec
        channel = _moved(channel, above)
    except OSError as error:
        return _fail(channel, argv[0], error)
    for place, fd in enumerate(moved):
        os.dup2(fd, FIRST + place, inheritable=True)
    default_signals()  # Python ignores SIGPIPE: `yes | head` would not end
    try:
        os.execve(path, argv, env)
    except OSError as error:
        return _fail(channel, argv[0], error, is_there=os.access(path, os.X_OK))


def environment(spec: LaunchSpec) -> dict[str, str]:
    """Return the command's environment. LISTEN_PID is this process: it keeps its pid over the exec."""
    own = {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", node.CHANNEL_FD, node.SERIALIZATION}
    env = {name: value for name, value in spec.env.items() if name not in own}
    env.update(worker_env(spec.app.name, spec.generation, spec.slot, spec.workers))
    name_slot(env, spec.app.name, spec.slot)
    if spec.listener_fds:
        count = len(spec.listener_fds)
        names = ":".join(f"listen{i}" for i in range(count))
        env.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
    if spec.ipc_fd >= 0:
        env.update({node.CHANNEL_FD: str(FIRST + len(spec.listener_fds)), node.SERIALIZATION: "json"})
    if spec.notify_socket:
        env["NOTIFY_SOCKET"] = spec.notify_socket
    return env


def find(name: str, env: dict[str, str]) -> str:
    """Return the file to execute, by the PATH of the command's own environment. OSError says why there is none."""
    if "/" in name:
        candidates = [name]
    else:
        candidates = [os.path.join(folder or ".", name) for folder in os.get_exec_path(env)]
    reason = errno.ENOENT
    for path in candidates:
        try:
            is_file = stat.S_ISREG(os.stat(path).st_mode)
        except OSError as error:
            # a folder of PATH that may not be looked into holds no command, as far as anybody can know
            reason = errno.EACCES if error.errno == errno.EACCES and "/" in name else reason
            continue
        if is_file and os.access(path, os.X_OK):
            return path
        reason = errno.EACCES
    raise OSError(reason, os.strerror(reason))


def _wait_for_go(channel: Channel) -> bool:
    while True:
        found = channel.wait()
        if isinstance(found, Closed):
            return False
        match found.message:
            case w.Go():
                return True
            case w.Drain():
                return False
            case w.Kick() | w.Check() | w.Bound():
                if found.fd >= 0:
                    os.close(found.fd)


def is_given_up(channel: Channel) -> bool:
    """Whether the daemon did not wait for this worker's Hello (a machine that stands still): nobody would ever stop it.

    What else there is stays in the channel, for the one that it is for.
    """
    try:
        first = channel.sock.recv(w.MAX_WORKER_MESSAGE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        given_up = not first or isinstance(wire.decode(w.ToWorker, first, limit=w.MAX_WORKER_MESSAGE), w.Drain)
    except (BlockingIOError, wire.WireError):
        return False
    except OSError:
        return True
    if given_up:
        channel.receive()  # what is left unread at our end takes our Hello with it
    return given_up


def _moved(channel: Channel, above: int) -> Channel:
    fd = dup_above(channel.fileno(), above)
    channel.close()
    return Channel(socket.socket(fileno=fd))


def _fail(channel: Channel, name: str, error: OSError, *, is_there: bool = False) -> int:
    match error.errno:
        case errno.ENOENT if is_there:
            hint = "The file is there; the interpreter that its first line names is not (was its environment moved?)."
        case errno.ENOENT if "/" not in name:
            hint = "It is not on the PATH of the app; give its full path, or set PATH in `env`."
        case errno.EACCES if is_there:
            hint = "The user of the app may run the file, and not the interpreter that its first line names."
        case errno.EACCES:
            hint = "Make it executable for the user that the app runs as."
        case errno.EMFILE:
            hint = "Raise `limits.nofile`."
        case errno.ENOEXEC:
            hint = "Its first line must name an interpreter, like #!/bin/sh."
        case _:
            hint = "Check `command`."
    message = f"cannot run {name}: {error.strerror}"
    channel.send(w.Failed("other", message, "", hint))
    say(message)
    return Exit.BAD_CONFIG

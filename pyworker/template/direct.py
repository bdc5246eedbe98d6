"""Launcher: start a command straight from its LaunchSpec, by posix_spawn: no copy of Python between fork and exec.

For commands that need nothing that only the process itself could do: no other user, no LISTEN_PID, no waiting for Go.
It has said nothing to the daemon when it runs; the launcher tells its pid.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
from collections.abc import Iterator

from pyworker.protocol.names import ENV_SOFT_NOFILE
from pyworker.protocol.template import LaunchSpec
from pyworker.protocol.wire import WireError
from pyworker.template import command
from pyworker.template.spec import read_spec
from pyworker.unix.process import spawn
from pyworker.unix.ready import ready
from pyworker.unix.user import soft_nofile


class NotDirect(Exception):
    """It must have a child of its own, which finds out why, or can do more; nothing was started."""


def start(table: dict[int, int], spec_fd: int) -> int:
    """Start the command whose fds are in the table, by their places; return its pid. OSError: there was no room for it."""
    try:
        spec = read_spec(table[spec_fd])
    except WireError:
        raise NotDirect from None
    if ready(table[spec.channel_fd], select.POLLIN):  # the daemon has something to say: mostly that it was given up
        raise NotDirect
    places = {place: table[place] for place in (0, 1, 2)}
    if spec.ipc_fd >= 0:
        places[command.FIRST] = table[spec.ipc_fd]
    try:
        env = command.environment(spec)
        with _set_up(spec):
            path = command.find(spec.app.command[0], env)
            return spawn(list(spec.app.command), env, places, path=path)
    except (OSError, ValueError):
        raise NotDirect from None


@contextlib.contextmanager
def _set_up(spec: LaunchSpec) -> Iterator[None]:
    """Have for a moment what the command is to inherit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    umask = os.umask(spec.app.file_umask)
    try:
        os.chdir(spec.app.cwd)
        if os.environ.get(ENV_SOFT_NOFILE, "").isdecimal():
            soft_nofile(int(os.environ[ENV_SOFT_NOFILE]))  # as it was before the guardian raised its own
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        os.umask(umask)

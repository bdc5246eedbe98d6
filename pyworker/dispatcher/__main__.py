"""`python -I -m pyworker.dispatcher`: started by the daemon, never by hand."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import socket

from pyworker import __version__
from pyworker.dispatcher.main import Dispatcher
from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import SIZE
from pyworker.protocol.wire import decode
from pyworker.unix.fds import raise_nofile, read_whole
from pyworker.unix.leave import leave
from pyworker.unix.process import PR_SET_DUMPABLE, prctl, set_name
from pyworker.unix.title import set_title
from pyworker.unix.user import drop_rights

_WANTED_FILES = 1 << 20


def main() -> int:
    """Run until the daemon says Leave."""
    for fd in (d.CHANNEL_FD, d.BOARD_FD, d.SPEC_FD):
        os.set_inheritable(fd, False)
    spec: d.DispatcherSpec = decode(d.DispatcherSpec, read_whole(d.SPEC_FD))
    os.close(d.SPEC_FD)
    _raise_limit()
    set_name(f"{spec.app} dispatch")
    set_title(f"pyworker dispatcher {spec.app}")
    drop_rights(spec.uid, spec.gid, spec.groups)
    prctl(PR_SET_DUMPABLE, 0)
    board = memoryview(mmap.mmap(d.BOARD_FD, SIZE)).cast("Q")
    os.close(d.BOARD_FD)
    channel = socket.socket(fileno=d.CHANNEL_FD)
    channel.setblocking(False)
    dispatcher = Dispatcher(channel, board)
    dispatcher.say(d.Up(__version__))
    dispatcher.loop.run()
    return 0


def _raise_limit() -> None:
    """As many open files as may be had: each connection that is relayed takes two."""
    _, hard = raise_nofile()
    if hard != resource.RLIM_INFINITY and hard < _WANTED_FILES and os.geteuid() == 0:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (_WANTED_FILES, _WANTED_FILES))


if __name__ == "__main__":
    leave(main())

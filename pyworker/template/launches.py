"""Launcher: starts what the daemon asks for, one after the other, until the daemon has nothing more.

It looks into no LaunchSpec itself: each child of a fork reads its own, so nothing of one app is ever in the memory of
another's. Single-threaded; holds nothing but its channel between two launches.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import socket
from collections.abc import Callable

from pyworker.protocol import wire
from pyworker.protocol.template import MAX_LAUNCH_FDS, Launch, Launched, LaunchSpec
from pyworker.unix.fds import close_all, recv_packet, send_packet
from pyworker.unix.process import set_name

_EAGAIN = 11


def serve(channel: socket.socket, launch: Callable[[int], int]) -> int:
    """Fork twice for each Launch and run `launch(spec_fd)` in the grandchild, whose parent the guardian becomes.

    Returns 0 at the end of the channel; in a grandchild what `launch` returned.
    """
    set_name("pyworker launch")
    wire.prepare(LaunchSpec)  # two thirds of what a child had to do until its exec
    gc.disable()  # in the children, until their exec, it would only touch and so copy pages
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        packet = recv_packet(channel, wire.MAX_MESSAGE, MAX_LAUNCH_FDS)
        if packet is None:
            poll.poll()
            continue
        if not packet.data and not packet.fds:
            return 0
        asked: Launch = wire.decode(Launch, packet.data)
        error = 0 if len(packet.fds) == len(asked.places) and not packet.truncated else 24  # EMFILE
        if not error:
            try:
                middle = os.fork()
            except OSError as failure:
                error = failure.errno or _EAGAIN
            else:
                if middle == 0:
                    _second_fork()
                    channel.close()
                    put_in_place(dict(zip(asked.places, packet.fds, strict=True)))
                    return launch(asked.spec_fd)
                status = os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1])
                error = _EAGAIN if status < 0 else status
        close_all(packet.fds)
        try:
            while not send_packet(channel, wire.encode(Launched(asked.number, error))):
                select.select([], [channel], [])
        except OSError:
            return 0  # the daemon is gone: the next one has a launcher of its own


def _second_fork() -> None:
    """Go on as a child whose parent has left; that one's exit code is the errno of a fork that failed."""
    try:
        if os.fork():
            os._exit(0)
    except OSError as failure:
        os._exit(failure.errno or _EAGAIN)


def put_in_place(table: dict[int, int]) -> None:
    """Move fds to the numbers that they are expected at, and close every other one."""
    top = max([*table, *table.values(), 2]) + 1
    moved = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, top) for place, fd in table.items()}
    for place, fd in moved.items():
        os.dup2(fd, place, inheritable=place <= 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in table:
            close_all([int(name)])

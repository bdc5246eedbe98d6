"""Launcher: starts what the daemon asks for, one after the other, until the daemon has nothing more.

It looks into no LaunchSpec itself: each child of a fork reads its own, so nothing of one app is ever in the memory of
another's. What is started directly (all of it with the daemon's rights) has one reader for a batch, direct.py.
Single-threaded; holds nothing but its channel between two launches.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import signal
import socket
from collections.abc import Callable

from pyworker import failpoint
from pyworker.protocol import wire
from pyworker.protocol.template import MAX_LAUNCH_FDS, Launch, Launched, LaunchSpec
from pyworker.template import direct
from pyworker.unix.fds import Packet, close_all, keep_from_exec, recv_packet, recv_surely, send_surely
from pyworker.unix.process import PR_SET_PDEATHSIG, prctl, set_name
from pyworker.unix.ready import ready

LINGER = 0.01  # seconds that a batch waits for more of its kind; until it ends its children are not the guardian's
MOST = 64  # of a batch


def serve(channel: socket.socket, launch: Callable[[int], int]) -> int:
    """Start a process for each Launch, whose parent the guardian becomes: forked twice, `launch(spec_fd)` in the grandchild.

    Returns 0 at the end of the channel; in a grandchild what `launch` returned.
    """
    set_name("pyworker launch")
    keep_from_exec()  # the channel, too, came over an exec
    wire.prepare(LaunchSpec)  # two thirds of what a child had to do until its exec
    gc.disable()  # in the children, until their exec, it would only touch and so copy pages
    while True:
        packet = recv_surely(channel, wire.MAX_MESSAGE, MAX_LAUNCH_FDS)
        if not packet.data and not packet.fds:
            return 0
        asked: Launch = wire.decode(Launch, packet.data)
        error = 0 if len(packet.fds) == len(asked.places) and not packet.truncated else errno.EMFILE
        answered = False
        if not error:
            try:
                middle = os.fork()
            except OSError as failure:
                error = failure.errno or errno.EAGAIN
            else:
                if middle == 0:
                    if asked.direct:
                        return _batch(channel, launch, asked, packet)
                    _second_fork(channel, asked.number)
                    channel.close()
                    put_in_place(dict(zip(asked.places, packet.fds, strict=True)))
                    return launch(asked.spec_fd)
                status = os.waitstatus_to_exitcode(os.waitpid(middle, 0)[1])
                if asked.direct and status:
                    return 0  # nobody knows what it had done: the end of the channel says so
                error = errno.EAGAIN if status < 0 else status
                answered = not status
        told = answered or _answer(channel, Launched(asked.number, error))
        close_all(packet.fds)  # not before: the end of its channel would say that it has died
        if not told:
            return 0  # the daemon is gone: the next one has a launcher of its own


def _answer(channel: socket.socket, message: Launched) -> bool:
    return send_surely(channel, wire.encode(message))


def _second_fork(channel: socket.socket, number: int) -> None:
    """Go on as a child whose parent has told its pid and left; that one's exit code is the errno of a fork that failed."""
    try:
        if child := os.fork():
            _answer(channel, Launched(number, 0, child))
            os._exit(0)
    except OSError as failure:
        os._exit(failure.errno or errno.EAGAIN)


def put_in_place(table: dict[int, int]) -> None:
    """Move fds to the numbers that they are expected at, and close every other one."""
    top = max([*table, *table.values(), 2]) + 1
    moved = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, top) for place, fd in table.items()}
    for place, fd in moved.items():
        os.dup2(fd, place, inheritable=place <= 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in table:
            close_all([int(name)])


# ---- in the middle: one fork for many ----------------------------------------------------------------
def _batch(channel: socket.socket, launch: Callable[[int], int], asked: Launch, packet: Packet) -> int:
    """Start this one directly, and what else of its kind is waiting; then leave, and so give them to the guardian.

    Returns in a child only, what `launch` returned there.
    """
    launcher = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also stopped it must not outlive the launcher, which alone is watched
    if launcher != os.getppid():
        os._exit(1)
    left = MOST
    while True:
        table = dict(zip(asked.places, packet.fds, strict=True))
        answer = Launched(asked.number)
        try:
            answer = Launched(asked.number, 0, direct.start(table, asked.spec_fd))
        except direct.NotDirect:
            try:
                child = os.fork()
            except OSError as failure:
                answer = Launched(asked.number, failure.errno or errno.EAGAIN)
            else:
                if child == 0:
                    channel.close()
                    put_in_place(table)
                    return launch(asked.spec_fd)
        except OSError as failure:
            answer = Launched(asked.number, failure.errno or errno.EAGAIN)
        else:
            failpoint.hit("launch.started")
        told = _answer(channel, answer)
        close_all(packet.fds)  # as above
        left -= 1
        if not told or not left or not ready(channel.fileno(), select.POLLIN, LINGER):
            break
        found = _next_direct(channel)
        if found is None:
            break
        asked, packet = found
    failpoint.hit("launch.leave")
    os._exit(0)


def _next_direct(channel: socket.socket) -> tuple[Launch, Packet] | None:
    """Take the next request if it is for us; the launcher takes what is not, the end included."""
    try:
        data = channel.recv(wire.MAX_MESSAGE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return None
    if not data or not wire.decode(Launch, data).direct:
        return None
    packet = recv_packet(channel, wire.MAX_MESSAGE, MAX_LAUNCH_FDS)
    assert packet is not None
    asked: Launch = wire.decode(Launch, packet.data)
    if len(packet.fds) == len(asked.places) and not packet.truncated:
        return asked, packet
    close_all(packet.fds)
    _answer(channel, Launched(asked.number, errno.EMFILE))
    return None

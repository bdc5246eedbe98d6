"""The launcher that starts many: what cannot be started is told, once, and no more than what is known."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from pyworker.protocol import wire
from pyworker.protocol.template import Launch, Launched
from pyworker.unix.fds import recv_packet, send_packet, socketpair

# a fork that does not go well: of the launcher, or of the process between it and what is started
SERVE = """
import os, signal, socket, sys
from pyworker.template import launches
number, where, how = map(int, sys.argv[1:])
fork, launcher = os.fork, os.getpid()
def wanting():
    if (os.getpid() == launcher) == (where == 1):
        if how < 0:
            os.kill(os.getpid(), -how)
        raise OSError(how, os.strerror(how))
    return fork()
os.fork = wanting
with socket.socket(fileno=number) as channel:
    sys.exit(launches.serve(channel, lambda spec_fd: 0))
"""


@pytest.mark.parametrize(
    ("direct", "where", "how", "told"),
    [
        (False, 1, errno.ENOMEM, errno.ENOMEM),
        (False, 2, errno.ENOMEM, errno.ENOMEM),
        (False, 2, -signal.SIGKILL, errno.EAGAIN),
        (True, 1, errno.ENOMEM, errno.ENOMEM),
        # it may have started some: that its end is the launcher's says that nobody knows
        (True, 2, -signal.SIGKILL, None),
    ],
)
def test_a_process_that_cannot_be_made_is_told_with_the_reason(direct: bool, where: int, how: int, told: int | None) -> None:
    ours, theirs = socketpair()
    with ours, theirs, open(os.devnull) as null:
        ours.setblocking(True)
        for number in (1, 2):
            assert send_packet(ours, wire.encode(Launch(number, 0, (0,), direct=direct)), [null.fileno()])
        ours.shutdown(socket.SHUT_WR)
        command = [sys.executable, "-c", SERVE, str(theirs.fileno()), str(where), str(int(how))]
        assert subprocess.run(command, pass_fds=[theirs.fileno()], timeout=60, check=False).returncode == 0
        theirs.close()
        said = []
        while (packet := recv_packet(ours, wire.MAX_MESSAGE, 0)) is not None and packet.data:
            said.append(wire.decode(Launched, packet.data))
    assert said == ([Launched(1, told), Launched(2, told)] if told is not None else [])


STARTS = """
import socket, sys
from pyworker.template import launches
def fails(name):
    raise OSError(28, "No space left on device")
launches.direct.start = lambda table, spec_fd: 4711
launches.failpoint.hit = fails
with socket.socket(fileno=int(sys.argv[1])) as channel:
    sys.exit(launches.serve(channel, lambda spec_fd: 0))
"""


def test_what_fails_after_a_start_is_not_told_as_a_start_that_failed() -> None:
    """The end of the launcher says that nobody knows: the process is looked for then."""
    ours, theirs = socketpair()
    with ours, theirs, open(os.devnull) as null:
        ours.setblocking(True)
        assert send_packet(ours, wire.encode(Launch(1, 0, (0,), direct=True)), [null.fileno()])
        command = [sys.executable, "-c", STARTS, str(theirs.fileno())]
        done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, timeout=60, check=False)
        theirs.close()
        said = recv_packet(ours, wire.MAX_MESSAGE, 0)
    assert done.returncode == 0
    assert said is None or not said.data

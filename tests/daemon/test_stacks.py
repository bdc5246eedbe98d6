"""daemon/stacks.py: the dumps of a worker, one after the other. `pyworker stack` and its words are in system/test_stack.py."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.loop import Loop
from pyworker.daemon.stacks import Stacks
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.worker import DUMP_SIGNAL, STACKS_SIGNAL
from pyworker.unix import signals
from tests.support.wait import wait_until

WORKER = f"""
import os, signal, sys
memfd = int(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [{STACKS_SIGNAL}])
for number in ({STACKS_SIGNAL}, {DUMP_SIGNAL}):
    signal.signal(number, lambda number, frame: os.write(memfd, b"%d " % number))
print("up", flush=True)
sys.stdin.readline()
signal.pthread_sigmask(signal.SIG_UNBLOCK, [{STACKS_SIGNAL}])
sys.stdin.readline()
"""


def test_the_dump_for_the_log_is_written_before_the_other_is_asked_for() -> None:
    """faulthandler drops one that begins in a thread while another thread writes one: 1 of 100 was missing in the log."""
    loop = Loop(time.monotonic, pytest.fail)
    fd = os.memfd_create("pyworker-stacks")
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdout.readline()
        brain: Any = SimpleNamespace(
            loop=loop, store=SimpleNamespace(get=lambda name: fd),
            workers=SimpleNamespace(signal=lambda app, handle, number: os.kill(handle.pid, number)),
        )  # fmt: skip
        handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=worker.pid)
        told: list[str] = []
        app: Any = SimpleNamespace(name="api")
        Stacks(brain).take(app, handle, lambda text, *_: told.append(text), to_log=True)
        loop.turn(0)
        assert signals.is_waiting(worker.pid, STACKS_SIGNAL)
        assert (signals.is_waiting(worker.pid, DUMP_SIGNAL), os.fstat(fd).st_size) == (False, 0)
        worker.stdin.write(b"\n")
        worker.stdin.flush()
        wait_until(lambda: loop.turn(0) or told, what="both")
    loop.close()
    os.close(fd)
    assert told == [f"{STACKS_SIGNAL} {DUMP_SIGNAL} "]


def test_who_waits_for_a_dump_is_told_that_there_is_none_if_it_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one failure nobody was answered any more, and a worker that hung at its start was never killed."""
    monkeypatch.setattr(signals, "is_handled", lambda pid, number: True)
    fd = os.memfd_create("pyworker-stacks", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    brain: Any = SimpleNamespace(store=SimpleNamespace(get=lambda name: fd))
    app: Any = SimpleNamespace(name="api")
    handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=os.getpid())
    told: list[str] = []
    stacks = Stacks(brain)
    for _ in range(2):
        with pytest.raises(PermissionError):
            stacks.take(app, handle, lambda text, why, hint: told.append(why))
    assert told == ["it could not be asked"] * 2
    os.close(fd)


def test_an_app_that_is_deleted_while_a_worker_is_asked_leaves_nobody_waiting() -> None:
    """Its memfd is closed by then, and the number may be another file's; those who came later waited for ever."""
    loop = Loop(time.monotonic, pytest.fail)
    fds = {"stacks.api": os.memfd_create("pyworker-stacks")}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(fds["stacks.api"])],
        pass_fds=[fds["stacks.api"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as worker:  # fmt: skip
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdout.readline()
        brain: Any = SimpleNamespace(
            loop=loop, store=SimpleNamespace(get=fds.get),
            workers=SimpleNamespace(signal=lambda app, handle, number: os.kill(handle.pid, number)),
        )  # fmt: skip
        handle = WorkerHandle(WorkerId("api", 1, 1, 1), held=False, born_at=0.0, pid=worker.pid)
        told: list[str] = []
        app: Any = SimpleNamespace(name="api")
        stacks = Stacks(brain)
        stacks.take(app, handle, lambda _, why, __: told.append(why), to_log=True)
        stacks.take(app, handle, lambda _, why, __: told.append(why))
        handle.ended_at = loop.clock()
        other = os.memfd_create("another")
        os.write(other, b"of somebody else")
        os.dup2(other, fds["stacks.api"])
        reused = fds.pop("stacks.api")
        wait_until(lambda: loop.turn(0) or len(told) == 2, what="both")
        assert os.pread(other, 100, 0) == b"of somebody else"
        worker.stdin.write(b"\n\n")
        worker.stdin.flush()
    for fd in (other, reused):
        os.close(fd)
    loop.close()
    assert told == ["it ended just now", "it is not running now"]

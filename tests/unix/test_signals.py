"""/proc tells what a process does with a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from pyworker.unix import process, signals
from tests.support.wait import wait_until

SIGNAL = 60


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    yield process
    process.kill()
    process.wait()


def test_handled_is_what_has_a_handler() -> None:
    assert not signals.is_handled(os.getpid(), SIGNAL)
    signal.signal(SIGNAL, lambda *_: None)
    try:
        assert signals.is_handled(os.getpid(), SIGNAL)
    finally:
        signal.signal(SIGNAL, signal.SIG_DFL)


def test_a_thread_that_blocks_the_signal_is_named() -> None:
    before = signals.blocked_by(os.getpid(), SIGNAL)  # a thread of a library may block all it can
    assert threading.get_native_id() not in before
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
    try:
        assert signals.blocked_by(os.getpid(), SIGNAL) - before == {threading.get_native_id()}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])


def test_a_stopped_process_is_seen_with_what_waits_for_it(sleeper: subprocess.Popen[bytes]) -> None:
    pid = sleeper.pid
    assert not signals.is_waiting(pid, SIGNAL)
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: process.state(pid) == "T")
    sleeper.send_signal(SIGNAL)
    assert signals.is_waiting(pid, SIGNAL)


def test_a_process_that_is_gone_is_nothing(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert process.state(sleeper.pid) == ""
    assert not signals.is_handled(sleeper.pid, SIGNAL)
    assert not signals.blocked_by(sleeper.pid, SIGNAL)

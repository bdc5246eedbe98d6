"""guardian/signals.py: what it is sent over the exec of an upgrade."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import signal
from pyworker.guardian.signals import Signals

signals = Signals(foreground=False)
signals.catch()
handled = {number for number in signal.valid_signals() if callable(signal.getsignal(number))}
with signals.held():
    print(sorted(handled - signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""


@pytest.mark.parametrize("manager", ["", "/nowhere/notify"])
def test_each_signal_with_a_handler_waits_over_an_exec_which_would_end_the_guardian_by_it(manager: str) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": manager}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stdout == "[]\n"


def test_a_signal_that_comes_among_hundreds_of_ended_children_is_read() -> None:
    code = """
import os, signal
from pyworker.guardian.signals import Signals

signals = Signals(foreground=False)
signals.catch()
for _ in range(1000):
    os.kill(os.getpid(), signal.SIGCHLD)
os.kill(os.getpid(), signal.SIGTERM)
print(signal.SIGTERM in signals.read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"

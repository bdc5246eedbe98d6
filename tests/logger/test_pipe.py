"""logger/pipe.py: the process at the other end of a pipe."""

from __future__ import annotations

import os
import signal

import pytest

from pyworker.logger.pipe import Life
from pyworker.unix import process


def test_one_that_ends_and_is_reaped_this_moment_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {}, setsid=True)
    life = Life(os.pidfd_open(pid))
    os.waitpid(pid, 0)
    monkeypatch.setattr(process, "is_gone", lambda pidfd: False)  # it was not, when that was asked
    life.signal(signal.SIGKILL, group=True)
    os.close(life.fd)


def test_one_that_has_become_another_user_s_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As sudo does. Whoever else is left is to be signalled after it."""

    def refuse(*_: object) -> None:
        raise PermissionError

    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {}, setsid=True)
    life = Life(os.pidfd_open(pid))
    with monkeypatch.context() as patched:
        patched.setattr(signal, "pidfd_send_signal", refuse)
        patched.setattr(os, "killpg", refuse)
        life.signal(signal.SIGKILL, group=True)
    life.signal(signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(life.fd)

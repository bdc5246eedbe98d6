"""Rights that are given up for good. What an app sees of it is in tests/template/test_launcher.py."""

from __future__ import annotations

import ctypes
import os

import pytest

from pyworker.unix import user

SESSION, GET_ID = -3, 0


def session_keyring() -> int:
    number = user._KEYCTL.get(os.uname().machine, 0)
    found: int = user._libc.syscall(number, GET_ID, ctypes.c_long(SESSION), 0) if number else -1
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(session_keyring() < 0, reason="there are no keyrings here")
def test_the_keys_of_root_do_not_come_along() -> None:
    before = session_keyring()
    child = os.fork()
    if not child:
        status = 1
        try:
            user.drop_rights(65534, 65534, ())
            status = int(session_keyring() in (before, -1))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

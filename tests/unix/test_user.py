"""Rights that are given up for good. What an app sees of it is in tests/template/test_launcher.py."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

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


@pytest.mark.parametrize("failure", [errno.ENOSYS, errno.EPERM, errno.EDQUOT])
def test_where_no_keyring_is_to_be_had_the_rights_are_given_up_all_the_same(
    monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    def syscall(*_: object) -> int:
        ctypes.set_errno(failure)
        return -1

    monkeypatch.setattr(user._libc, "syscall", syscall)
    user._leave_keyring()


def test_a_python_of_32_bits_does_not_use_the_numbers_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def syscall(*arguments: object) -> int:
        raise AssertionError(arguments)

    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    monkeypatch.setattr(user._libc, "syscall", syscall)
    user._leave_keyring()

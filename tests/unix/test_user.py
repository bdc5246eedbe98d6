"""Rights that are given up for good. What an app sees of it is in tests/template/test_launcher.py."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    monkeypatch.setattr(user, "_of_machine", lambda numbers: 1)
    user._leave_keyring()


def test_who_would_keep_the_keyring_of_root_does_not_become_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def syscall(*_: object) -> int:
        ctypes.set_errno(errno.ENOMEM)
        return -1

    monkeypatch.setattr(user._libc, "syscall", syscall)
    monkeypatch.setattr(user, "_of_machine", lambda numbers: 1)
    with pytest.raises(user.CannotDrop, match="Cannot allocate memory"):
        user.drop_rights(os.geteuid() + 1, None, ())


def test_a_python_of_32_bits_does_not_use_the_numbers_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def syscall(*arguments: object) -> int:
        raise AssertionError(arguments)

    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    monkeypatch.setattr(user._libc, "syscall", syscall)
    user._leave_keyring()


@pytest.mark.parametrize(
    ("uid", "gid", "more", "refusal"),
    [
        (12345, None, [], "the user is .* after the change to 12345"),
        (None, 12345, [], "the group is .* after the change to 12345"),
        (None, 65534, [12345], "the groups are .* after the change to .*12345"),
        (65534, 65534, [], "root's rights could be taken back"),
    ],
)
def test_a_change_that_the_kernel_has_only_said_it_made_is_none(
    monkeypatch: pytest.MonkeyPatch, uid: int | None, gid: int | None, more: list[int], refusal: str
) -> None:
    for name in "setgroups", "setresgid", "setresuid":
        monkeypatch.setattr(os, name, lambda *_: None)
    monkeypatch.setattr(user, "_leave_keyring", lambda: None)
    monkeypatch.setattr(user, "prctl", lambda *_: None)
    monkeypatch.setattr(os, "getresuid", lambda: (65534,) * 3)
    monkeypatch.setattr(os, "getresgid", lambda: (65534,) * 3)
    with pytest.raises(user.CannotDrop, match=refusal):
        user.drop_rights(uid, gid, (*os.getgroups(), *more))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_files_are_looked_at_as_another_user_for_a_moment(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    before = os.getresuid(), os.getresgid(), os.getgroups()
    with user.acting_as(65534, 65534, (65534, 12)):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (65534, 65534, [12, 65534])
    with pytest.raises(PermissionError), user.acting_as(65534, None, ()):
        os.listdir(tmp_path)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
    os.listdir(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("known", [True, False])
def test_a_thread_that_waits_for_a_disk_is_not_waited_for_by_who_acts_as_another_user(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """libc has all threads take the user, and waits for the last; where the calls are not known it still does."""
    if not known:
        monkeypatch.setattr(user, "_OF_THREAD", {})
    elif user._of_machine(user._OF_THREAD) is None:
        pytest.skip("the system calls of this machine are not known")
    before = os.getresuid(), os.getresgid(), os.getgroups()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(os.geteuid).result() == 0
        with user.acting_as(65534, 65534, (12,)):
            assert (os.geteuid(), os.getegid(), os.getgroups()) == (65534, 65534, [12])
            assert other.submit(os.geteuid).result() == (0 if known else 65534)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_who_may_not_act_as_another_user_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    really_set = user._set_effective

    def set_effective(index: int, by_libc: Any, to: int) -> None:
        if by_libc is os.setresuid:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        really_set(index, by_libc, to)

    before = os.getresuid(), os.getresgid(), os.getgroups()
    monkeypatch.setattr(user, "_set_effective", set_effective)
    with pytest.raises(user.CannotDrop, match="cannot become user 65534, group 65534: "), user.acting_as(65534, 65534, (12,)):
        pytest.fail("it acts as somebody else")
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


def test_who_acts_as_itself_needs_no_right_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(user, "_set_groups")
    for uid in (None, os.geteuid()):
        with user.acting_as(uid, None, ()):
            pass


def test_files_are_never_looked_at_as_ourselves_where_the_kernel_refuses_another_user() -> None:
    more_than_there_may_be, other = (65534,) * 65537, os.geteuid() + 1
    with pytest.raises(user.CannotDrop, match=f"cannot become user {other}"), user.acting_as(other, 65534, more_than_there_may_be):
        pytest.fail("it acts as itself")


def test_the_soft_limit_of_open_files_is_at_most_the_hard_one() -> None:
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for count, given in ((soft - 1, soft - 1), (hard + 1, hard)):
            user.soft_nofile(count)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (given, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

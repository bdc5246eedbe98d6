"""Change to another user: for good, and prove that there is no way back, or for a moment. Decides nothing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pyworker.unix.process import PR_SET_NO_NEW_PRIVS, prctl

_KEYCTL = {
    "x86_64": 250,
    "aarch64": 219,
    "riscv64": 219,
    "ppc64le": 271,
    "s390x": 280,
}  # asm/unistd.h: libc has no keyctl
# setgroups, setresgid, setresuid of one thread: libc's have all threads do it, and wait for one that waits for a disk
_OF_THREAD = {
    "x86_64": (116, 119, 117),
    "aarch64": (159, 149, 147),
    "riscv64": (159, 149, 147),
    "ppc64le": (81, 169, 164),
    "s390x": (206, 210, 208),
}
_JOIN_SESSION_KEYRING = 1
# a kernel without keys, a container that lets nobody have any, or only so many to all that are there
_NO_KEYRING = (errno.ENOSYS, errno.EPERM, errno.EDQUOT)
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class CannotDrop(Exception):
    """A right could not be given up; what was to be done without it must not be done."""


def drop_rights(uid: int | None, gid: int | None, groups: tuple[int, ...]) -> None:
    """Become this user and group with exactly these groups; None leaves that one as it is.

    The order matters: setgroups and setgid need the rights that setuid gives away. Afterwards nothing that this
    process executes can regain any (no_new_privs). Raises CannotDrop; the caller then must exit.
    """
    if uid is None and gid is None:
        return
    try:
        if uid not in (None, os.geteuid()):
            _leave_keyring()
        os.setgroups(groups)
        if gid is not None:
            os.setresgid(gid, gid, gid)
        if uid is not None:
            os.setresuid(uid, uid, uid)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise CannotDrop(_cannot_become(uid, gid, error)) from None
    if gid is not None and os.getresgid() != (gid, gid, gid):
        raise CannotDrop(f"the group is {os.getresgid()} after the change to {gid}")
    if sorted(os.getgroups()) != sorted(groups):
        raise CannotDrop(f"the groups are {os.getgroups()} after the change to {list(groups)}")
    if uid is not None:
        if os.getresuid() != (uid, uid, uid):
            raise CannotDrop(f"the user is {os.getresuid()} after the change to {uid}")
        if uid != 0:
            _check_no_way_back()


def _leave_keyring() -> None:
    """Take a new session keyring: in the one that we came with lie keys which whoever has it may read, as any user."""
    number = _of_machine(_KEYCTL)
    if number is not None and _libc.syscall(number, _JOIN_SESSION_KEYRING, None) < 0:
        failure = ctypes.get_errno()
        if failure not in _NO_KEYRING:
            raise OSError(failure, os.strerror(failure))


def _check_no_way_back() -> None:
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    raise CannotDrop("root's rights could be taken back after they were given up")


@contextlib.contextmanager
def acting_as(uid: int | None, gid: int | None, groups: tuple[int, ...]) -> Iterator[None]:
    """Have the kernel look at files as it does for this user, until the end of the block; None, or our own: as ever.

    Only this thread does so, where its system calls are known. Raises CannotDrop where root has not the right to.
    """
    if uid is None or uid == os.geteuid():
        yield
        return
    before = os.geteuid(), os.getegid(), os.getgroups()
    with contextlib.ExitStack() as back:
        try:
            _set_groups(groups)
            back.callback(_set_groups, before[2])
            _set_effective(1, os.setresgid, -1 if gid is None else gid)
            back.callback(_set_effective, 1, os.setresgid, before[1])
            _set_effective(2, os.setresuid, uid)
            back.callback(_set_effective, 2, os.setresuid, before[0])
        except OSError as error:
            raise CannotDrop(_cannot_become(uid, gid, error)) from None
        yield


def _set_groups(groups: Sequence[int]) -> None:
    if (numbers := _of_machine(_OF_THREAD)) is None:
        os.setgroups(groups)
    else:
        _call(numbers[0], ctypes.c_size_t(len(groups)), (ctypes.c_uint32 * len(groups))(*groups))


def _set_effective(index: int, by_libc: Callable[[int, int, int], None], to: int) -> None:
    if (numbers := _of_machine(_OF_THREAD)) is None:
        by_libc(-1, to, -1)
    else:
        _call(numbers[index], ctypes.c_long(-1), ctypes.c_long(to), ctypes.c_long(-1))


def _call(number: int, *arguments: object) -> None:
    if _libc.syscall(ctypes.c_long(number), *arguments) < 0:
        failure = ctypes.get_errno()
        raise OSError(failure, os.strerror(failure))


def _of_machine(numbers: dict[str, T]) -> T | None:
    is_as_wide = sys.maxsize > 2**32  # as the kernel: it has other numbers for a program of 32 bits
    return numbers.get(os.uname().machine) if is_as_wide else None


def _cannot_become(uid: int | None, gid: int | None, error: OSError) -> str:
    return f"cannot become user {uid}, group {gid}: {error.strerror}"


def closed_folder(folder: str) -> str:
    """Return the first folder on the way to this one, or this one, that is there and closed to the user; links are followed."""
    way = ""
    for part in os.path.realpath(folder).split("/")[1:]:
        way += f"/{part}"
        if not os.access(way, os.X_OK):
            return way if os.path.exists(way) else ""
    return ""


def soft_nofile(count: int) -> None:
    """Set the soft limit of open files, at most to the hard one, which stays."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard))


def limit_nofile(count: int) -> None:
    """Set soft and hard limit of open files. OSError or ValueError when it may not be raised that far."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

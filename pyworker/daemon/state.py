"""Daemon: where an app's shared state is: a folder of its own below the home, or the server that its config names.

The daemon makes the folder and never looks into it: workers read and write it by themselves (cluster/state.py).
"""

from __future__ import annotations

import contextlib
import os
import stat

from pyworker.config.schema import ResolvedApp
from pyworker.protocol.names import STATE_DIR
from pyworker.unix.files import make_directory


def address(home: str, resolved: ResolvedApp) -> str:
    """Return what `pyworker.state` of this app's workers opens, its folder made.

    When that is not to be had the address is "none:" and the reason: an app that does not use its state is not bothered
    with it, and one that does is told why.
    """
    if resolved.state:
        return resolved.state
    if not home:
        return (
            "none:there is no folder for the shared state: set PYWORKER_HOME to one that is writable (a volume), "
            'or name a server: state = "redis://…"'
        )
    problem = prepare(home, resolved)
    return f"none:{problem}" if problem else f"sqlite:{_folder(home, resolved)}"


def prepare(home: str, resolved: ResolvedApp) -> str:
    """Make the app's folder, owned by the user that its workers run as; return what is wrong ("" = nothing)."""
    foreign = resolved.uid not in (None, os.geteuid())
    mode = 0o711 if foreign else 0o700  # others pass through, and list nothing
    try:
        with contextlib.ExitStack() as at_end:
            home_fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            at_end.callback(os.close, home_fd)
            states = make_directory(home_fd, STATE_DIR, mode)
            at_end.callback(os.close, states)
            if foreign:
                os.fchmod(home_fd, mode)
                os.fchmod(states, mode)
            folder = make_directory(states, resolved.config.name)
            at_end.callback(os.close, folder)
            give(folder, resolved)
    except OSError as error:
        return f"the shared state cannot be kept in {_folder(home, resolved)}: {error.strerror}"
    if foreign and (closed := _closed_to(resolved, home)):
        return (
            f"the shared state cannot be used: the user of this app may not enter {closed}. "
            "Use a home that others may pass through: PYWORKER_HOME=/var/lib/pyworker"
        )
    return ""


def give(folder: int, resolved: ResolvedApp) -> None:
    """Give a folder of the app's, with its files, to the user that its workers run as; raises OSError."""
    before = os.fstat(folder).st_uid
    # of root's: it had a `user` before
    if resolved.uid not in (None, os.geteuid()) or (os.geteuid() == 0 and before != 0):
        uid, gid = resolved.uid or 0, -1 if resolved.gid is None else resolved.gid
        os.fchown(folder, uid, gid)
        if before != uid:
            _hand_over(folder, before, uid, gid)


def is_lost(home: str, resolved: ResolvedApp) -> bool:
    """Whether somebody has taken the folder from the user that the workers run as, or closed the home to that one."""
    if resolved.state or not home:
        return False
    passes = 0o001 if resolved.uid not in (None, os.geteuid()) else 0
    try:
        return os.stat(home).st_mode & passes != passes or is_taken(_folder(home, resolved), resolved)
    except OSError:
        return True


def is_taken(folder: str, resolved: ResolvedApp) -> bool:
    """Whether somebody has removed a folder of the app's, or given it to another user."""
    try:
        owner = os.stat(folder, follow_symlinks=False).st_uid
    except OSError:
        return True
    return owner != (os.geteuid() if resolved.uid is None else resolved.uid)


def _hand_over(folder: int, before: int, uid: int, gid: int) -> None:
    """Give the files of the one user to the other. Nothing else that is there: the first may have linked what is not its own."""
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
            try:
                found = os.fstat(fd)
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == before:
                    os.fchown(fd, uid, gid)
            finally:
                os.close(fd)


def _folder(home: str, resolved: ResolvedApp) -> str:
    return os.path.join(home, STATE_DIR, resolved.config.name)


def _closed_to(resolved: ResolvedApp, home: str) -> str:
    """Return the first folder on the way to the home that the app's user may not pass through."""
    path = "/"
    for part in os.path.realpath(home).split("/")[1:]:
        path = os.path.join(path, part)
        found = os.stat(path)
        in_group = found.st_gid in (resolved.gid, *resolved.groups)
        passes = 0o100 if found.st_uid == resolved.uid else 0o010 if in_group else 0o001
        if not found.st_mode & passes:
            return path
    return ""

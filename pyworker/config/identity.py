"""Who an app runs as: names of `user` and `group` -> ids; and whose config file may say so.

The rights are dropped elsewhere (in the child, before the app's interpreter is executed). This module only
looks things up and refuses.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from shlex import quote

from pyworker.errors import Hinted
from pyworker.record import record


class IdentityError(Hinted):
    """The app cannot run as this; `key` is the option to blame ("" = the file itself)."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.key = key


@record
class Identity:
    """What the child sets; None = not changed. `name`, `home`, `shell` are of the user that it runs as."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


def identify(user: str | None, group: str | None, *, is_root: bool) -> Identity:
    """Return the identity of an app; raise IdentityError for what is unknown or not ours to take."""
    entry = _user(user) if user is not None else None
    gid = _group(group) if group is not None else None
    if not is_root:
        return _own(user, entry, group, gid)
    if entry is None:
        me = _by_uid(os.geteuid())
        return Identity(None, gid, () if gid is None else (gid,), me.pw_name, me.pw_dir, me.pw_shell)
    if entry.pw_gid < 0 and gid is None:
        message = f"names {user}, which has no entry in the user database: its group is unknown"
        raise IdentityError("user", message, "set group too")
    primary = entry.pw_gid if gid is None else gid
    groups = tuple(sorted(set(os.getgrouplist(entry.pw_name, primary))))
    return Identity(entry.pw_uid, primary, groups, entry.pw_name, entry.pw_dir, entry.pw_shell)


def _own(user: str | None, entry: pwd.struct_passwd | None, group: str | None, gid: int | None) -> Identity:
    me = _by_uid(os.geteuid())
    if entry is not None and entry.pw_uid != os.geteuid():
        hint = f"remove it, or let root run pyworker: sudo pyworker start …; this daemon runs as {me.pw_name}"
        raise IdentityError("user", f"cannot run as {user}: only root can change the user", hint)
    if gid is not None and gid != os.getegid():
        raise IdentityError("group", f"cannot run as group {group}: only root can change the group", "remove it")
    return Identity(None, None, (), me.pw_name, me.pw_dir, me.pw_shell)


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return _by_uid(_number("user", name))


def _by_uid(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:  # containers run as numbers without a name
        return pwd.struct_passwd((str(uid), "x", uid, -1, "", "/", "/bin/sh"))


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return _number("group", name)


def _number(kind: str, name: str) -> int:
    """Return the number that stands for a user or group of no name."""
    # OSError where no descriptor is left to look anything up with: Python then says that nobody has the name
    os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
    if not name.isdecimal():
        message = f"names {name}, which is no {kind} of this machine"
        raise IdentityError(kind, message, f"make it: {kind}add --system {name}")
    if int(name) >= 2**32 - 1:
        raise IdentityError(kind, f"names {name}, which is no {kind} number")
    return int(name)


@record
class Opened:
    """A config file that was read. By its path another one may be found by now: its owner's, who is to be refused."""

    real: str  # path, without links
    info: os.stat_result
    crc: int = 0  # of its content
    profile: str = ""  # whose tables were laid on the others


def opened(file: str) -> Opened:
    """Return what is found at a path now."""
    real = os.path.realpath(file)
    return Opened(real, os.stat(real))


def check_owner(file: str, uid: int | None, read: Opened | None = None) -> None:
    """For root: refuse a config file that anyone but root and the app's own user could have written.

    Whoever can change the file (or put another in its place) decides what runs and as whom.
    """
    read = read or opened(file)
    _check_writers(f"start apps from {file}", read.real, read.info, uid)


def check_group(who: Identity, group: str, config_file: str, read: Opened | None = None) -> None:
    """For root: refuse a group that the user is no member of, when it is the user's own config file that asks for it."""
    if not (who.uid and (whose := is_of(who.uid, config_file, read))):
        return
    entry = _by_uid(who.uid)
    if who.gid not in os.getgrouplist(entry.pw_name, entry.pw_gid):
        message = f"names {group}, of which {who.name} is no member: root does not change that for a config file {whose} {who.name}"
        raise IdentityError("group", message, "leave it out, or give the config file and its folder to root")


def check_env_file(fd: int, path: str, uid: int | None, config_file: str, read: Opened | None = None) -> None:
    """For root: refuse an open dotenv file that strangers could have written, or that the config file may not name."""
    _check_writers(f"start apps from {path}", os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd), uid)
    check_named(fd, path, "env_file", uid, config_file, read)


def check_named(fd: int, path: str, key: str, uid: int | None, config_file: str, read: Opened | None = None) -> None:
    """For root: refuse an open file that the config file names and that is not of the same owner.

    Root reads it and hands it to the app: a config file of the app's own user must not have root read others' files.
    It is asked of the descriptor, for by its path another file could be put there between the look and the reading.
    """
    if uid and config_file and os.fstat(fd).st_uid != uid and (whose := is_of(uid, config_file, read)):
        name = _by_uid(uid).pw_name
        message = f"root does not read {path} for a config file {whose} {name}: it is not {name}'s own"
        hint = f"give the config file and its folder to root, or: chown {name} {quote(path)}"
        raise IdentityError(key, message, hint)


def check_log(path: str, uid: int | None, config_file: str, read: Opened | None = None) -> None:
    """For root: refuse a log file that the app's user could turn into another one. Root writes and renames it by its path."""
    name = _by_uid(uid).pw_name if uid else ""
    if uid and config_file and (whose := is_of(uid, config_file, read)):
        message = f"root does not write to {path} for a config file {whose} {name}"
        hint = "leave it out (pyworker logs shows the log), or give the config file and its folder to root"
        raise IdentityError("logs.file", message, hint)
    doing, named = f"write to {path}", os.path.dirname(path)
    for folder in _and_above(named):
        if (found := os.lstat(folder)).st_uid and stat.S_ISLNK(found.st_mode):
            message = f"root does not {doing}: {folder} is a link of {_by_uid(found.st_uid).pw_name}'s"
            raise IdentityError("logs.file", message, f"remove it, or name the folder: {os.path.realpath(named)}")
        _check_place(doing, folder, os.stat(folder), folder, None)
    for folder in _and_above(os.path.realpath(named)):
        _check_place(doing, folder, os.stat(folder), folder, None)


def check_probe(path: str, config_file: str, read: Opened) -> None:
    """For root: refuse the probe's Unix socket where others say where it is. No user is named whose rights it could be made with."""
    try:
        _check_writers(f"make the socket {path} for {config_file}", read.real, read.info, 0)
    except IdentityError as error:
        error.hint += f", or name it yourself: --probe unix:{quote(path)}"
        raise


def _and_above(folder: str) -> list[str]:
    return [folder] if folder == "/" else [folder, *_and_above(os.path.dirname(folder))]


def is_of(uid: int, file: str, read: Opened | None) -> str:
    """Return in words how a config file is in the hands of a user; "" when it is not."""
    read = read or opened(file)
    if read.info.st_uid == uid:
        return "that belongs to"
    return "whose folder belongs to" if os.stat(os.path.dirname(read.real)).st_uid == uid else ""


def _check_writers(doing: str, path: str, info: os.stat_result, uid: int | None) -> None:
    """Of a file and its folder."""
    folder = os.path.dirname(path)
    for where, found, what in ((path, info, "it"), (folder, os.stat(folder), "its folder")):
        _check_place(doing, where, found, what, uid, or_user=uid is None)


def _check_place(
    doing: str, path: str, info: os.stat_result, what: str, uid: int | None, *, or_user: bool = False
) -> None:
    if info.st_uid not in ({0} if uid is None else {0, uid}):
        owner = _by_uid(info.st_uid).pw_name
        hint = f"chown root {quote(path)}"
        if or_user:
            hint += f', or run the app as its owner: user = "{owner}"'
        raise IdentityError("", f"root does not {doing}: {what} belongs to {owner}", hint)
    sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX  # others cannot replace files in it
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        who = "everyone" if info.st_mode & stat.S_IWOTH else "its group"
        raise IdentityError("", f"root does not {doing}: {what} can be written by {who}", f"chmod go-w {quote(path)}")

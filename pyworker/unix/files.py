"""Private directories and the files and sockets in them, reached through a directory fd.

Everything is opened without following a link at the last step. What is unsafe is refused with the reason and
the command that mends it; nothing is repaired silently. A Unix socket whose path is longer than the kernel's
108 bytes is reached through /proc/self/fd.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from typing import BinaryIO

from pyworker import regular


class UnsafeDirectory(OSError):
    """The directory is not private to us: `reason` says why, `hint` what to do about it."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def open_home(path: str, create: bool, file: tuple[str, int] | None = None) -> int:
    """Open a private directory and return its fd (the caller's to close), close-on-exec.

    With `create` it is made (0700), with its parents, and must be our own. Without, root may also look into
    another user's. A link is followed only to where `file` is, a name and an open file: it was moved. Raises
    UnsafeDirectory, or OSError for what the file system says (FileNotFoundError...).
    """
    path = os.path.abspath(path)
    if create:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    is_link = os.path.islink(path)
    real = os.path.realpath(path) if is_link else path
    refused = UnsafeDirectory(f"{path} is a symbolic link", f"use the folder that it points to: {real}")
    if is_link and file is None:
        raise refused
    fd = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if is_link and file is not None:
            known = os.fstat(file[1])
            if not same_file(fd, file[0], known.st_dev, known.st_ino):
                raise refused
        _check_private(real, os.fstat(fd), ours=create)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_private(path: str, found: os.stat_result, *, ours: bool) -> None:
    me = os.geteuid()
    if found.st_uid != me and (ours or me != 0):
        hint = f"run as that user, or use a folder of your own; to take it over: chown {me} {_quoted(path)}"
        raise UnsafeDirectory(f"{path} belongs to user {found.st_uid}, and this is user {me}", hint)
    if is_open_to_others(found):
        mode = stat.S_IMODE(found.st_mode)
        hint = f"if nobody else needs it: chmod 700 {_quoted(path)}; else use a folder of your own"
        raise UnsafeDirectory(f"{path} is open to other users (mode {mode:04o})", hint)


def _quoted(path: str) -> str:
    import shlex  # not for the start of a process, which is refused seldom

    return shlex.quote(path)


def real_file(path: str) -> str:
    """Return the path of a file that need not be there, without the links on the way to its folder (/var/run)."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def is_open_to_others(found: os.stat_result) -> bool:
    """Whether others may do in a directory what they must not be able to.

    Root may open its home for passing through (0711): workers of other users reach their state folder in it.
    """
    return bool(found.st_mode & (0o066 if found.st_uid == 0 else 0o077))


def lock_directory(fd: int) -> bool:
    """Lock a directory for as long as `fd` is open; False when somebody else has. Some network file systems cannot: True."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True


def is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(fd)
    return False


def is_missing(dirfd: int, name: str) -> bool:
    """Whether nothing has this name in a directory; False where that cannot be known."""
    try:
        os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def make_directory(dirfd: int, name: str, mode: int = 0o700) -> int:
    """Make (if absent) and open a directory below `dirfd`; the fd is the caller's. A link is refused (OSError)."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=dirfd)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)


def open_append(name: str, dirfd: int | None = None) -> int:
    """Open a file for appending, made when absent, never through a link at its last step."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    return os.open(name, flags, 0o600, dir_fd=dirfd)


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading. OSError for anything else."""
    return open(path, "rb", opener=regular.opener)


@contextlib.contextmanager
def replacing(dirfd: int, name: str, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `name` below `dirfd` at the end of the block: a reader sees the old or the
    new. When the block raises, or the disk is full, it is the old one that stays."""
    temporary = f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=dirfd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600, dir_fd=dirfd), "wb") as file:
            yield file
            file.flush()
            if mode != 0o600:
                os.fchmod(file.fileno(), mode)  # only now, as it may hold passwords
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dirfd)
        raise


def write_file(path: str, data: bytes, *, new: bool = False, mask: int = 0) -> None:
    """Write a file as a whole or not at all: on a full disk the old one stays, and a new one goes.

    A link stays a link; an old file keeps its owner, and of its mode what is not in `mask`. `new`: there must be none.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
    is_made = new
    try:
        fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT, 0o666)
        is_made = True
    real = os.path.realpath(path)
    with open(fd, "wb") as file:
        old = os.fstat(fd)
        if is_made:
            try:
                file.write(data)
                file.flush()
                os.fsync(fd)
            except BaseException:
                os.unlink(real)
                raise
        elif not stat.S_ISREG(old.st_mode):
            file.write(data)
        elif not _replace(real, data, stat.S_IMODE(old.st_mode) & ~mask, old):
            if old.st_mode & mask:
                os.fchmod(fd, stat.S_IMODE(old.st_mode) & ~mask)
            file.truncate(0)
            file.write(data)


def _replace(path: str, data: bytes, mode: int, old: os.stat_result) -> bool:
    """Put a new file in the place of an old one; False where that cannot be: in a folder of others, for a mount, or where it
    would be of another user or group."""
    folder, name = os.path.split(path)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not same_file(at, name, old.st_dev, old.st_ino):  # it has no name any more, as /dev/stdout may have none
            return False
        with replacing(at, name, mode) as file:
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(data)
    except OSError as error:
        # EINVAL: of a user who is unknown in this container
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EINVAL):
            raise
        return False
    finally:
        os.close(at)
    return True


@contextlib.contextmanager
def socket_path(folder: str, name: str) -> Iterator[str]:
    """Give a path to connect to the socket `name` in a folder: sun_path holds 107 bytes; through the folder's fd it is short."""
    path = os.path.join(folder, name)
    if len(os.fsencode(path)) <= 107:
        yield path
        return
    dirfd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{dirfd}/{name}"
    finally:
        os.close(dirfd)


def listen_unix(dirfd: int, name: str) -> socket.socket:
    """Return a non-blocking listening stream socket at `name` below `dirfd`, for this user only.

    It is bound under another name and renamed, so there is no moment without a socket, and none in which
    somebody could connect before the mode is set. The caller must hold the lock that makes it the owner.
    """
    temporary = f".{name}.{os.urandom(4).hex()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(f"/proc/self/fd/{dirfd}/{temporary}")
        try:
            os.chmod(temporary, 0o600, dir_fd=dirfd)
            listener.listen(128)
            os.rename(temporary, name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=dirfd)
            raise
    except BaseException:
        listener.close()
        raise
    return listener


def same_file(dirfd: int, name: str, device: int, inode: int) -> bool:
    """True when `name` below `dirfd` is still the file with this device and inode."""
    try:
        found = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (device, inode)

"""Guardian: what must be so before the loop runs. The home, the lock, the control socket, or the fds of a dead guardian.

Every failure is a BootError with the exit code and the next step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import socket
import time
from typing import Any, NoReturn

from pyworker import failpoint
from pyworker.errors import FULL_DISK, Exit, PyworkerError
from pyworker.guardian.program import Program
from pyworker.guardian.store import FdStore
from pyworker.protocol import inherited, names, wire
from pyworker.protocol.run import RunSpec
from pyworker.unix import fds, files, process, stderr

MAX_OWN_LOG = 1024 * 1024
_FEWEST_FILES = 64  # an app with two workers needs fifty
_SMALLEST_FILE = 16 * 2**20  # what is known of an app is one of 8 MB, in memory
_LOOKS = 30  # at a home that is locked, 10 ms apart


class BootError(PyworkerError):
    """The guardian cannot start."""


def open_home(path: str, lock: int | None = None) -> int:
    """Open (make) the home and return its fd. `lock`: of the guardian before this one."""
    try:
        return files.open_home(path, create=True, file=(names.LOCK_FILE, lock) if lock is not None else None)
    except files.UnsafeDirectory as error:
        raise BootError(error.reason, hint=error.hint, exit=Exit.NO_PERMISSION) from None
    except OSError as error:
        raise BootError(
            f"cannot make or open {path}: {error.strerror or error}",
            hint="choose another place with --home or PYWORKER_HOME",
            exit=Exit.NO_PERMISSION if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else Exit.FAILED,
        ) from None


def check_limits() -> None:
    """Refuse limits with which nothing could be started, or told why not: of open files, and of what a file may hold."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < _FEWEST_FILES:
        raise BootError(f"only {hard} files may be open at once, and pyworker needs {_FEWEST_FILES} or more", hint="raise the limit (ulimit -Hn)")  # fmt: skip
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if 0 <= largest < _SMALLEST_FILE:
        raise BootError(f"a file may hold {largest} bytes at most, and pyworker needs {_SMALLEST_FILE // 2**20} MB or more", hint="raise the limit (ulimit -f)")  # fmt: skip


def become_guardian() -> None:
    """Adopt orphans, hide our memory and fds from the user's other processes, take all fds we may have."""
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    process.prctl(process.PR_SET_DUMPABLE, 0)
    soft, _ = fds.raise_nofile()
    os.environ.setdefault(names.ENV_SOFT_NOFILE, str(soft))
    os.umask(0o077)
    os.chdir("/")


def open_own_log(home: int) -> None:
    """Point stdout and stderr at logs/pyworker.log, stdin at /dev/null."""
    folder, _, name = names.DAEMON_LOG.rpartition("/")
    try:
        logs = files.make_directory(home, folder)
        try:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(name, dir_fd=logs).st_size > MAX_OWN_LOG:
                    os.rename(name, name + ".1", src_dir_fd=logs, dst_dir_fd=logs)
            log = files.open_append(name, logs)
        finally:
            os.close(logs)
    except OSError as error:
        raise BootError(f"cannot write {names.DAEMON_LOG}: {error.strerror}", hint=_step(error)) from None
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    for fd in (null, log):
        if fd > 2:
            os.close(fd)


def renew_own_log(home: int) -> None:
    """Make it anew where it was removed (by a cleaner of old files, say): why a daemon does not start would be lost."""
    if os.fstat(2).st_nlink:
        return
    with contextlib.suppress(BootError):  # the home was removed, too
        open_own_log(home)


def no_daemon(error: OSError) -> BootError:
    """Return what is said when its process cannot be made: nothing runs yet, so waiting for better times helps nobody."""
    hint = "raise the limit (ulimit -u and -Hn where it is started, pids.max of its cgroup)"
    return BootError(f"cannot make its process: {error.strerror}", hint=hint, exit=Exit.UNAVAILABLE)


def run_spec(fd: int) -> RunSpec:
    """Return what a foreground pyworker was told to run; the memfd is passed on to daemons."""
    os.set_inheritable(fd, False)
    try:
        spec = wire.decode(RunSpec, fds.read_whole(fd), limit=16 * wire.MAX_REQUEST)
    except (OSError, wire.WireError) as error:
        raise BootError(f"cannot read what to run: {error}", exit=Exit.USAGE) from None
    assert isinstance(spec, RunSpec)
    return spec


def foreground_home(path: str, store: FdStore) -> int:
    """Take a home if it is to be had, with its lock and control socket; -1, with a line why, if it is not."""
    if not path:
        return -1
    home = -1
    try:
        home = open_home(path)
        store.put(inherited.LOCK, take_lock(home))
        store.put(inherited.CONTROL, bind_control(home).detach())
    except PyworkerError as error:
        store.remove(inherited.LOCK)
        if home >= 0:
            os.close(home)
        stderr.write(f"pyworker: no control socket (pyworker ps will not find this one): {path}: {error.message}\n")
        return -1
    return home


def take_lock(home: int) -> int:
    """Return the fd of the locked lock file; BootError with exit code 75 when somebody has it.

    The folder is locked, too, for as long as `home` is open: the file may be removed.
    """
    if not _lock_folder(home):
        raise _already_running()
    lock = -1
    try:
        lock = os.open(
            names.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=home
        )
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock < 0:
            raise BootError(f"cannot open {names.LOCK_FILE} in the home: {error.strerror}", hint=_step(error)) from None
        os.close(lock)
        if error.errno == errno.EWOULDBLOCK:
            raise _already_running() from None
        raise BootError(f"cannot lock {names.LOCK_FILE}: {error.strerror}", hint="the file system of the home must support flock") from None  # fmt: skip
    return lock


def _lock_folder(home: int) -> bool:
    for _ in range(_LOOKS):
        if files.lock_directory(home):
            return True
        time.sleep(0.01)  # it may only be a command that looks whether it is locked
    return False


def _already_running() -> BootError:
    return BootError("already running", hint="pyworker ps", exit=Exit.BUSY)


def bind_control(home: int) -> socket.socket:
    """Return the listening control socket. Needs the lock: it replaces what is there."""
    try:
        return files.listen_unix(home, names.CONTROL_SOCKET)
    except OSError as error:
        refused = error.errno in (errno.EACCES, errno.EROFS, *FULL_DISK)
        hint = _step(error) if refused else "the file system of the home must support sockets"
        raise BootError(f"cannot make {names.CONTROL_SOCKET}: {error.strerror}", hint=hint) from None


def _step(error: OSError) -> str:
    """Return what to do when a file of the home cannot be made."""
    if error.errno in FULL_DISK:
        return "free some space, or some inodes: df -h, df -i; another home: --home DIR"
    if error.errno == errno.EROFS:
        return "its disk is read-only, as the kernel makes it after an error (dmesg says so); another home: --home DIR"
    return "it must be a folder that can be written; another one: --home DIR"


def adopted_store(fd: int) -> tuple[FdStore, dict[str, dict[str, Any]]]:
    """Return the store out of the memfd that a daemon without a guardian left, or a guardian that has become us.

    In the second case the programs that it had running, too: by name, what Program.memo said. Closes the memfd.
    """
    try:
        state = wire.parse_json(fds.read_whole(fd), limit=16 * wire.MAX_REQUEST)
        names = wire.from_json(dict[str, int], state["names"], "names")
        programs = wire.from_json(dict[str, dict[str, Any]], state.get("programs", {}), "programs")
        for number in names.values():
            os.fstat(number)
        return FdStore(names), programs
    except (OSError, KeyError, TypeError, AttributeError, wire.WireError) as error:
        raise BootError(f"cannot take over the file descriptors: {error!r}") from None
    finally:
        os.close(fd)


def become(argv: list[str], store: FdStore, programs: dict[str, Program]) -> NoReturn:
    """Become another version of the guardian: same process, same children, same fds. OSError: nothing has changed.

    Signals are held by the caller; they wait until the new version has its handlers.
    """
    running = {name: program for name, program in programs.items() if program.pid}
    names = {name: number for name in store if (number := store.get(name)) is not None}
    state = {"names": names, "programs": {name: program.memo() for name, program in running.items()}}
    memo = fds.memfd("pyworker-adopt", json.dumps(state).encode())
    passed = [memo, *names.values(), *(fd for program in running.values() for fd in program.fds())]
    try:
        failpoint.hit("guardian.exec")
        process.exec_with([*argv, "--adopt", str(memo)], passed)
    finally:
        os.close(memo)


def remove_control(home: int, lock: int | None) -> None:
    """Remove control.sock from the home, if the lock there is still ours (else it may be another guardian's)."""
    if lock is None:
        return
    ours = os.fstat(lock)
    if files.same_file(home, names.LOCK_FILE, ours.st_dev, ours.st_ino):
        with contextlib.suppress(OSError):
            os.unlink(names.CONTROL_SOCKET, dir_fd=home)

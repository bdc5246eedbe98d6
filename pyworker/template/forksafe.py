"""Template: is this process, now that it has imported the app, one that may be forked? It only looks.

A fork copies the thread that forks and no other, leaves timers behind, and shares every open description: a thread started
or a connection opened at import time would be dead, or used by all workers at once. So would the place at which a file is
read, and what comes out of a pipe; what is only written to, or appended to, and what C code has open (mapped, or read at
offsets of its own) may be shared. Not so what is locked (LMDB) and an SQLite database: the locks are the template's, and none
of the workers has them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the import may have put something of its own in the place of signal's
import contextlib
import fcntl
import gc
import io
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable

from pyworker.unix.fds import Socket
from pyworker.unix.fork import bare_fork
from pyworker.unix.procfs import read_all
from pyworker.unix.ready import ready

_SQLITE = b"SQLite format 3\0"  # how such a file begins
# threads that hold no lock over a fork, and that the child does without: jemalloc's (pyarrow); "": one that has just ended
_PREPARED = {"jemalloc_bg_thd", ""}

TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)  # a sampling profiler's, an alarm

_QUEUES = {"inotify", "[fanotify]", "[timerfd]", "[io_uring]"}  # what one process takes out of them, no other one sees


def open_fds() -> set[int]:
    listed = os.listdir("/proc/self/fd")  # with the one of the listing itself, whose number the next open gets
    return {int(name) for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}


def leaves_free(count: int) -> bool:
    """Whether so many more descriptors can be had."""
    taken: list[int] = []
    try:
        taken.extend(os.dup(2) for _ in range(count))
    except OSError:
        return False
    finally:
        for fd in taken:
            os.close(fd)
    return True


def why_not(before: set[int]) -> str:
    """Return why this process must not be forked, "" when it may. `before`: its fds before the import."""
    new = open_fds() - before
    found = _threads() or _timers() or _descriptors(new)
    if not found and (_pipes(new) or _files(new)):
        gc.collect()  # it may be garbage
        pipes = _pipes(new)
        # or be closed before a fork, as the database of pyworker.state is, or made anew after it, as libuv's pipe is
        if _fork_in_vain(os.fork, lambda: bool(pipes & _pipes(new))):
            return "a pipe was left open by the import"
        found = _files(new)
    return found


def _timers() -> str:
    return "a timer was left running by the import" if any(_signal.getitimer(each)[0] for each in TIMERS) else ""


def _threads() -> str:
    of_python = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    if _native_names() and not of_python:
        # Some libraries in C end their threads before each fork and start them when they are used again: OpenBLAS does,
        # and so all that stands on numpy. Threads of Python's own never do, and theirs is not tried.
        _fork_in_vain(bare_fork)
    if not (native := _native_names()):
        return ""
    own = _name_of(os.getpid())
    names = of_python or [name for name in native if name != own]  # which threads have that were given none
    known = f": {', '.join(names[:3])}" if names else ""
    return f"{len(native)} {'thread runs' if len(native) == 1 else 'threads run'} after the import{known}"


def _native_names() -> list[str]:
    """Return what the kernel calls the threads beside this one that a fork would lose."""
    deadline = time.monotonic() + 0.1  # a thread that was joined may still be seen for a moment
    while True:
        threads = [int(each) for each in os.listdir("/proc/self/task") if int(each) != os.getpid()]
        names = [name for each in threads if (name := _name_of(each)) not in _PREPARED]
        if not names or time.monotonic() > deadline:
            return names
        time.sleep(0.005)


def _name_of(thread: int) -> str:
    try:
        return read_all(f"/proc/self/task/{thread}/comm").decode(errors="replace").strip()
    except OSError:  # it has ended
        return ""


def _fork_in_vain(fork: Callable[[], int], is_there: Callable[[], bool] = bool) -> bool:
    """Fork a process that ends at once; return what it finds."""
    # what the import has set may take its end away, or raise; it does not last anyway (`reset_signals`)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    try:
        pid = fork()
    except OSError:  # no process is left: the fork of a worker fails as well, and says so
        return False
    if pid == 0:
        os._exit(is_there())
    return pid > 0 and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def _descriptors(new: set[int]) -> str:
    for fd in sorted(new):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                peer = _peer(fd)
                if peer:
                    return f"a socket connected to {peer} was opened by the import"
                continue
            kind = os.readlink(f"/proc/self/fd/{fd}").removeprefix("anon_inode:")
            if kind == "[eventpoll]":
                return "an event loop was made by the import"
            if kind in _QUEUES:
                return f"{kind.strip('[]')} was left open by the import"
        except OSError:  # closed meanwhile, or the fd of the listing itself
            continue
    return ""


def _pipes(new: set[int]) -> set[tuple[int, int]]:
    """Return the pipes that are read here: what one process says would reach any of the workers, and so would the
    results of a `ProcessPoolExecutor`.
    """
    found = set()
    for fd in new:
        with contextlib.suppress(OSError):  # closed meanwhile
            what = os.fstat(fd)
            is_read = stat.S_ISFIFO(what.st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
            if is_read and ready(fd, select.POLLIN) != select.POLLHUP:  # else who wrote there has ended
                found.add((fd, what.st_ino))
    return found


def _files(new: set[int]) -> str:
    locked = _locked()
    for fd in sorted(new):
        with contextlib.suppress(OSError):  # closed meanwhile, or only written to
            what = os.fstat(fd)
            if not stat.S_ISREG(what.st_mode):
                continue
            if what.st_ino in locked:
                return f"the file {os.readlink(f'/proc/self/fd/{fd}')} was left locked by the import"
            if os.pread(fd, len(_SQLITE), 0) == _SQLITE:
                return f"the SQLite database {os.readlink(f'/proc/self/fd/{fd}')} was left open by the import"
    for each in gc.get_objects():
        # by the type that it has: the class that it says it is may be the app's code (Django's lazy objects)
        if not issubclass(type(each), io.FileIO) or each.closed or each.fileno() not in new:
            continue
        flags = fcntl.fcntl(each.fileno(), fcntl.F_GETFL)
        is_only_written = flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_APPEND
        if not is_only_written and stat.S_ISREG(os.fstat(each.fileno()).st_mode):
            return f"the file {each.name} was left open by the import"
    return ""


def _locked() -> set[int]:
    """Return the inodes of the files that this process has a lock on."""
    try:
        # of each: "1: POSIX  ADVISORY  READ 4711 08:01:131 0 EOF"
        lines = [line.split() for line in read_all("/proc/locks").decode().splitlines()]
    except OSError:
        return set()
    own = str(os.getpid())
    return {int(words[5].rpartition(":")[2]) for words in lines if words[1] != "->" and words[4] == own}


def _peer(fd: int) -> str:
    sock = Socket(fileno=os.dup(fd))
    with sock:
        try:
            peer = sock.getpeername()
        except OSError:
            return ""
        if peer and sock.family == socket.AF_UNIX and sock.type == socket.SOCK_DGRAM and not sock.getsockname():
            return ""  # who has no name is only ever a sender: logging's, to /dev/log
        if isinstance(peer, tuple):
            return f"{peer[0]}:{peer[1]}"
        return str(peer) if peer else "another socket"

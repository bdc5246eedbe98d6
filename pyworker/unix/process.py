"""Processes: spawn without fork, pidfds, exit statuses, subreaper."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from pyworker.errors import WANTING
from pyworker.unix import procfs
from pyworker.unix.ready import ready

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
PR_SET_NAME = 15

# linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info); the size is part of the number, this is the first one (64 bytes)
_INFO_SIZE = 64
_INFO_EXIT_CODE = 60
_PIDFD_GET_INFO = (3 << 30) | (_INFO_SIZE << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


class ExitStatus(NamedTuple):
    """How a process ended: an exit code or a signal, or neither when nobody can know."""

    code: int | None
    signal: int | None
    core: bool = False


UNKNOWN = ExitStatus(None, None)


def given(argv: list[str], *names: str) -> dict[str, str]:
    """Return the values of `--name value` options, none of which has to be there. ValueError for all else.

    For what only we start: `argparse`, with what it imports to show a help, costs each start of a process 7 ms.
    """
    values = dict(zip(argv[::2], argv[1::2], strict=True))
    if unknown := values.keys() - names:
        raise ValueError(f"unknown: {' '.join(sorted(unknown))}")
    return values


def prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def set_name(name: str) -> None:
    """Set the 15-character name that ps -o comm and top show."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def spawn(
    argv: list[str], env: dict[str, str], fds: dict[int, int], *, new_session: bool = True, path: str = ""
) -> int:
    """Start a program and return its pid. `fds` maps the child's fd numbers to ours (0, 1, 2 included).

    posix_spawn: nothing of this process is copied, and nothing but these fds is handed on (all others are
    close-on-exec). Signal mask and handlers of the child are the defaults.
    """
    # dup2 in an order that never overwrites a source that is still needed: move all sources out of the way first
    top = max([*fds.keys(), *fds.values(), 2]) + 1
    moved: dict[int, int] = {}
    actions: list[tuple[int, ...]] = []
    try:
        for target, source in fds.items():
            # a guardian takes over thousands, each by its number, and twice as many there may not be
            if target != source:
                source = moved[target] = dup_above(source, top)
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
        return os.posix_spawn(
            path or argv[0],
            argv,
            env,
            file_actions=actions,
            setsid=new_session,
            setsigmask=[],
            setsigdef=range_of_signals(),
        )
    except (FileNotFoundError, PermissionError) as error:
        raise OSError(error.errno, f"{path or argv[0]}: {error.strerror}") from None  # who says this says which
    finally:
        for fd in moved.values():
            os.close(fd)


@contextlib.contextmanager
def umask_of_imports() -> Iterator[None]:
    """For the start of a program of ours, which sets its own umask once it has imported what it needs.

    What Python compiles then is for every user of an installation, whose daemon may be root's.
    """
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def exec_with(argv: list[str], fds: list[int]) -> NoReturn:
    """Become a program of ours that has these fds. OSError: nothing has changed."""
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        with umask_of_imports():
            os.execv(argv[0], argv)
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)


def spawn_watched(argv: list[str], env: dict[str, str], fds: dict[int, int]) -> tuple[int, int]:
    """Start a program of ours as `spawn` does; return its pid and a pidfd. OSError: there is no process, and no zombie."""
    with umask_of_imports():
        pid = spawn(argv, env, fds)
    try:
        return pid, os.pidfd_open(pid)
    except OSError:  # no descriptor left
        os.kill(pid, signal.SIGKILL)  # our child, not reaped: the number is still its own
        os.waitpid(pid, 0)
        raise


def dup_above(fd: int, minimum: int) -> int:
    """Return a copy whose number is not below `minimum`, close-on-exec."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, minimum)
    except OSError as error:
        if error.errno == errno.EINVAL:  # the limit of open files is below that: the kernel's word for it misleads
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
        raise


def lacking() -> str:
    """Return what the kernel, or a sandbox around us, refuses of what processes are made and watched with; "" = it is all there."""
    step, pidfd = "/proc", -1
    try:
        os.stat("/proc/self/fd")
        step = os.devnull
        os.close(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        step = "memfd_create"
        os.close(os.memfd_create("pyworker", os.MFD_CLOEXEC))
        step = "pidfd_open"
        pidfd = os.pidfd_open(os.getpid())
        step = "pidfd_send_signal"
        signal.pidfd_send_signal(pidfd, 0)
        step = "waitid"
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:  # it knows pidfds, then: nobody is a child of his own
        return ""
    except OSError as error:
        return "" if error.errno in WANTING else f"{step}: {error.strerror}"
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return ""


@functools.cache
def range_of_signals() -> list[int]:
    """Every signal whose action a program may set."""
    return [s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)]


def pidfd_pid(pidfd: int) -> int:
    """Return the pid a pidfd stands for, 0 when the process is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        for line in info:
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))  # -1 of the kernel, which is everybody to `kill`
    return 0


def state(pid: int) -> str:
    """Return the letter that ps shows (R, S, D, T, t, Z), "" when it is gone."""
    try:
        return stat_fields(pid)[0].decode()
    except (OSError, IndexError):
        return ""


def is_stopped(pid: int) -> bool:
    """True for a process that was stopped by a signal; one that a debugger holds ("t") is not."""
    return state(pid) == "T"


def is_kept(pid: int) -> bool:
    """True for a process, killed before, that the kernel does not let end: it waits for a disk (D), or a thread of it does (Z)."""
    return state(pid) in ("D", "Z")


def stat_number(pid: int, field: int) -> int:
    """Return a number of proc_pid_stat(5), counted as there (4: its parent, 6: its session); 0 when the process is gone."""
    try:
        return int(stat_fields(pid)[field - 3])
    except (OSError, IndexError, ValueError):
        return 0


def stat_fields(pid: int) -> list[bytes]:
    """Return what proc_pid_stat(5) says of a process from its state on (field 3). OSError: it is gone."""
    # a file object would cost as much again as the reading itself
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()  # the name, in brackets, may hold anything
    finally:
        os.close(fd)


def time_without_cpu(pid: int) -> float:
    """Return the seconds for which a process (its first thread) was ready to run and had no CPU; 0.0 if nobody knows."""
    try:
        return int(procfs.read_all(f"/proc/{pid}/schedstat").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):  # it is gone; a kernel without CONFIG_SCHED_INFO
        return 0.0


def owner(pid: int) -> int | None:
    """Return the user that a process runs as; None when it is gone."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def send_signal(pidfd: int, signum: int) -> bool:
    """Signal the process of a pidfd; False when it is gone already."""
    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    return True


def kill_group(pid: int, signum: int) -> None:
    """Signal a whole process group; one that is gone is no error. Only for a pid that is known to be ours."""
    assert pid > 1
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def kill_session(pid: int, signum: int) -> None:
    """Signal the process group of a session's leader, and who has left that for one of its own in the session.

    `timeout` does, a shell's `set -m`, RQ. Only while the leader is not reaped: until then its number is the session's.
    """
    kill_group(pid, signum)
    told: set[int] = set()
    for _ in range(2):  # also whom one of them has just forked
        for member in sessions().get(pid, set()) - told:
            told.add(member)
            with contextlib.suppress(OSError):  # it is gone; or, with other rights, not ours to signal
                pidfd = os.pidfd_open(member)
                try:
                    if os.getsid(member) == pid != os.getpgid(member):
                        send_signal(pidfd, signum)
                finally:
                    os.close(pidfd)
        if not told:
            return


def alive_at(pidfd: int) -> float:
    """Return the time (CLOCK_BOOTTIME) when a process still runs, else 0.0."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return 0.0 if is_gone(pidfd) else now


def kill_rest_of_session(pid: int, signum: int, alive_at: float) -> bool:
    """Signal all that is left of the session of a leader that ran `alive_at`, also when it is reaped; False: nobody is there.

    Its number may be another's by now. Who is in a session of that number and was started before, is of this one; and while
    that one lives, so is everybody in it: the kernel gives the number to nobody.
    """
    held: dict[int, int] = {}
    try:
        for member in all_pids():
            with contextlib.suppress(OSError):  # it is gone
                if os.getsid(member) == pid:
                    held[member] = os.pidfd_open(member)
        members = [member for member in held if stat_number(member, 6) == pid]  # its session: pids are given again
        before = alive_at * os.sysconf("SC_CLK_TCK") - 1
        starts = [(stat_number(member, 22), member) for member in members]
        if not any(0 < start < before and not is_gone(held[member]) for start, member in starts):
            return False
        for member in members:
            with contextlib.suppress(OSError):  # with other rights, not ours to signal
                send_signal(held[member], signum)
        return any(not is_gone(held[member]) for member in members)
    finally:
        for pidfd in held.values():
            os.close(pidfd)


def sessions() -> dict[int, set[int]]:
    """Return of each session whom its leader's group does not have, as far as can be seen: 2 µs for each process there is."""
    found: dict[int, set[int]] = {}
    for pid in all_pids():
        with contextlib.suppress(OSError):  # it is gone
            session = os.getsid(pid)
            if os.getpgid(pid) != session:
                found.setdefault(session, set()).add(pid)
    return found


def groups_with_others() -> set[int]:
    """Return the process groups in which anybody but the leader lives, as far as can be seen.

    1 µs for each process there is, and 10 for each that is not its group's leader.
    """
    return _with_others(os.getpgid)


def sessions_with_others() -> set[int]:
    """Return the same of sessions."""
    return _with_others(os.getsid)


def _with_others(leader_of: Callable[[int], int]) -> set[int]:
    found: set[int] = set()
    for pid in all_pids():
        with contextlib.suppress(OSError):  # it is gone
            leader = leader_of(pid)
            if leader not in (0, pid) and state(pid) not in ("Z", "X", ""):  # 0: the kernel's own
                found.add(leader)
    return found


def all_pids() -> list[int]:
    """Return the pids of all processes that can be seen."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # no descriptor is left
        return []


def collect(pidfd: int, *, reap: bool = True) -> ExitStatus | None:
    """Reap a child of ours by its pidfd; None while it runs, UNKNOWN when it is not our child.

    `reap=False` only looks: the number of an unreaped leader stays its group's, so the group may still be signalled.
    """
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | (0 if reap else os.WNOWAIT))
    except ChildProcessError:
        return UNKNOWN
    return None if found is None else status_of(found)


def last_status(pidfd: int) -> ExitStatus | None:
    """Return how a process ended that somebody else has reaped; None while it is not, or where the kernel cannot say.

    PIDFD_GET_INFO with PIDFD_INFO_EXIT: Linux 6.15 and later.
    """
    request = bytearray(_INFO_SIZE)
    struct.pack_into("=Q", request, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return None
    if not struct.unpack_from("=Q", request, 0)[0] & _PIDFD_INFO_EXIT:
        return None
    return _of_wait_status(struct.unpack_from("=i", request, _INFO_EXIT_CODE)[0])


def zombie_status(pid: int, pidfd: int) -> tuple[ExitStatus, int] | None:
    """Return how a process ended that nobody has reaped yet, and the pid of who may; None when it runs, is reaped, or
    the kernel does not tell.

    A code of 0 is never returned: it is also what /proc shows to those who may not know.
    """
    try:
        fields = stat_fields(pid)
        number = int(fields[49])  # exit_code: field 52 of proc(5), the state is the third
        if fields[0] != b"Z" or not number or pidfd_pid(pidfd) != pid:  # still its own: the number was not used again
            return None
    except (OSError, ValueError, IndexError):
        return None
    return _of_wait_status(number), int(fields[1])


def _of_wait_status(number: int) -> ExitStatus:
    if os.WIFEXITED(number):
        return ExitStatus(os.WEXITSTATUS(number), None)
    return ExitStatus(None, os.WTERMSIG(number), os.WCOREDUMP(number))


def kill_group_of(pidfd: int, number: int = signal.SIGKILL) -> bool:
    """Signal the process group that a process led, also when the process is gone and reaped; Linux 6.9 and later.

    The kernel goes by the process that the pidfd stands for, so a pid that is used again is not hit. False: nobody is there.
    """
    try:
        signal.pidfd_send_signal(pidfd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
    except OSError:
        return False
    return True


def kill_session_of(pidfd: int) -> None:
    """SIGKILL to the session that a process leads; of one that is reaped only to its group."""
    if (pid := pidfd_pid(pidfd)) > 1:
        kill_session(pid, signal.SIGKILL)
    kill_group_of(pidfd)


def status_of(found: os.waitid_result) -> ExitStatus:
    if found.si_code == os.CLD_EXITED:
        return ExitStatus(found.si_status, None)
    return ExitStatus(None, found.si_status, found.si_code == os.CLD_DUMPED)


def is_gone(pidfd: int, within: float | None = 0.0) -> bool:
    """True when the process of a pidfd has ended (a zombie counts as ended); `within` as many seconds, None: wait for it."""
    return ready(pidfd, select.POLLIN, within) != 0

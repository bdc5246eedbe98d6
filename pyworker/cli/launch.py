"""CLI: starts the guardian (which starts the daemon) when none answers. Only `start` and `daemon start` do this.

The guardian is a program of its own in a session of its own, with a small environment, no terminal, and nothing open
but /dev/null and the pipe on which it says that it is there. Many starts at once make one: the lock of the home
decides, the others connect to the winner.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import site
import sys
import time
from collections.abc import Callable, Mapping
from shlex import quote
from typing import NoReturn

import pyworker
from pyworker.cli import render
from pyworker.cli.client import DaemonAway, apps_now, connect
from pyworker.cli.deadline import LOOK, Deadline
from pyworker.cli.homes import unreadable
from pyworker.config.activated import before_activation
from pyworker.errors import Exit, PyworkerError
from pyworker.protocol.events import names_in_words
from pyworker.protocol.names import LOCK_FILE
from pyworker.unix.fds import keep_from_exec, read_whole
from pyworker.unix.files import open_regular
from pyworker.unix.process import is_gone, lacking, spawn
from pyworker.unix.ready import ready

START_TIME = 30.0  # seconds for a guardian, ours or a rival's, to answer: of half a second of work, where twenty others want the CPU
_KEPT = re.compile(
    r"(?:PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TMPDIR|XDG_\w+|LD_LIBRARY_PATH|PYWORKER_FAILPOINTS|PYWORKER_TICK)\Z"
)
_NOTIFY = 3  # the guardian's end of the pipe


def ensure_daemon(home: str, starting: Callable[[], None] = lambda: None) -> int:
    """Return when a daemon answers at `home`: 0 when one ran already, else the pid of the guardian it has now.

    `starting` is called when there is none.
    """
    deadline = Deadline(START_TIME)
    started = 0
    while True:
        try:
            connect(home).close()
        except DaemonAway:
            if deadline.left() < 0:
                raise _too_slow(home) from None
        else:
            return started
        starting()
        started = _start(home, deadline) or started
        if not started:  # somebody else is starting it, or one is just leaving
            time.sleep(0.02)


def started_in_words(home: str, pid: int) -> str:
    """Return what there is to say of a daemon that was started: which, and what it brings back with it."""
    words = f"Started the pyworker daemon (guardian pid {pid}, home {render.home(home)})"
    with contextlib.suppress(PyworkerError, OSError, KeyError, TypeError):  # whoever asks next is told
        apps = apps_now(home, whole=True)
        failed = [render.line(app["name"]) for app in apps if app["state"] == "failed"]
        back = [render.line(app["name"]) for app in apps if app["state"] not in {"failed", "stopped"}]
        if not apps and (why := unreadable(home)):
            words += f"\n{render.line(why)}. Start your apps again"
        if back:
            words += f"\nRestoring what ran before: {names_in_words(back)}"
        if failed:
            words += f"\nNot restored: {names_in_words(failed)}   pyworker ps says why"
    return words


def check_kernel() -> None:
    """Refuse a place in which no daemon can watch a process: it would find that out by one failure after the other."""
    if why := lacking():
        raise PyworkerError(
            f"pyworker cannot run here: {why}",
            hint="it needs Linux 5.4 or newer, /proc, /dev/null, and a sandbox (a container's seccomp profile, gVisor) that lets this call through",
            code="unavailable",
        )


def check_installation() -> None:
    """Refuse an installation that our processes, which are isolated (`python -I`), would not find.

    Python is asked where it may be one: a folder of an editable installation is in no list.
    """
    folder = os.path.dirname(pyworker.__path__[0])
    if folder in site.getsitepackages():
        return
    code = "import sys, importlib.util; sys.exit(importlib.util.find_spec('pyworker') is None and 3)"
    try:
        with open(os.devnull, "r+b") as null:
            pid = spawn([sys.executable, "-I", "-c", code], dict(os.environ), dict.fromkeys(range(3), null.fileno()))
    except OSError:  # whatever is lacking, who starts the guardian says it
        return
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3:
        raise PyworkerError(
            f"pyworker cannot run here: its own processes would not find it in {folder}",
            hint="they look neither in PYTHONPATH (pip install --target, --prefix), nor in ~/.local (pip install --user), nor in archives\n"
            "in pyworker's source, a virtual environment has it: python3 -m venv .venv && .venv/bin/pip install .",
            code="unavailable",
        )


def wait_for_the_end(home: str) -> None:
    """Return once no daemon has this home. What keeps from looking is left to who becomes the daemon, and says it."""
    with contextlib.suppress(OSError), open_regular(os.path.join(home, LOCK_FILE)) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def become_daemon(home: str) -> NoReturn:
    """Replace this process by a guardian that whoever started this command looks after."""
    check_kernel()
    check_installation()
    env = {k: v for k, v in os.environ.items() if _KEPT.match(k) or k in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    keep_from_exec()
    become(["pyworker.guardian", "--home", home], env)


def become(program: list[str], env: Mapping[str, str] = os.environ) -> NoReturn:
    """Replace this process by a program of ours."""
    sys.stdout.flush()
    try:
        python = own_python()
        os.execve(python, [python, "-I", "-m", *program], env)
    except OSError as error:
        raise _cannot_run(error) from None


def own_python() -> str:
    """Return pyworker's Python by the name that it still has once its virtual environment is made anew by another one.

    A script that pip wrote may have been run by `bin/python3.11`. What starts the next daemon must find that.
    """
    plain = os.path.join(os.path.dirname(sys.executable), "python")
    if sys.prefix != sys.base_prefix and os.path.exists(plain) and os.path.samefile(plain, sys.executable):
        return plain
    return sys.executable


def _cannot_run(error: OSError) -> PyworkerError:
    message = f"cannot run pyworker's Python, {sys.executable}: {os.strerror(error.errno or 0)}"
    is_closed = error.errno in (errno.EACCES, errno.ENOENT)
    hint = (
        f"namei -l {quote(sys.executable)}   shows what this user may not enter"
        if is_closed
        else "check ulimit -Hn and -u"
    )
    return PyworkerError(message, hint=hint, code="unavailable")


def _start(home: str, deadline: Deadline) -> int:
    """Start a guardian; return its pid once it answers, 0 when another holds the home."""
    check_kernel()
    check_installation()
    reads, writes = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    words = os.memfd_create("pyworker-start", os.MFD_CLOEXEC)  # what it says before it has a log of its own
    try:
        argv = [own_python(), "-I", "-m", "pyworker.guardian", "--home", home, "--notify-fd", str(_NOTIFY)]
        env = {k: v for k, v in before_activation().items() if _KEPT.match(k)}
        keep_from_exec()  # a lock that the shell holds open would be held for as long as the daemon lives
        try:
            pid = spawn(argv, env, {0: null, 1: null, 2: words, _NOTIFY: writes})
        except OSError as error:
            raise _cannot_run(error) from None
        os.close(writes)
        writes = -1
        answer = _read(reads, deadline)
        if answer == b"ok\n":
            return pid
        return _not_started(home, pid, answer, read_whole(words).decode("utf-8", "replace"))
    finally:
        for fd in (reads, writes, null, words):
            if fd >= 0:
                os.close(fd)


def _read(fd: int, deadline: Deadline) -> bytes:
    answer = b""
    while not answer.endswith(b"\n"):
        if (left := deadline.left()) < 0:
            break
        if not ready(fd, select.POLLIN, min(left, LOOK)):
            continue
        data = os.read(fd, 65536)
        if not data:
            break
        answer += data
    return answer


def _not_started(home: str, pid: int, answer: bytes, stderr: str) -> int:
    """Return 0 when another guardian holds the home; raise PyworkerError for everything else."""
    error: dict[str, object] = {}
    try:
        parsed = json.loads(answer)
        error = parsed if isinstance(parsed, dict) else {}
    except ValueError:
        pass
    if error:
        os.waitpid(pid, 0)  # it says so with its last breath
        code = error.get("exit")
        if code == Exit.BUSY:
            return 0
        raise PyworkerError(
            f"The pyworker daemon did not start: {error.get('error')}",
            hint=str(error.get("hint") or ""),
            code="daemon_not_started",
            exit=Exit(code) if isinstance(code, int) and code in set(Exit) else Exit.UNAVAILABLE,
        )
    if answer or not _ended(pid):
        raise _too_slow(home)
    how = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if how == Exit.BUSY:
        return 0
    last = stderr.strip() or "it printed nothing"
    raise PyworkerError(
        f"The pyworker daemon did not start: its guardian ended with {'code' if how >= 0 else 'signal'} {abs(how)}.\n{last}",
        hint=f"try it by hand: {quote(sys.executable)} -I -m pyworker.guardian --home {quote(home)}",
        code="daemon_not_started",
    )


def _ended(pid: int) -> bool:
    """True when a child has ended. Its pipe is closed a moment before that, so there is patience here."""
    pidfd = os.pidfd_open(pid)
    try:
        return is_gone(pidfd, 2.0)
    finally:
        os.close(pidfd)


def _too_slow(home: str) -> PyworkerError:
    return PyworkerError(
        f"The pyworker daemon (home {home}) did not answer within {START_TIME:g} s of being started.",
        hint="the machine may be overloaded: try again; or look who holds it: fuser "
        + quote(os.path.join(home, LOCK_FILE)),
        code="unavailable",
    )

"""Spawning without fork; pidfds; exit statuses."""

from __future__ import annotations

import ast
import errno
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.unix import process
from pyworker.unix.process import (
    UNKNOWN,
    ExitStatus,
    alive_at,
    collect,
    given,
    groups_with_others,
    is_gone,
    kill_group,
    kill_rest_of_session,
    kill_session,
    last_status,
    pidfd_pid,
    send_signal,
    sessions,
    sessions_with_others,
    spawn,
    spawn_watched,
    time_without_cpu,
    zombie_status,
)
from tests.support.descriptors import open_fds
from tests.support.pyworker import KERNEL
from tests.support.wait import wait_until


@pytest.mark.parametrize("argv", [["--home"], ["--home", "/h", "x"], ["x"], ["--what", "1"]])
def test_what_is_no_option_with_a_value_is_refused(argv: list[str]) -> None:
    with pytest.raises(ValueError):
        given(argv, "--home", "--fd")


def test_options_may_be_left_out() -> None:
    assert given(["--fd", "3"], "--home", "--fd") == {"--fd": "3"}
    assert given([], "--home") == {}


def wait_for(pidfd: int) -> ExitStatus:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000), "the process does not end"
    status = collect(pidfd)
    assert status is not None
    return status


def run(code: str, fds: dict[int, int] | None = None) -> tuple[int, int]:
    pid = spawn([sys.executable, "-I", "-c", code], {"PATH": os.defpath}, fds or {})
    return pid, os.pidfd_open(pid)


def test_what_python_compiles_in_a_program_of_ours_is_for_every_user_of_an_installation(tmp_path: Path) -> None:
    (tmp_path / "imported.py").touch(0o644)
    before = os.umask(0o077)
    try:
        code = f"import sys; sys.path.append({str(tmp_path)!r}); import imported"
        _, pidfd = spawn_watched([sys.executable, "-I", "-c", code], {"PATH": os.defpath}, {})
        wait_for(pidfd)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    (compiled,) = tmp_path.glob("__pycache__/*")
    assert (compiled.stat().st_mode & 0o777, compiled.parent.stat().st_mode & 0o777) == (0o644, 0o755)


def test_a_program_that_cannot_be_watched_is_not_left_running_nor_unreaped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def pidfd_open(pid: int) -> int:
        asked.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    with pytest.raises(OSError, match="Too many open files"):
        spawn_watched([sys.executable, "-I", "-c", "import signal; signal.pause()"], {}, {})
    with pytest.raises(ChildProcessError):
        os.waitpid(asked[0], os.WNOHANG)


@pytest.mark.parametrize("code", [0, 1, 78, 255])
def test_exit_code_is_known(code: int) -> None:
    _, pidfd = run(f"import os; os._exit({code})")
    assert wait_for(pidfd) == ExitStatus(code, None)
    os.close(pidfd)


def test_signal_is_known_and_a_dead_one_takes_none() -> None:
    pid, pidfd = run("import signal; signal.pause()")
    assert pidfd_pid(pidfd) == pid
    assert not is_gone(pidfd)
    assert send_signal(pidfd, signal.SIGKILL)
    assert wait_for(pidfd) == ExitStatus(None, signal.SIGKILL)
    assert is_gone(pidfd)
    assert not send_signal(pidfd, signal.SIGTERM)
    assert pidfd_pid(pidfd) == 0
    assert collect(pidfd) == UNKNOWN
    os.close(pidfd)


def test_what_keeps_its_number_in_a_child_takes_no_second_one_here() -> None:
    """Else a guardian could be given no more than half of what there may be."""
    reader, writer = os.pipe()
    last = os.dup(writer)
    os.close(writer)  # for the pidfd
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
    try:
        _, pidfd = run(f"import os; os.write({last}, b'here')", {last: last})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert wait_for(pidfd) == ExitStatus(0, None)
    assert os.read(reader, 9) == b"here"
    for fd in (reader, last, pidfd):
        os.close(fd)


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the fd of the listing
        return False


def test_child_has_the_fds_it_was_given_and_no_others() -> None:
    reader, writer = os.pipe()
    others = os.pipe()
    inherited = {int(n) for n in os.listdir("/proc/self/fd") if int(n) > 2 and is_inheritable(int(n))}  # of a shell
    code = """
import contextlib, os
found = {}
for number in range(300):
    with contextlib.suppress(OSError):
        found[number] = os.fstat(number).st_ino
os.write(200, repr(found).encode())
"""
    above = max(others) + 1  # numbers that are free here: copies on the way may lie on them
    down = {above + n: (writer, others[0])[n % 2] for n in reversed(range(10))}
    try:
        _, pidfd = run(code, {200: writer, 0: 0, 1: 1, 2: 2, **down, writer: others[0], others[0]: writer})
        wait_for(pidfd)
        os.close(pidfd)
        found = ast.literal_eval(os.read(reader, 4096).decode())
        assert set(found) - inherited == {0, 1, 2, 200, writer, others[0], *down} - inherited
        ours, other = os.fstat(writer).st_ino, os.fstat(others[0]).st_ino
        assert (found[200], found[writer], found[others[0]]) == (ours, other, ours)  # the two have changed places
        assert found == found | {number: os.fstat(fd).st_ino for number, fd in {0: 0, 1: 1, 2: 2, **down}.items()}
    finally:
        for fd in (reader, writer, *others):
            os.close(fd)


def test_child_leads_its_own_session_and_its_group_can_be_killed() -> None:
    reader, writer = os.pipe()
    code = "import os, signal, sys\nos.fork()\nos.write(1, b'x')\nsignal.pause()"
    pid, pidfd = run(code, {1: writer, 2: 2})
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    assert os.read(reader, 1) == b"x"
    assert os.getsid(pid) == pid
    kill_group(pid, signal.SIGKILL)
    assert wait_for(pidfd) == ExitStatus(None, signal.SIGKILL)
    assert os.read(reader, 1) == b""  # the grandchild is gone too
    os.close(reader)
    os.close(pidfd)
    kill_group(pid, signal.SIGKILL)  # gone already: no error


def test_child_starts_with_default_signals() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _, pidfd = run("import os, signal; os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)")
        assert wait_for(pidfd) == ExitStatus(0, None)
        os.close(pidfd)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_status_of_a_zombie_is_read_without_reaping_it() -> None:
    pid, pidfd = run("import sys; sys.exit(3)")
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000), "the process does not end"
    assert collect(pidfd, reap=False) == ExitStatus(3, None)
    assert zombie_status(pid, pidfd) == (ExitStatus(3, None), os.getpid())
    assert zombie_status(os.getpid(), pidfd) is None  # it runs
    assert collect(pidfd) == ExitStatus(3, None)
    assert zombie_status(pid, pidfd) is None
    os.close(pidfd)


REAPS = """
import os, sys
pid = os.fork()
if not pid:
    sys.stdin.read(1)  # the test has a pidfd by now
    {how}
sys.stdout.write(f"{{pid}}\\n"), sys.stdout.flush()
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(
    ("how", "status"), [("os._exit(7)", ExitStatus(7, None)), ("os.kill(os.getpid(), 9)", ExitStatus(None, 9))]
)
def test_how_a_process_ended_that_somebody_else_has_reaped(how: str, status: ExitStatus) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", REAPS.format(how=how)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        assert last_status(pidfd) is None  # it runs
        parent.communicate(b"x")
    try:
        found = last_status(pidfd)
        if found is None and KERNEL < (6, 15):
            pytest.skip("this kernel does not tell (PIDFD_GET_INFO with the exit code: Linux 6.15)")
        assert found == status
        assert pidfd_pid(pidfd) == 0
    finally:
        os.close(pidfd)


def test_who_shares_a_cpu_has_waited_for_it() -> None:
    cpu = min(os.sched_getaffinity(0))
    busy = [run(f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass") for _ in range(2)]
    try:
        for pid, _ in busy:
            wait_until(lambda pid=pid: time_without_cpu(pid) > 0.05, 30, "it to have waited")
    finally:
        for _, pidfd in busy:
            send_signal(pidfd, signal.SIGKILL)
            wait_for(pidfd)
            os.close(pidfd)
    assert time_without_cpu(busy[0][0]) == 0.0  # it is gone


def test_a_group_has_others_until_all_but_its_leader_have_ended() -> None:
    pid, pidfd = run("import subprocess, time\nsubprocess.Popen(['sleep', '60'])\ntime.sleep(60)")
    try:
        wait_until(lambda: pid in groups_with_others(), 30, "the other one")
        assert os.getpid() not in groups_with_others() - {os.getpgrp()}
        send_signal(pidfd, signal.SIGKILL)  # a leader that is a zombie still has its group
        select.select([pidfd], [], [], 30)
        assert pid in groups_with_others()
    finally:
        kill_group(pid, signal.SIGKILL)
    wait_until(lambda: pid not in groups_with_others(), 30, "its end")
    wait_for(pidfd)


def test_who_has_ended_is_nobody_though_it_is_not_reaped() -> None:
    reader, writer = os.pipe()
    code = "import os, time\nchild = os.fork()\nif not child: os._exit(0)\nos.write(1, b'%d' % child)\ntime.sleep(60)"
    pid, pidfd = run(code, {1: writer})
    os.close(writer)
    with open(reader, "rb", buffering=0) as told:
        child = int(told.read(20))
    try:
        wait_until(lambda: process.state(child) == "Z", 30, "its end")
        assert os.getpgid(child) == pid
        assert pid not in groups_with_others() | sessions_with_others()
    finally:
        kill_group(pid, signal.SIGKILL)
        wait_for(pidfd)
        os.close(pidfd)


def test_a_session_ends_with_those_that_have_left_its_leaders_group() -> None:
    """As `timeout` does, and what a shell starts after `set -m`."""
    pid, pidfd = run("import subprocess, time\nfor timeout in [], ['timeout', '60']: subprocess.Popen([*timeout, 'sleep', '60'])\ntime.sleep(60)")
    try:
        wait_until(lambda: pid in sessions() and pid in groups_with_others(), 30, "the other ones")
        send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 30)
        assert pid in sessions_with_others()
    finally:
        kill_session(pid, signal.SIGKILL)
    wait_until(lambda: pid not in sessions_with_others(), 30, "their end")
    wait_for(pidfd)
    kill_session(pid, signal.SIGKILL)  # gone already: no error
    os.close(pidfd)


def test_in_a_session_each_is_signalled_once_and_nobody_who_is_of_another_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    pid, pidfd = run("import subprocess, time\nsubprocess.Popen(['timeout', '60', 'sleep', '60'])\ntime.sleep(60)")
    stranger, other = run("import signal; signal.pause()")
    told: list[int] = []
    try:
        wait_until(lambda: len(sessions().get(pid, ())) == 2, 30, "timeout and what it has started")
        first, second = sessions()[pid]
        listings = iter([{first, stranger}, {first, second, stranger}])  # one that has just been forked; a number used again
        before = len(open_fds())
        with monkeypatch.context() as patch:
            patch.setattr(process, "sessions", lambda: {pid: next(listings)})
            patch.setattr(process, "send_signal", lambda pidfd, _: told.append(pidfd_pid(pidfd)))
            kill_session(pid, signal.SIGCONT)
        assert told == [first, second]
        assert len(open_fds()) == before
    finally:
        kill_session(pid, signal.SIGKILL)
        send_signal(other, signal.SIGKILL)
        for each in pidfd, other:
            wait_for(each)
            os.close(each)


def test_what_is_left_of_a_session_whose_leader_is_reaped_is_known_by_who_was_started_while_that_ran() -> None:
    pid, pidfd = run("import subprocess, time\nsubprocess.Popen(['timeout', '60', 'sleep', '60'])\ntime.sleep(60)")
    try:
        wait_until(lambda: pid in sessions_with_others() - groups_with_others(), 30, "the other ones")
        born = alive_at(pidfd)
        wait_until(lambda: alive_at(pidfd) > born + 0.05, 30, "a time for sure after their birth")
        ran = alive_at(pidfd)
        send_signal(pidfd, signal.SIGKILL)
        wait_for(pidfd)
        assert not alive_at(pidfd)
        # whoever is of a session of that number may be another's, when all of them were started later
        for later in (0.0, born - 60.0):
            assert not kill_rest_of_session(pid, signal.SIGKILL, later)
        before = len(open_fds())
        assert kill_rest_of_session(pid, 0, ran)
        assert len(open_fds()) == before
        assert pid in sessions_with_others()
        kill_rest_of_session(pid, signal.SIGKILL, ran)
        wait_until(lambda: not kill_rest_of_session(pid, 0, ran), 30, "their end")
    finally:
        for member in sessions().get(pid, ()):
            os.kill(member, signal.SIGKILL)
        os.close(pidfd)

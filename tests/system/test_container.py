"""`pyworker run` as process 1. The cases are those of tini's tests, written anew, in a pid namespace of our own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.foreground import Foreground, foreground
from tests.support.pyworker import LONG, Pyworker
from tests.support.wait import wait_until

UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]


def unshare_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=30, check=False)
    return done.returncode == 0


@pytest.fixture
def box(pw: Pyworker) -> Iterator[Pyworker]:
    """Where `pyworker run` is process 1, without a folder to write to."""
    if not unshare_works():
        pytest.skip("no pid namespaces here (unshare -rpf): not allowed in this container, or unshare is missing")
    home = pw.environ["PYWORKER_HOME"]
    pw.environ["PYWORKER_HOME"] = "/proc/nowhere/home"
    yield pw
    pw.environ["PYWORKER_HOME"] = home


def guardian(one: Foreground, pw: Pyworker) -> int:
    """The pid, from outside, of what is process 1 inside."""
    found = [p.pid for p in pw.processes() if "pyworker guardian" in " ".join(p.cmdline())]
    assert len(found) == 1, found
    with open(f"/proc/{found[0]}/status") as status:
        assert re.search(r"^NSpid:\s+\d+\s+1$", status.read(), re.MULTILINE)
    return found[0]


def children_of(pid: int) -> dict[int, str]:
    """Pids and states of a process's children."""
    found = {}
    with open(f"/proc/{pid}/task/{pid}/children") as listing:
        for child in listing.read().split():
            try:
                with open(f"/proc/{child}/stat") as stat:
                    found[int(child)] = stat.read().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_each_wish_to_stop_is_heard_by_process_1(box: Pyworker, number: signal.Signals) -> None:
    with foreground(box, "--", "sleep", "1000", prefix=UNSHARE) as one:
        one.running()
        os.kill(guardian(one, box), number)
        assert one.ends() == 0
        assert "sleep stopped" in one.err


def test_signals_without_a_meaning_do_not_end_process_1(box: Pyworker) -> None:
    with foreground(box, "--", "sleep", "1000", prefix=UNSHARE) as one:
        one.running()
        pid = guardian(one, box)
        fatal_for_us = {signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
        to_programs = {signal.SIGUSR1, signal.SIGUSR2}
        faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}
        for number in set(signal.Signals) - fatal_for_us - to_programs - faults:
            os.kill(pid, number)
        os.kill(pid, signal.SIGTERM)
        assert one.ends() == 0
        assert "exited" not in one.err


def test_a_hup_reloads(box: Pyworker) -> None:
    with foreground(box, "--", "sleep", "1000", prefix=UNSHARE) as one:
        one.running()
        os.kill(guardian(one, box), signal.SIGHUP)
        one.wait_for("done in")
        os.kill(guardian(one, box), signal.SIGTERM)
        assert one.ends() == 0


def test_orphans_are_reaped(box: Pyworker) -> None:
    # each of the 20 outlives its parent, so that process 1 gets it, and ends by itself
    script = "for i in $(seq 20); do sh -c 'sleep 0.2 &'; done; echo all; exec sleep 1000"
    with foreground(box, "--", "sh", "-c", script, prefix=UNSHARE) as one:
        one.wait_out("all")
        pid = guardian(one, box)
        one.running()
        # the daemon, the logger and the one worker; whoever else is there has ended and is on its way out
        wait_until(lambda: len(children_of(pid)) == 3, LONG, "the orphans to be reaped")
        assert "Z" not in children_of(pid).values()
        os.kill(pid, signal.SIGTERM)
        assert one.ends() == 0


def test_a_worker_s_children_do_not_survive_it(box: Pyworker) -> None:
    with foreground(box, "--", "sh", "-c", "sleep 1000 & echo there; wait", prefix=UNSHARE) as one:
        one.wait_out("there")
        one.running()
        os.kill(guardian(one, box), signal.SIGTERM)
        assert one.ends() == 0
        wait_until(lambda: not box.processes(), LONG, "nothing to be left")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143)])
def test_the_exit_code_comes_out_of_the_namespace(box: Pyworker, script: str, code: int) -> None:
    with foreground(box, "--restart", "never", "--", "sh", "-c", script, prefix=UNSHARE) as one:
        assert one.ends() == code

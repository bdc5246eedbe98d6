"""The short way into the app's interpreter: everything as it was asked for, or the launcher, which says what cannot be."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.daemon.bundle import enter_text
from pyworker.errors import Exit
from pyworker.unix.fds import memfd

SHOW = """
import json, os, resource, sys
umask = os.umask(0)
print(json.dumps([os.getcwd(), umask, resource.getrlimit(resource.RLIMIT_NOFILE), dict(os.environ), sys.argv[1:], os.listdir("/proc/self/fd")]))
"""


def entered(*words: str | int) -> subprocess.CompletedProcess[str]:
    fd = memfd("pyworker-enter", "".join(f"{word}\0" for word in words).encode())
    try:
        command = [sys.executable, "-I", "-S", "-c", enter_text(), str(fd)]
        environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "OURS": "1"}
        return subprocess.run(command, env=environ, pass_fds=[fd], capture_output=True, text=True, check=False)
    finally:
        os.close(fd)


def test_folder_umask_limit_arguments_and_environment_are_those_that_were_given(tmp_path: Path) -> None:
    folder = tmp_path / "ü b"
    folder.mkdir()
    command = [sys.executable, "-X", "utf8", "-I", "-c", SHOW, "", "two words"]
    env = ["LANG=C.UTF-8", "A=ü=1", "B=", "C.D=a\nb", "PYTHONHOME=/nowhere"]
    done = entered(str(folder), 0o027, 100, 3, len(command), *command, *env)
    assert done.stderr == ""
    cwd, umask, limit, environ, argv, fds = json.loads(done.stdout)
    assert (cwd, umask) == (str(folder), 0o027)
    assert limit == [100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]]
    assert environ == {"LANG": "C.UTF-8", "A": "ü=1", "B": "", "C.D": "a\nb", "PYTHONHOME": "/nowhere"}
    assert argv == ["", "two words"]
    assert sorted(fds) == ["0", "1", "2", "3"]  # 3: the folder that it lists


def test_without_a_limit_that_of_the_daemon_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", SHOW]
    done = entered(str(tmp_path), 0o022, "", 3, len(command), *command)
    assert json.loads(done.stdout)[2] == list(resource.getrlimit(resource.RLIMIT_NOFILE))


def test_a_limit_above_the_hard_one_is_that(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = [sys.executable, "-I", "-c", SHOW]
    done = entered(str(tmp_path), 0o022, 10**9, 3, len(command), *command)
    assert json.loads(done.stdout)[2] == [hard, hard]


@pytest.mark.parametrize(("folder", "python"), [("/nowhere", sys.executable), ("/", "/nowhere"), ("/", "/dev/null")])
def test_what_cannot_be_done_is_left_to_the_launcher(folder: str, python: str) -> None:
    nothing = memfd("pyworker-spec", b"")
    os.set_inheritable(nothing, True)
    try:
        fd = memfd("pyworker-enter", "".join(f"{word}\0" for word in (folder, 0o022, "", nothing, 1, python)).encode())
        command = [sys.executable, "-I", "-S", "-c", enter_text(), str(fd)]
        done = subprocess.run(command, pass_fds=[fd, nothing], capture_output=True, text=True, check=False)
        os.close(fd)
    finally:
        os.close(nothing)
    assert done.returncode == Exit.FAILED  # a daemon of another version may have written it: it is tried again
    assert "cannot read what to start: not JSON" in done.stderr
    assert "pyworker daemon upgrade" in done.stderr

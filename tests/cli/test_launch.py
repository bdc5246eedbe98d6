from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyworker.cli.launch import become, ensure_daemon, own_python
from pyworker.errors import PyworkerError
from tests.support import seccomp
from tests.support.cli import environment
from tests.support.pyworker import alive
from tests.support.wait import wait_until

STAND_IN = Path(__file__).with_name("stand_in_guardian.py")


@pytest.fixture
def leaves(home: str) -> Iterator[str]:
    """Have the stand-ins of this home leave after the test, and wait until they have."""
    yield home
    boots = Path(home, "boots")
    if boots.exists():
        Path(home, "leave").touch()
        for pid in map(int, boots.read_text().split()):
            wait_until(lambda pid=pid: not alive(pid), what="the stand-in to leave")


def launch(home: str, tmp_path: Path, mode: str = "serve", **more: str) -> subprocess.Popen[str]:
    """Start a program that calls ensure_daemon with the stand-in for an interpreter."""
    wrapper = tmp_path / f"python-{mode}"
    if not wrapper.exists():
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} {mode} "$@"\n')
        wrapper.chmod(0o755)
    code = (
        "import sys; from pyworker.cli import launch; from pyworker.errors import PyworkerError\n"
        f"sys.executable = {str(wrapper)!r}\n"
        f"try: print(launch.ensure_daemon({home!r}))\n"
        "except PyworkerError as e: print(int(e.exit), e.message, '|', e.hint)"
    )
    env = environment(home, SECRET="hidden", LC_TIME="C.UTF-8", PYTHONPATH="/nowhere") | more
    del env["PYTHONPATH"]
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**env, "PYTHONHASHSEED": "0"}
    )


def result(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out


def test_the_guardian_gets_a_session_of_its_own_and_a_small_environment(leaves: str, tmp_path: Path) -> None:
    pid = int(result(launch(leaves, tmp_path)))
    seen = json.loads(Path(leaves, "seen").read_text())
    assert (seen["pid"], seen["sid"]) == (pid, pid)
    assert {"PATH", "HOME", "LANG", "LC_TIME", "TZ"} <= seen["env"].keys()
    assert not {"SECRET", "PYTHONHASHSEED", "PYWORKER_HOME"} & seen["env"].keys()
    assert (seen["fds"]["0"], seen["fds"]["1"]) == ("/dev/null", "/dev/null")
    assert result(launch(leaves, tmp_path)) == "0\n"


def test_programs_of_the_environment_that_is_activated_are_not_those_of_other_apps(leaves: str, tmp_path: Path) -> None:
    """They found them until a boot, which has nothing activated."""
    programs = [tmp_path / name / "bin" for name in ("venv", "conda")]
    for folder in programs:
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(sys.executable)
    venv, conda = programs
    env = {"VIRTUAL_ENV": str(venv.parent), "CONDA_PREFIX": str(conda.parent), "PATH": f"{venv}:/usr/bin:{conda}:/bin"}
    result(launch(leaves, tmp_path, **env))
    assert json.loads(Path(leaves, "seen").read_text())["env"]["PATH"] == "/usr/bin:/bin"


def test_twenty_starts_at_once_make_one(leaves: str, tmp_path: Path) -> None:
    starts = [launch(leaves, tmp_path) for _ in range(20)]
    answers = [int(result(process)) for process in starts]
    boots = Path(leaves, "boots").read_text().split()
    assert len(boots) == 1
    assert max(answers) == int(boots[0])
    assert sorted(answers)[:-1] == [0] * 19


def test_a_home_that_is_refused_is_told_with_its_exit_code(home: str, tmp_path: Path) -> None:
    assert result(launch(home, tmp_path, "refuse")) == (
        f"77 The pyworker daemon did not start: {home} is open to others | chmod 700\n"
    )
    assert not os.path.exists(home)


def test_a_guardian_that_crashes_is_told_with_its_last_words(home: str, tmp_path: Path) -> None:
    found = result(launch(home, tmp_path, "crash"))
    assert found.startswith(
        "69 The pyworker daemon did not start: its guardian ended with code 1.\nModuleNotFoundError"
    )
    assert "try it by hand: " in found


@pytest.mark.parametrize(
    "args", [("start", "--name", "one", "--", "sleep", "9"), ("run", "--", "sleep", "9"), ("daemon", "run")]
)
@pytest.mark.parametrize(
    ("number", "call"), [(seccomp.PIDFD_OPEN, "pidfd_open"), (seccomp.PIDFD_SEND_SIGNAL, "pidfd_send_signal")]
)
def test_a_kernel_or_sandbox_in_which_nothing_can_be_watched_is_named(
    number: int, call: str, args: tuple[str, ...], home: str, tmp_path: Path
) -> None:
    filtered = [sys.executable, "-m", "tests.support.seccomp", str(number), "--"]
    env = environment(home, PYTHONPATH=os.getcwd())
    if subprocess.run([*filtered, "true"], env=env, check=False, timeout=60).returncode:
        pytest.skip("no seccomp filters here")
    command = [*filtered, sys.executable, "-m", "pyworker", *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (69, "")
    assert f"error: pyworker cannot run here: {call}: Function not implemented\n" in done.stderr
    assert "Linux 5.4" in done.stderr
    assert not os.path.exists(home)


@pytest.mark.parametrize(("prefix", "other", "name"), [("/v", False, "python"), ("/usr", False, "python3.11"), ("/v", True, "python3.11")])
def test_pyworkers_python_is_named_as_it_will_be_in_a_venv_that_another_one_makes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, other: bool, name: str
) -> None:
    (tmp_path / "python3.11").touch()
    if other:
        (tmp_path / "python").touch()
    else:
        (tmp_path / "python").symlink_to("python3.11")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.11"))
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert own_python() == str(tmp_path / name)


@pytest.fixture(scope="module")
def of_pythonpath(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A pyworker that its interpreter finds by PYTHONPATH alone."""
    python = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python], check=True, timeout=60)
    path = f"PYTHONPATH={os.getcwd()}:{sysconfig.get_path('purelib')}"
    return ["env", path, str(python / "bin/python"), "-m", "pyworker"]


@pytest.mark.parametrize(
    "args", [("start", "--name", "one", "--", "sleep", "9"), ("run", "--", "sleep", "9"), ("daemon", "run")]
)
def test_a_pyworker_that_its_own_processes_do_not_find_is_told_where_to_be(
    args: tuple[str, ...], home: str, of_pythonpath: list[str]
) -> None:
    """pip install --user, or PYTHONPATH: an isolated interpreter looks in neither."""
    env = environment(home)
    done = subprocess.run([*of_pythonpath, *args], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (69, "")
    assert f"error: pyworker cannot run here: its own processes would not find it in {os.getcwd()}\n" in done.stderr
    assert "python3 -m venv .venv" in done.stderr
    assert not os.path.exists(home)


@pytest.mark.parametrize(
    ("python", "step"), [("gone/python3", "namei -l {}   shows what this user may not enter"), ("closed", "namei -l {}   shows what this user may not enter"), ("no-program", "check ulimit -Hn and -u")]
)
def test_a_python_that_cannot_be_run_any_more_is_named(
    python: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has given up root's rights may not enter where it lies: it was called a bug of pyworker."""
    (tmp_path / "closed").touch(0o600)
    (tmp_path / "no-program").write_text("x")
    (tmp_path / "no-program").chmod(0o700)
    path = str(tmp_path / python)
    monkeypatch.setattr(sys, "executable", path)
    for run in (lambda: become(["pyworker.guardian"]), lambda: ensure_daemon(str(tmp_path / "home"))):
        with pytest.raises(PyworkerError, match=f"cannot run pyworker's Python, {path}: ") as caught:
            run()
        assert caught.value.hint == step.format(path)


def test_a_doctor_sees_that_processes_of_ours_would_not_find_pyworker(home: str, of_pythonpath: list[str]) -> None:
    command = [*of_pythonpath, "doctor"]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "✗ pyworker cannot run here: its own processes would not find it" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(
    "args", [("start", "--name", "one", "--", "sleep", "9"), ("run", "--", "sleep", "9"), ("daemon", "run")]
)
def test_a_place_without_dev_null_is_named(args: tuple[str, ...], home: str) -> None:
    """As a chroot without /dev: it was called a bug of pyworker."""
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"]
    env = environment(home)
    if subprocess.run([*hidden, "true"], env=env, check=False, timeout=60, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    command = [*hidden, sys.executable, "-m", "pyworker", *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (69, "")
    assert "error: pyworker cannot run here: /dev/null: No such file or directory\n" in done.stderr

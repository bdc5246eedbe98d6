from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyworker.guardian import boot
from pyworker.guardian.boot import BootError, bind_control, take_lock


def test_a_lock_that_cannot_be_opened_is_not_blamed_on_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # a read-only file system fails in the same call
    home = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BootError) as caught:
        take_lock(home)
    os.close(home)
    assert "a folder that can be written" in caught.value.hint


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (resource.RLIMIT_NOFILE, "only 10240 files may be open"),
        (resource.RLIMIT_FSIZE, "a file may hold 10240 bytes at most, and pyworker needs 16 MB or more"),
    ],
)
def test_a_limit_with_which_nothing_could_be_started_is_said_before_anything_is(
    limit: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "_FEWEST_FILES", 20_000)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (10240,) * 2 if asked == limit else (resource.RLIM_INFINITY,) * 2)
    with pytest.raises(BootError) as caught:
        boot.check_limits()
    assert caught.value.message.startswith(said)
    monkeypatch.setattr(resource, "getrlimit", lambda _asked: (resource.RLIM_INFINITY,) * 2)
    boot.check_limits()


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.EACCES, "a folder that can be written"),
        (errno.EROFS, "its disk is read-only"),
        (errno.ENOSPC, "free some space"),
        (errno.EOPNOTSUPP, "must support sockets"),
    ],
)
def test_a_control_socket_that_cannot_be_made_is_blamed_on_what_refused_it(
    number: int, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)  # root may write everywhere
    home = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BootError) as caught:
        bind_control(home)
    os.close(home)
    assert step in caught.value.hint


def test_a_command_that_looks_whether_a_home_is_locked_keeps_no_guardian_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, looks = (os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(2))
    fcntl.flock(looks, fcntl.LOCK_SH)
    monkeypatch.setattr("pyworker.guardian.boot.time.sleep", lambda _: fcntl.flock(looks, fcntl.LOCK_UN))
    os.close(take_lock(home))
    os.close(home)
    os.close(looks)


def test_whoever_starts_a_guardian_that_cannot_make_its_daemon_is_told_at_once_and_it_leaves(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    code = "import sys; from pyworker.guardian.__main__ import main; sys.exit(main(sys.argv[1:], dict.fromkeys(['daemon', 'logger'], ['/none'])))"
    reads, writes = os.pipe()
    guardian = [sys.executable, "-c", code, "--home", str(home), "--notify-fd", str(writes)]
    assert subprocess.run(guardian, pass_fds=[writes], timeout=60).returncode == 69
    os.close(writes)
    with open(reads, "rb") as answer:
        assert json.load(answer)["error"].startswith("cannot make its process: ")
    assert not (home / "control.sock").exists()


@pytest.mark.parametrize(
    ("removal", "left"),
    [("pass", "before, after"), ("shutil.rmtree('logs')", ", after"), ("shutil.rmtree('../home'); os.makedirs('../home/logs')", None)],
)
def test_the_own_log_is_made_anew_where_it_was_removed_and_not_in_a_home_that_is_another_s(
    tmp_path: Path, removal: str, left: str | None
) -> None:
    home = tmp_path / "home"
    (home / "logs").mkdir(parents=True)
    home.chmod(0o700)
    log = home / "logs/pyworker.log"
    code = (
        "import os, shutil; from pyworker.guardian import boot\n"
        "home = os.open('.', os.O_RDONLY); boot.open_own_log(home); os.write(2, b'before')\n"
        f"os.chdir('{home}'); {removal.replace('../home', str(home))}\n"
        "boot.renew_own_log(home); os.write(2, b', after')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=home, check=True, timeout=60)
    assert (log.read_text() if log.exists() else None) == left

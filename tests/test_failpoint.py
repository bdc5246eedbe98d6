"""A failpoint does what its file says, once, and nothing when no folder arms it."""

from __future__ import annotations

import errno
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from pyworker import failpoint
from tests.support.wait import wait_until


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(failpoint, "_folder", str(tmp_path))
    return tmp_path


def test_point_without_a_file_does_nothing(folder: pathlib.Path) -> None:
    failpoint.hit("save.before_rename")
    assert list(folder.iterdir()) == []


def test_unarmed_process_looks_at_no_folder(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "save.before_rename").write_text("raise")
    monkeypatch.setattr(failpoint, "_folder", "")
    failpoint.hit("save.before_rename")


def test_raise_raises_once(folder: pathlib.Path) -> None:
    (folder / "save.before_rename").write_text("raise")
    with pytest.raises(failpoint.Unexpected):
        failpoint.hit("save.before_rename")
    failpoint.hit("save.before_rename")
    assert (folder / "save.before_rename.hit").exists()


def test_error_of_the_system_lasts_when_it_is_to(folder: pathlib.Path) -> None:
    (folder / "save.before_rename").write_text("raise:ENOSPC always")
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            failpoint.hit("save.before_rename")
        assert caught.value.errno == errno.ENOSPC
    (folder / "save.before_rename").unlink()
    failpoint.hit("save.before_rename")


def test_sleep_sleeps(folder: pathlib.Path) -> None:
    (folder / "save.before_rename").write_text("sleep:0.05")
    before = time.monotonic()
    failpoint.hit("save.before_rename")
    assert time.monotonic() - before >= 0.05


def test_hold_holds_until_it_is_let_go(folder: pathlib.Path) -> None:
    (folder / "save.before_rename").write_text("hold")
    held = threading.Thread(target=failpoint.hit, args=("save.before_rename",))
    held.start()
    wait_until((folder / "save.before_rename.hit").exists, what="it to be reached")
    assert held.is_alive()
    (folder / "save.before_rename.hit").unlink()
    held.join(30)
    assert not held.is_alive()


def test_kill_kills_and_the_environment_arms(tmp_path: pathlib.Path) -> None:
    (tmp_path / "save.before_rename").write_text("kill")
    code = "from pyworker import failpoint; failpoint.hit('save.before_rename'); print('lives')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYWORKER_FAILPOINTS": str(tmp_path)}, capture_output=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-9, b"")

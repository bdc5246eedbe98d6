"""`scale --save`: how the new text comes into the file."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from pyworker.cli import savescale
from pyworker.cli.options import Settings
from pyworker.errors import PyworkerError


def test_who_cannot_be_alone_in_time_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    settings = Settings(False, False, False, None, False, 0.0, str(tmp_path))
    with savescale._alone(settings, "api"), pytest.raises(PyworkerError, match="another scale --save has not ended"):
        savescale._alone(settings, "api").__enter__()
    with savescale._alone(settings, "api"):
        pass


def test_a_time_in_which_nobody_ran_is_none_in_which_another_one_could_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    settings = Settings(False, False, False, None, False, 10.0, str(tmp_path))
    now, locks = 1000.0, iter([False, False, True])

    def stand_still(_: float) -> None:
        nonlocal now
        now += 60.0

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", stand_still)
    monkeypatch.setattr(savescale, "lock_directory", lambda fd: next(locks))
    with savescale._alone(settings, "api"):
        assert not list(locks)


def test_nobody_can_open_the_new_file_before_it_has_the_rights_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "app.toml"
    config.write_text("old")
    config.chmod(0o640)
    modes: list[int] = []
    fchmod = os.fchmod

    def spy(fd: int, mode: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", spy)
    before = os.umask(0)
    try:
        savescale._change(str(config), lambda _: "new" * 10_000)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert config.read_text() == "new" * 10_000
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["app.toml"]


def test_a_folder_that_is_replaced_by_a_link_meanwhile_leads_to_no_other_file(tmp_path: Path) -> None:
    for folder in ("apps", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "app.toml").write_text(folder)

    def edit(before: str) -> str:
        (tmp_path / "apps").rename(tmp_path / "were")
        (tmp_path / "apps").symlink_to("other")
        return before + " changed"

    savescale._change(str(tmp_path / "apps" / "app.toml"), edit)
    assert (tmp_path / "other" / "app.toml").read_text() == "other"
    assert (tmp_path / "were" / "app.toml").read_text() == "apps changed"
    assert [len(os.listdir(tmp_path / folder)) for folder in ("other", "were")] == [1, 1]


def test_what_came_into_the_place_of_the_file_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / "app.toml").symlink_to("other")
    with pytest.raises(OSError, match="symbolic link"):
        savescale._change(str(tmp_path / "app.toml"), str.upper)
    assert (tmp_path / "app.toml").is_symlink()
    os.mkfifo(tmp_path / "b.toml")
    assert savescale._change(str(tmp_path / "b.toml"), str.upper) is None

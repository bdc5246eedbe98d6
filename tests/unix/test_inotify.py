"""unix/inotify.py: a folder says what changed in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyworker.unix import inotify


@pytest.fixture
def fd() -> Iterator[int]:
    number = inotify.open_inotify()
    yield number
    os.close(number)


def test_writing_moving_making_and_deleting_are_said(fd: int, tmp_path: Path) -> None:
    number = inotify.watch(fd, str(tmp_path))
    assert inotify.read(fd) == []
    (tmp_path / "a").write_text("x")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "d").mkdir()
    (tmp_path / "b").unlink()
    found = inotify.read(fd)
    assert {c.watch for c in found} == {number}
    assert [(c.name, c.is_folder) for c in found] == [
        ("a", False), ("a", False), ("a", False), ("b", False), ("d", True), ("b", False),
    ]  # fmt: skip


def test_what_is_only_read_is_not_said(fd: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    inotify.watch(fd, str(tmp_path))
    (tmp_path / "a").read_text()
    assert inotify.read(fd) == []


def test_a_file_or_nothing_cannot_be_watched_as_a_folder(fd: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(NotADirectoryError):
        inotify.watch(fd, str(tmp_path / "a"))
    with pytest.raises(FileNotFoundError):
        inotify.watch(fd, str(tmp_path / "none"))


def test_a_folder_that_goes_away_is_said_to_be_ignored(fd: int, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    number = inotify.watch(fd, str(tmp_path / "d"))
    (tmp_path / "d").rmdir()
    assert any(c.flags & inotify.IGNORED and c.watch == number for c in inotify.read(fd))

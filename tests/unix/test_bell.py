"""Bells: real files, real inotify."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from pyworker.unix import bell
from tests.support.descriptors import open_fds


def rung(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_every_watcher_is_woken_by_a_ring_and_rings_do_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "bell"
    path.touch()
    ringer = os.open(path, os.O_RDWR)
    watchers = [bell.watch(str(path)) for _ in range(3)]
    try:
        assert not any(rung(fd) for fd in watchers)
        for _ in range(40_000):  # more than the kernel queues events for one watcher (16384)
            bell.ring(ringer)
        for fd in watchers:
            assert rung(fd)
            bell.take(fd)
            assert not rung(fd)
        bell.ring(ringer)
        assert all(rung(fd) for fd in watchers)
        assert path.stat().st_size == 1
    finally:
        for fd in (ringer, *watchers):
            os.close(fd)


def test_rings_are_taken_where_a_read_waits_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program of eventlet's, which waits in os.read whatever the descriptor says of itself."""

    def read(fd: int, size: int, plain: Callable[[int, int], bytes] = os.read) -> bytes:
        assert rung(fd)
        return plain(fd, size)

    path = tmp_path / "bell"
    path.touch()
    ringer, watcher = os.open(path, os.O_RDWR), bell.watch(str(path))
    monkeypatch.setattr(os, "read", read)
    bell.ring(ringer)
    bell.take(watcher)
    bell.take(watcher)
    assert not rung(watcher)
    os.close(ringer)
    os.close(watcher)


def test_a_file_that_is_not_there_is_named_and_no_descriptor_stays(tmp_path: Path) -> None:
    before = open_fds()
    with pytest.raises(FileNotFoundError, match="nothing"):
        bell.watch(str(tmp_path / "nothing"))
    assert open_fds() == before

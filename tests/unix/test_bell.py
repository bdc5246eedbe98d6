"""Bells: real files, real inotify."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from pyworker.unix import bell


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


def test_a_file_that_is_not_there_is_named_and_no_descriptor_stays(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match="nothing"):
        bell.watch(str(tmp_path / "nothing"))
    assert set(os.listdir("/proc/self/fd")) == before

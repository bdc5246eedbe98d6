"""The guardian's clock, and its patience."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.guardian import __main__ as program
from pyworker.guardian.main import AHEAD, Guardian, Times
from pyworker.guardian.store import FdStore


@pytest.mark.parametrize("now", [0.0, 0.2, 4.98, 4.991, 5.0, 1e6 + 0.3])
def test_the_next_tick_is_just_before_a_moment_of_the_daemon_and_never_past(now: float) -> None:
    guardian: Any = SimpleNamespace(_times=Times(tick=5.0))
    Guardian._schedule_tick(guardian, now)
    assert now < guardian._next_tick <= now + 5.0
    assert (guardian._next_tick + AHEAD) % 5.0 == pytest.approx(0.0, abs=1e-6)


def test_each_try_to_take_over_gives_back_what_it_had_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[int] = []

    def prepare(home: int, store: FdStore) -> None:
        opened.append(home)
        if len(opened) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    tmp_path.chmod(0o700)
    monkeypatch.setattr(program, "TAKE_OVER_AGAIN", 0.0)
    monkeypatch.setattr(program, "_prepare", prepare)
    monkeypatch.setattr(program.boot, "open_own_log", lambda home: None)
    home = program._prepare_patiently(str(tmp_path), FdStore({}))
    os.close(home)
    assert opened == [home] * 4  # the same number each time


def test_a_stop_that_is_asked_for_again_while_the_logger_writes_its_last_lines_leaves_it_to_that() -> None:
    """In the foreground: without a daemon to take it, a second one has all left at once."""
    nobody: Any = SimpleNamespace(version="", starts=1)
    guardian: Any = SimpleNamespace(_daemon=nobody, _orders=[signal.SIGTERM], _all_ended=True, _left=False)
    Guardian._order(guardian, signal.SIGINT)
    assert not guardian._left

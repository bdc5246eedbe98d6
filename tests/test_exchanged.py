"""Whether a process is of one version."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyworker import exchanged


@pytest.mark.parametrize(
    ("began", "name", "expected"),
    [
        (-60, "pyworker.new", True),
        (60, "pyworker.new", False),
        (-60, "shop.new", False),
    ],
)
def test_what_is_newer_than_the_process_was_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: float, name: str, expected: bool
) -> None:
    (tmp_path / "new.py").touch()
    monkeypatch.setattr(exchanged, "BEGAN", time.time() + began)
    monkeypatch.setattr(sys, "modules", {name: SimpleNamespace(__file__=str(tmp_path / "new.py"))})
    assert exchanged.is_exchanged() == expected


def test_what_is_missing_was_exchanged_and_what_is_of_the_future_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.py").touch()
    monkeypatch.setattr(time, "time", lambda: 1000.0)  # a clock that was set back
    monkeypatch.setattr(exchanged, "BEGAN", 999.0)
    monkeypatch.setattr(sys, "modules", {"pyworker.new": SimpleNamespace(__file__=str(tmp_path / "new.py")), "pyworker": SimpleNamespace()})
    assert not exchanged.is_exchanged()
    (tmp_path / "new.py").unlink()
    assert exchanged.is_exchanged()

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon import appmetrics


def test_an_app_that_fills_its_folder_does_not_keep_the_daemon_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state" / "api" / "prometheus"
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"counter_{number}.db").touch()
    monkeypatch.setattr(appmetrics, "_MOST", 4)
    resolved: Any = SimpleNamespace(config=SimpleNamespace(name="api", metrics=SimpleNamespace(prometheus=True)))
    appmetrics.begin(str(tmp_path), resolved)
    assert len(list(folder.iterdir())) == 6

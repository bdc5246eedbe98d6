from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon import appmetrics
from tests.support.descriptors import open_fds


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


def test_a_folder_that_cannot_be_given_to_the_apps_user_costs_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home on a file system that knows no owners: each start of the app would take one."""

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "state" / "api").mkdir(parents=True)
    monkeypatch.setattr(os, "fchown", refuse)
    metrics = SimpleNamespace(prometheus=True, opentelemetry=False)
    resolved: Any = SimpleNamespace(
        config=SimpleNamespace(name="api", metrics=metrics), env={}, uid=os.geteuid() + 1, gid=None
    )
    before = open_fds()
    assert appmetrics.environment(str(tmp_path), resolved, 1) == {}
    assert open_fds() == before

"""A log's disk that does not answer costs who asks a moment, and an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.problem import ConfigError
from pyworker.config.schema import AppConfig, LogsConfig
from pyworker.daemon import diagnosis, disks
from pyworker.daemon.sources import NO_ANSWER, make_generation
from tests.daemon.test_diagnosis import line
from tests.support.wait import wait_until


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What a disk waits for that does not answer."""
    monkeypatch.setattr(disks, "PATIENCE", 0.05)
    monkeypatch.setattr(disks, "_late", {})
    answers = threading.Event()
    yield answers
    answers.set()


def test_a_disk_that_hangs_is_an_error_until_it_answers(hung: threading.Event) -> None:
    with pytest.raises(TimeoutError, match=r"its disk does not answer: '/mnt/a/api\.log'"):
        disks.ask("/mnt/a/api.log", hung.wait)
    asked: list[str] = []
    with pytest.raises(TimeoutError):
        disks.ask("/mnt/a/other.log", lambda: asked.append("a"))
    assert asked == []
    assert disks.ask("/mnt/b/api.log", lambda: "b") == "b"
    assert disks.some_are_late()
    hung.set()
    wait_until(lambda: not disks.some_are_late(), what="the disk's answer")
    assert disks.ask("/mnt/a/other.log", lambda: "a") == "a"


def test_what_a_file_s_reading_raises_is_raised(hung: threading.Event, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disks.ask(str(tmp_path / "none"), (tmp_path / "none").read_bytes)


def test_the_death_of_a_worker_whose_log_cannot_be_read_holds_nobody_up(
    hung: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(line(7, b"its last words"))
    with monkeypatch.context() as patched:
        patched.setattr(diagnosis, "_tail", lambda path: b"%r" % hung.wait())
        assert diagnosis.last_lines(str(log), 7) == []
    hung.set()
    wait_until(lambda: diagnosis.last_lines(str(log), 7) == ["its last words"], what="the disk's answer")


def test_an_app_whose_log_is_on_a_disk_that_hangs_is_refused_with_that(
    hung: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.stat

    def of_disk(path: Any, **how: Any) -> os.stat_result:
        if path == "/mnt/a/api.log":
            hung.wait()
        return found(path, **how)

    monkeypatch.setattr(os, "stat", of_disk)
    app = AppConfig("api", command=["sleep", "9"], cwd=str(tmp_path), logs=LogsConfig(file="/mnt/a/api.log"))
    with pytest.raises(ConfigError, match=r"`logs\.file` is /mnt/a/api\.log, and its disk does not answer") as raised:
        make_generation(1, app, str(tmp_path / "app.toml"), None, {})
    assert raised.value.problems[0].code == NO_ANSWER

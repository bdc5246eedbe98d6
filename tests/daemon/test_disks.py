"""A log's disk that does not answer costs who asks a moment, and an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.problem import ConfigError
from pyworker.config.schema import AppConfig, LogsConfig
from pyworker.daemon import diagnosis, disks
from pyworker.daemon.shortage import Shortage
from pyworker.daemon.sources import NO_ANSWER, make_generation
from pyworker.protocol.inherited import WorkerId
from pyworker.unix.process import ExitStatus
from tests.daemon.test_diagnosis import line
from tests.support.hung import Hung
from tests.support.wait import wait_until


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hung]:
    made = Hung()
    monkeypatch.setattr(disks, "Errand", made.errand)
    monkeypatch.setattr(disks, "_late", {})
    monkeypatch.setattr(disks, "spared", set())
    yield made
    made.answers.set()


def test_a_disk_that_hangs_is_an_error_until_it_answers(hung: Hung) -> None:
    with pytest.raises(TimeoutError, match=r"its disk does not answer: '/mnt/a/api\.log'"):
        disks.ask("/mnt/a/api.log", hung.wait)
    asked: list[str] = []
    with pytest.raises(TimeoutError):
        disks.ask("/mnt/a/other.log", lambda: asked.append("a"))
    assert asked == []
    assert disks.ask("/mnt/b/api.log", lambda: "b") == "b"
    assert disks.some_are_late()
    hung.answers.set()
    wait_until(lambda: not disks.some_are_late(), what="the disk's answer")
    assert disks.ask("/mnt/a/other.log", lambda: "a") == "a"


def test_many_folders_of_a_disk_that_hangs_are_not_as_many_seconds(hung: Hung) -> None:
    for number in range(100):
        with pytest.raises(TimeoutError):
            disks.ask(f"/mnt/{number}/api.log", hung.wait)
    assert sum(hung.patience) < 10 * disks.PATIENCE


def test_the_home_s_own_logs_are_asked_for_without_a_thread(hung: Hung, tmp_path: Path) -> None:
    asked: list[threading.Thread] = []
    disks.spared.add(str(tmp_path))
    for folder in (tmp_path, tmp_path / "other"):
        disks.ask(str(folder / "api.log"), lambda: asked.append(threading.current_thread()))
    assert [thread is threading.main_thread() for thread in asked] == [True, False]


def test_what_a_file_s_reading_raises_is_raised(hung: Hung, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disks.ask(str(tmp_path / "none"), (tmp_path / "none").read_bytes)


def test_the_death_of_a_worker_whose_log_cannot_be_read_holds_nobody_up(
    hung: Hung, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "api.log"
    log.write_bytes(line(7, b"its last words"))
    with monkeypatch.context() as patched:
        patched.setattr(diagnosis, "_tail", lambda path: b"%r" % hung.wait())
        assert diagnosis.last_lines(str(log), 7) == []
    hung.answers.set()
    wait_until(lambda: diagnosis.last_lines(str(log), 7) == ["its last words"], what="the disk's answer")


def test_nobody_asks_a_disk_that_hangs_whether_a_worker_that_ended_without_a_word_has_a_log(
    hung: Hung, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(diagnosis, "_tail", lambda path: b"%r" % hung.wait())
    monkeypatch.setattr(os.path, "isfile", asked.append)
    app: Any = SimpleNamespace(name="api", config=AppConfig("api", command=["serve"], logs=LogsConfig(file="/mnt/a/api.log")))
    worker: Any = SimpleNamespace(id=WorkerId("api", 1, 1, 1), failure=None, pid=7, ready_at=1.0)
    ended = diagnosis.of_worker(app, worker, ExitStatus(3, None), "/", Shortage())
    assert (ended, asked) == (("exited with code 3", "", ""), [])


@pytest.mark.parametrize("log", ["/mnt/a/api.log", "a/api.log"])
def test_an_app_whose_log_is_on_a_disk_that_hangs_is_refused_with_that(
    hung: Hung, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    found = os.stat
    (tmp_path / "files").mkdir()
    os.symlink(tmp_path / "app.toml", tmp_path / "files" / "app.toml")
    on_disk = os.path.join(tmp_path, log)

    def of_disk(path: Any, **how: Any) -> os.stat_result:
        if path == on_disk:
            hung.wait()
        return found(path, **how)

    monkeypatch.setattr(os, "stat", of_disk)
    app = AppConfig("api", command=["sleep", "9"], cwd=".", logs=LogsConfig(file=log))
    with pytest.raises(ConfigError, match=rf"`logs\.file` is {on_disk}, and its disk does not answer") as raised:
        make_generation(1, app, str(tmp_path / "files" / "app.toml"), None, {})
    assert raised.value.problems[0].code == NO_ANSWER

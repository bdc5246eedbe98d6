"""A log file whose disk does not answer, and all others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyworker.logger import file as file_module
from pyworker.logger import patient
from pyworker.logger.file import LogFile
from pyworker.logger.output import Output
from pyworker.logger.patient import PatientFile
from pyworker.protocol.logs import LogsSpec
from tests.logger.rig import records
from tests.logger.test_file import STAMP, block
from tests.support.hung import Hung
from tests.support.wait import wait_until


class Disk:
    """Of all files whose name begins with "hangs": answers only while it is told to."""

    def __init__(self) -> None:
        self.hung = Hung()
        self.answers = self.hung.answers
        self.write = LogFile.write
        self.threads: list[str] = []  # those that have written

    def of(self, file: LogFile, data: bytes, now: float, stamp: str) -> None:
        if Path(file.spec.file).name.startswith("hangs"):
            self.hung.wait()
        self.threads.append(threading.current_thread().name)
        self.write(file, data, now, stamp)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(LogFile, "write", lambda *arguments: made.of(*arguments))
    monkeypatch.setattr(patient, "Errand", made.hung.errand)
    yield made
    made.answers.set()


def spec(path: Path) -> LogsSpec:
    return LogsSpec(str(path), "text", 1_000_000, 3, compress=False)


def has_answered(file: PatientFile, hanging: list[PatientFile]) -> bool:
    file.write(b"", 0.0, STAMP)
    return not hanging


def test_what_comes_while_the_disk_hangs_is_written_when_it_answers(disk: Disk, tmp_path: Path) -> None:
    path, hanging = tmp_path / "hangs.log", list[PatientFile]()
    file = PatientFile(spec(path), "api", hanging)
    for number in range(4):
        file.write(block(number, 1), 0.0, STAMP)
    assert (hanging, file.unsaid, file.lost) == ([file], 4, 0)
    assert file.error.startswith(f"the disk of {path} does not answer")
    disk.answers.set()
    wait_until(lambda: has_answered(file, hanging), what="the disk's answer")
    assert [r.msg for r in records(path)] == [b"0", b"1", b"2", b"3"]
    assert (file.unsaid, file.lost, file.error) == (0, 0, "")


def test_what_is_more_than_can_be_kept_is_lost_and_counted_and_the_log_says_so_in_its_place(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient, "MOST_KEPT", len(block(0, 2)))
    path, hanging = tmp_path / "hangs.log", list[PatientFile]()
    file = PatientFile(spec(path), "api", hanging)
    for number in range(5):
        file.write(block(number, 1), 0.0, STAMP)
    assert (file.lost, file.unsaid) == (2, 5)
    disk.answers.set()
    wait_until(lambda: has_answered(file, hanging), what="the disk's answer")
    file.write(block(5, 1), 0.0, STAMP)
    said = [r.msg for r in records(path)]
    assert said == [b"0", b"1", b"2", b"2 lines were lost here: its disk did not answer", b"5"]
    assert (file.lost, file.unsaid) == (2, 0)


def test_a_file_that_is_closed_while_its_disk_hangs_is_written_to_the_end(disk: Disk, tmp_path: Path) -> None:
    path, hanging = tmp_path / "hangs.log", list[PatientFile]()
    file = PatientFile(spec(path), "api", hanging)
    file.write(block(0, 1), 0.0, STAMP)
    file.write(block(1, 1), 0.0, STAMP)
    file.close()
    disk.answers.set()
    wait_until(lambda: has_answered(file, hanging), what="the disk's answer")
    assert [r.msg for r in records(path)] == [b"0", b"1"]


def test_a_close_that_hangs_is_not_waited_for(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's disk writes then what it has kept; and of an app that is deleted each log is closed."""
    file = PatientFile(spec(tmp_path / "api.log"), "api", [])
    monkeypatch.setattr(LogFile, "close", lambda file: disk.hung.wait())
    file.close()
    assert disk.hung.patience == []


@pytest.mark.parametrize("local", [True, False])
def test_a_disk_of_the_machine_that_has_answered_once_is_asked_without_a_thread(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(file_module, "is_local", lambda found: local)
    file = PatientFile(spec(tmp_path / "api.log"), "api", [])
    for number in range(3):
        file.write(block(number, 1), 0.0, STAMP)
    assert disk.threads == ["errand"] + 2 * ["MainThread" if local else "errand"]
    assert [r.msg for r in records(tmp_path / "api.log")] == [b"0", b"1", b"2"]


def test_one_app_s_disk_that_hangs_holds_up_no_other_app_s_log(disk: Disk, tmp_path: Path) -> None:
    out = Output(str(tmp_path / "home"), "", lambda: None)
    for app, name in (("slow", "hangs.log"), ("api", "api.log")):
        out.configure(app, spec(tmp_path / name), ())
    for number in range(2):
        out.put("slow", block(number, 1))
        out.put("api", block(number, 1))
        out.write()
    assert [r.msg for r in records(tmp_path / "api.log")] == [b"0", b"1"]
    assert [(stats.app, stats.dropped) for stats in out.news() if stats.error] == [("slow", 0)]
    disk.answers.set()
    wait_until(lambda: out.write() or not out.hangs, what="the disk's answer")
    assert [r.msg for r in records(tmp_path / "hangs.log")] == [b"0", b"1"]
    assert [(stats.app, stats.error) for stats in out.news()] == [("slow", "")]


def test_a_logger_that_is_killed_while_a_disk_hangs_leaves_how_many_lines_that_costs(disk: Disk, tmp_path: Path) -> None:
    killed = Output(str(tmp_path / "home"), "", lambda: None)
    killed.configure("api", spec(tmp_path / "hangs.log"), ())
    for number in range(3):
        killed.put("api", block(number, 1))
        killed.write()
    successor = Output(str(tmp_path / "home"), "", lambda: None)
    successor.configure("api", spec(tmp_path / "api.log"), ())
    successor.put("api", block(3, 1))
    successor.write()
    note, record = records(tmp_path / "api.log")
    assert (note.msg, record.msg) == (b"3 lines were lost here: the logger before this one could not write them", b"3")

"""The log of events: numbers, lines, rotation, subscribers, full disks."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyworker.cli.eventlog import past
from pyworker.daemon.events import KEPT, EventLog, since_birth
from pyworker.protocol.events import Event
from pyworker.protocol.logs import stamp


@pytest.fixture
def home(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def open_log(home: int) -> Iterator[Callable[..., EventLog]]:
    logs: list[EventLog] = []

    def make(**options: object) -> EventLog:
        log = EventLog(home, lambda: 1_795_442_551.1049, **options)  # type: ignore[arg-type]
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()


def note(log: EventLog, text: str = "x", app: str = "api") -> Event:
    return log.emit("app_note", app, text=text)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_event_is_a_line_on_disk_in_the_documented_shape(open_log: Callable[..., EventLog], tmp_path: Path) -> None:
    log = open_log()
    log.emit("scaled", "api", None, **{"from": 2, "to": 4})
    (line,) = lines(tmp_path / "events.jsonl")
    assert line == {
        "v": 1,
        "time": "2026-11-23T14:02:31.104Z",
        "seq": 1,
        "app": "api",
        "worker": None,
        "type": "scaled",
        "data": {"from": 2, "to": 4, "by": "the daemon"},
    }
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_data_that_the_type_does_not_declare_is_a_bug(open_log: Callable[..., EventLog]) -> None:
    log = open_log()
    with pytest.raises(ValueError, match="text"):
        log.emit("app_note", "api")
    with pytest.raises(ValueError, match="text"):
        log.emit("app_note", "api", text="x", more=1)
    assert log.seq == 0


def test_numbers_go_on_after_a_restart(open_log: Callable[..., EventLog]) -> None:
    log = open_log()
    for _ in range(3):
        note(log)
    again = open_log()
    assert [e.seq for e in again.recent()] == [1, 2, 3]
    assert note(again).seq == 4


def test_recent_is_by_app_and_by_number(open_log: Callable[..., EventLog]) -> None:
    log = open_log()
    for text, app in (("1", "api"), ("2", "mail"), ("3", "api")):
        note(log, text, app)
    assert [e.data["text"] for e in log.recent("api")] == ["1", "3"]
    assert [e.data["text"] for e in log.recent(since_seq=1)] == ["2", "3"]


def test_memory_holds_the_last_ones_only(open_log: Callable[..., EventLog]) -> None:
    log = open_log()
    for _ in range(KEPT + 10):
        note(log)
    assert len(log.recent()) == KEPT
    assert log.recent()[0].seq == 11


def test_what_workers_say_drives_nothing_that_happened_out_of_memory(open_log: Callable[..., EventLog]) -> None:
    log = open_log()
    first = note(log)
    for number in range(KEPT + 1):
        log.emit("worker_message", "other", 1, generation=1, pid=2, message=number, size=1, cut=False)
    last = note(log)
    for each in (log, open_log()):  # the second reads them from disk
        assert each.recent("api") == [first, last]
        assert [e.seq for e in each.recent()] == [1, *range(3, KEPT + 4)]


def test_file_is_rotated_once_it_is_large_and_both_halves_are_read_again(
    open_log: Callable[..., EventLog], tmp_path: Path
) -> None:
    log = open_log(max_file=1000)
    for number in range(13):
        note(log, str(number))
    assert (tmp_path / "events.jsonl").stat().st_size <= 1000
    old, new = lines(tmp_path / "events.jsonl.1"), lines(tmp_path / "events.jsonl")
    assert old[-1]["seq"] == int(str(new[0]["seq"])) - 1
    assert [e.seq for e in open_log().recent()] == [line["seq"] for line in old + new]


def test_what_workers_say_drives_nothing_that_happened_out_of_the_files(
    open_log: Callable[..., EventLog], tmp_path: Path
) -> None:
    log = open_log(max_file=1000)
    numbers = []
    for number in range(100):
        if number % 25 == 0:
            numbers.append(note(log).seq)
        log.emit("worker_message", "other", 1, generation=1, pid=2, message=number, size=1, cut=False)
    assert [e.seq for e in past(str(tmp_path), 99, 0, ("api",), frozenset())] == numbers
    happened = lines(tmp_path / "events.jsonl.2")
    assert {line["type"] for line in happened} == {"app_note"}
    assert [e.seq for e in open_log().recent("api")] == numbers
    for _ in range(20):
        note(log)
        for number in range(9):
            log.emit("worker_message", "other", 1, generation=1, pid=2, message=number, size=1, cut=False)
    assert lines(tmp_path / "events.jsonl.2")[0]["seq"] != 1
    assert {path.stat().st_size <= 1000 for path in tmp_path.iterdir()} == {True}
    assert len(list(tmp_path.iterdir())) == 3


def test_half_a_line_left_by_a_crash_is_skipped_and_not_joined_to_the_next(
    open_log: Callable[..., EventLog], tmp_path: Path
) -> None:
    note(open_log())
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'rubbish\n{"seq": "x"}\n\xff\n{"v":1,"seq":2,"tim')
    again = open_log()
    assert [e.seq for e in again.recent()] == [1]
    note(again, "whole")
    assert json.loads((tmp_path / "events.jsonl").read_bytes().splitlines()[-1])["data"] == {"text": "whole"}


def test_removed_file_is_made_again(open_log: Callable[..., EventLog], tmp_path: Path) -> None:
    log = open_log()
    note(log)
    (tmp_path / "events.jsonl").unlink()
    note(log)
    assert [line["seq"] for line in lines(tmp_path / "events.jsonl")] == [2]


def test_file_that_was_moved_away_is_made_again(open_log: Callable[..., EventLog], tmp_path: Path) -> None:
    log = open_log()
    note(log)
    (tmp_path / "events.jsonl").rename(tmp_path / "moved")
    note(log)
    assert [line["seq"] for line in lines(tmp_path / "events.jsonl")] == [2]


def test_text_that_cannot_be_encoded_does_no_harm(open_log: Callable[..., EventLog]) -> None:
    event = note(open_log(), "a\ud800b")
    assert event.data["text"].encode() == b"a\\ud800b"
    assert open_log().recent()[0] == event


def test_subscriber_gets_events_until_it_unsubscribes_and_a_broken_one_stops_nobody(
    open_log: Callable[..., EventLog],
) -> None:
    reports: list[str] = []
    log = open_log(report=reports.append)
    seen: list[int] = []

    def broken(_: Event) -> None:
        raise RuntimeError("a bug")

    log.subscribe(broken)
    leave = log.subscribe(lambda e: seen.append(e.seq))
    note(log)
    leave()
    leave()
    note(log)
    assert seen == [1]
    assert len(reports) == 2


def test_full_disk_costs_lines_but_no_event(
    open_log: Callable[..., EventLog], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, said = open_log(), []
    log.on_lost = said.append
    note(log)
    size = (tmp_path / "events.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        note(log)
        note(log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.lost == 2
    assert len(log.recent()) == 3
    assert said == [2, 3]
    assert note(open_log(last=3)).seq == 4  # of a daemon after this one: no number comes twice
    (tmp_path / "events.jsonl").write_bytes((tmp_path / "events.jsonl").read_bytes()[:size])
    note(log)
    assert [line["seq"] for line in lines(tmp_path / "events.jsonl")] == [1, 4]


def test_a_pipe_in_the_place_of_the_file_that_nobody_reads_costs_lines_and_no_wait(
    open_log: Callable[..., EventLog], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    log = open_log()
    for _ in range(40):
        note(log, "x" * 4000)
    assert log.seq == 40
    assert log.lost > 0


def test_home_that_cannot_be_written_does_not_raise(
    open_log: Callable[..., EventLog], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events.jsonl").mkdir()
    log = open_log()
    assert note(log).seq == 1
    assert log.lost == 1
    assert "events.jsonl" in capsys.readouterr().err


def test_what_a_process_printed_right_after_its_birth_is_its_own_also_when_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 5000.0)
    assert since_birth(90.0, 100.0) == stamp(4989.0)
    assert since_birth(90.0, 100.0, 4990.002) == stamp(4989.0)
    assert since_birth(90.0, 100.0, 20.0) == stamp(19.0), "set forward since"
    assert since_birth(90.0, 100.0, 9000.0) == stamp(4989.0), "set back since"

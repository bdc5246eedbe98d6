"""The journal beside the file: what it is sent, and that nothing depends on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyworker.logger.journal import Journal, datagram
from pyworker.protocol.logs import LogRecord, format_record


def record(msg: bytes, worker: int = 2) -> LogRecord:
    return LogRecord("2026-11-23T14:02:31.104Z", "api", worker, 41211, "err", partial=False, msg=msg)


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "journal"))
    server.settimeout(10)
    yield server
    server.close()


def test_a_record_is_one_datagram_of_fields() -> None:
    assert datagram(record(b"no \xff money")) == (
        b"MESSAGE=no \xff money\nPRIORITY=6\nSYSLOG_IDENTIFIER=api\nSYSLOG_PID=41211\n"
        b"PYWORKER_APP=api\nPYWORKER_WORKER=2\nPYWORKER_STREAM=err\n"
    )


def test_a_message_of_two_lines_is_sent_with_its_length() -> None:
    """Or an app could add fields of its own choice."""
    assert datagram(record(b"a\nPRIORITY=0")).startswith(b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n")


@pytest.mark.parametrize("format", ["text", "json"])
def test_records_of_both_formats_arrive_and_nonsense_does_not(journald: socket.socket, format: str) -> None:
    journal = Journal(journald.getsockname())
    lines = [format_record(record(text), "json" if format == "json" else "text") for text in (b"one", b"two")]
    journal.write(lines[0] + b"no record\n" + lines[1])
    journal.close()
    assert [journald.recv(4096).split(b"\n")[0] for _ in range(2)] == [b"MESSAGE=one", b"MESSAGE=two"]
    journald.setblocking(False)
    with pytest.raises(BlockingIOError):
        journald.recv(1)


def test_a_journal_that_is_not_there_costs_nothing_and_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "journal")
    journal = Journal(path)
    for _ in range(3):
        journal.write(format_record(record(b"lost"), "text"))
    said = capfd.readouterr().err
    assert said.count("takes no lines") == 1
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(path)
    journal.write(format_record(record(b"there"), "text"))
    assert server.recv(4096).startswith(b"MESSAGE=there\n")
    assert "again; 3 are" in capfd.readouterr().err
    journal.close()
    server.close()


def test_a_full_journal_holds_nobody_up(journald: socket.socket, capfd: pytest.CaptureFixture[str]) -> None:
    journal = Journal(journald.getsockname())
    before = len(os.listdir("/proc/self/fd"))
    journal.write(format_record(record(b"x" * 1000), "text") * 5000)  # nobody reads
    assert "takes no lines" in capfd.readouterr().err
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    journal.close()

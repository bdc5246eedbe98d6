"""logger/stdout.py: records on a pipe that others write to as well."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

import pytest

from pyworker.logger import stdout
from pyworker.logger.stdout import Stdout
from pyworker.protocol.logs import STDOUT, LogsSpec


def test_what_others_write_in_between_stands_between_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the daemon's own messages under `pyworker run 2>&1`."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    monkeypatch.setattr(stdout, "FD", writes)
    out = Stdout(LogsSpec(STDOUT, "plain", 0, 0, compress=False), "api", lambda: os.write(writes, b"another\n") and None)
    long = b"z" * (select.PIPE_BUF + 10)  # only this may be torn
    lines = [b"x" * 1500, b"y" * 1500, b"x" * 1500, b"", long, b"last"]
    out.write(b"\n".join(lines) + b"\n", 0.0, "")
    os.close(writes)
    with open(reads, "rb") as file:
        said = file.read()
    assert said.startswith(b"another\n" + lines[0])
    whole = said.replace(long[:select.PIPE_BUF] + b"another\n", long[:select.PIPE_BUF]).split(b"\n")
    assert [line for line in whole if line != b"another"] == [*lines, b""]


def test_a_record_that_a_full_disk_has_torn_does_not_spoil_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written, room = os.write, 10

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = written(fd, bytes(data)[:room])
        room -= count
        return count

    with (tmp_path / "out").open("ab") as file:
        monkeypatch.setattr(stdout, "FD", file.fileno())
        monkeypatch.setattr(os, "write", write)
        out = Stdout(LogsSpec(STDOUT, "plain", 0, 0, compress=False), "api", lambda: None)
        out.write(b"whole\ntorn apart\n", 0.0, "")
        out.write(b"lost\n", 0.0, "")
        assert (out.lost, out.error) == (2, "No space left on device")
        room = 100
        out.write(b"next\n", 0.0, "")
        out.write(b"last\n", 0.0, "")
    assert (tmp_path / "out").read_bytes() == b"whole\ntorn\nnext\nlast\n"

"""What the log says of the lines that a killed logger took with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworker.logger.output import Output
from pyworker.protocol.logs import LogsSpec


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (True, b"3 lines were lost here: the logger was killed with them in its hands (at most)"),
        (False, b"1 line was lost here: the logger was killed with them in its hands (or more: it had not counted the last)"),
    ],
)
def test_a_chunk_that_a_killed_logger_had_not_counted_is_not_said_to_be_one_line(
    tmp_path: Path, counted: bool, said: bytes
) -> None:
    killed = Output(str(tmp_path), "", lambda: None)
    killed.take_in_hand("api")
    if counted:
        killed.has_taken("api", 14, 3)
    successor = Output(str(tmp_path), "", lambda: None)
    log = tmp_path / "api.log"
    successor.configure("api", LogsSpec(str(log), "text", 1 << 20, 1, compress=False), ())
    successor.put("api", b"next\n")
    successor.write()
    assert said in log.read_bytes()


def test_what_apps_that_share_a_file_have_lost_is_said_once(tmp_path: Path) -> None:
    spec = LogsSpec(str(tmp_path / "all.log"), "text", 1 << 20, 1, compress=False)
    killed = Output(str(tmp_path), "", lambda: None)
    for app in ("api", "web"):
        killed.take_in_hand(app)
        killed.has_taken(app, 4, 1)
    for _ in range(3):
        successor = Output(str(tmp_path), "", lambda: None)
        for app in ("api", "web"):
            successor.configure(app, spec, ())
        successor.put("web", b"next\n")
        successor.write()
    data = (tmp_path / "all.log").read_bytes()
    assert data.count(b" lost here") == 1
    assert b"2 lines were lost here" in data

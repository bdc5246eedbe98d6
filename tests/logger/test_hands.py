"""What a killed logger had in its hands is known to the next one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pyworker.logger.hands import Hands
from pyworker.logger.main import Logger
from pyworker.protocol.logs import UNCOUNTED
from pyworker.unix import fds


def test_nothing_is_left_by_one_that_has_written_all(tmp_path: Path) -> None:
    hands = Hands(str(tmp_path / "hands"))
    hands.hold("api", 1)
    hands.hold("api", 41)
    hands.empty({})
    assert Hands(str(tmp_path / "hands")).left == {}


def test_a_killed_one_leaves_its_count_and_it_is_told_once(tmp_path: Path) -> None:
    path = str(tmp_path / "logs" / "hands")
    pid = os.fork()
    if pid == 0:
        hands = Hands(path)
        hands.hold("api", 1)
        hands.hold("jobs", 1)
        hands.hold("api", 41)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert Hands(path).left == {"api": 42, "jobs": 1}
    assert Hands(path).left == {}


def test_what_was_lost_is_known_until_it_is_said_however_many_are_killed_before(tmp_path: Path) -> None:
    path = str(tmp_path / "hands")
    Hands(path).hold("api", UNCOUNTED + 2)
    Hands(path).hold("api", 1)
    Hands(path)
    last = Hands(path)
    assert last.unsaid == {"api": 3}
    last.owe("api", 0)
    assert Hands(path).unsaid == {}


def test_a_line_that_has_only_begun_stays_in_hand_when_all_else_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "hands")
    hands = Hands(path)
    for number in range(1000):
        if not hands.has_room(f"app-{number}"):
            hands.empty({f"app-{n}": 1 for n in range(number)})
        hands.hold(f"app-{number}", 3)
    hands.empty({"app-999": 1})
    assert Hands(path).left == {"app-999": 1}


def test_what_is_owed_stays_however_many_print_meanwhile_until_it_is_said(tmp_path: Path) -> None:
    path = str(tmp_path / "hands")
    hands = Hands(path)
    hands.owe("api", 3)
    hands.owe("jobs", 2)
    for number in range(1000):
        if not hands.has_room(f"app-{number}"):
            hands.empty({})
        hands.hold(f"app-{number}", 1)
    hands.owe("jobs", 0)
    left = Hands(path)
    assert (left.unsaid, left.left.get("api")) == ({"api": 3}, None)


def test_no_app_is_left_out_however_many_have_printed(tmp_path: Path) -> None:
    hands = Hands(str(tmp_path / "hands"))
    for number in range(1000):
        if not hands.has_room(f"app-{number}"):
            hands.empty({})
        hands.hold(f"app-{number}", 1)
    left = Hands(str(tmp_path / "hands")).left
    assert left["app-999"] == 1
    assert len(left) == 1000 % 128


def test_a_folder_that_cannot_be_written_only_loses_the_count(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    hands = Hands(str(tmp_path / "logs" / "hands"))
    hands.hold("api", 5)
    hands.empty({})
    assert hands.left == {}


def test_a_logger_without_a_home_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for channel in fds.socketpair():
        with channel:
            Logger("", channel, -1, "short")
    assert not os.listdir(tmp_path)


def test_rubbish_in_the_file_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "hands"
    path.write_bytes(os.urandom(20_000))
    Hands(str(path))
    assert Hands(str(path)).left == {}

"""Where sd_notify of commands arrives."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.daemon import notify as module
from pyworker.daemon.loop import Loop
from pyworker.daemon.notify import Notify, _bound
from pyworker.unix import process
from pyworker.unix.fds import close_all
from tests.support.wait import wait_until


def test_a_folder_with_the_name_of_the_socket_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    """Docker makes one of a file to be mounted that is not there."""
    (tmp_path / "notify.sock").mkdir()
    home = os.open(tmp_path, os.O_RDONLY)
    try:
        with _bound(home) as sock:
            assert sock.getsockname().startswith(b"\0")
    finally:
        os.close(home)
    assert os.listdir(tmp_path) == ["notify.sock"]


def test_a_command_reaches_it_from_a_home_whose_path_is_too_long_for_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    home, loop = os.open(deep, os.O_RDONLY), Loop()
    kept: dict[str, int] = {}
    heard: list[tuple[int, str]] = []
    store: Any = SimpleNamespace(get=kept.get, put=kept.__setitem__)
    readiness = SimpleNamespace(on_notified=lambda pid, uid, text: heard.append((pid, text)))
    brain: Any = SimpleNamespace(spawner=SimpleNamespace(notify_socket=str(deep / "notify.sock")), readiness=readiness)
    notify = Notify(loop, store, home, brain)
    notify.listen()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
        address = brain.spawner.notify_socket
        program.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
    wait_until(lambda: loop.turn(0) or heard, what="its word")
    assert heard == [(os.getpid(), "READY=1")]
    loop.close()
    notify._sock.close()
    close_all([home, *kept.values()])


class Heard:
    """What is heard at a socket, and who sends there."""

    def __init__(self, folder: Path) -> None:
        self.texts: list[str] = []
        self.now = 0.0
        self.loop = Loop(lambda: self.now)
        self._kept: dict[str, int] = {}
        self._home = os.open(folder, os.O_RDONLY)
        store: Any = SimpleNamespace(get=self._kept.get, put=self._kept.__setitem__)
        readiness = SimpleNamespace(on_notified=lambda _pid, _uid, text: self.texts.append(text))
        brain: Any = SimpleNamespace(spawner=SimpleNamespace(notify_socket=str(folder / "n")), readiness=readiness)
        self._notify = Notify(self.loop, store, self._home, brain)
        self._notify.listen()
        self.program = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.program.connect(str(folder / "notify.sock"))

    def close(self) -> None:
        wait_until(lambda: self.loop.turn(0) or not self._notify._takers, what="those who take to end")
        self.program.close()
        self.loop.close()
        self._notify._sock.close()
        close_all([self._home, *self._kept.values()])


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    heard = Heard(tmp_path)
    yield heard
    heard.close()


def late(path: Path, *, reads_first: bool) -> tuple[str, ...]:
    """Return a command that takes a datagram, and goes on when there is such a file."""
    waits = f"while not os.path.exists({str(path)!r}): time.sleep(0.01)"
    steps = ("os.read(0, 1)", waits) if reads_first else (waits, "os.read(0, 1)")
    return sys.executable, "-c", "\n".join(("import os, time", *steps))


def test_what_comes_along_is_closed_by_a_process_of_its_own(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a FUSE mount can hold up for ever, beyond SIGKILL, whoever closes it."""
    monkeypatch.setattr(module, "TAKE", late(tmp_path / "go", reads_first=False))
    reader, writer = os.pipe()
    socket.send_fds(heard.program, [b"READY=1"], [writer])
    os.close(writer)
    heard.program.send(b"STATUS=well")
    wait_until(lambda: heard.loop.turn(0) or heard.texts, what="its word")
    assert heard.texts == ["READY=1"]
    assert select.select([reader], [], [], 0)[0] == [], "nobody has closed it"
    (tmp_path / "go").touch()
    wait_until(lambda: heard.loop.turn(0) or len(heard.texts) > 1, what="the next word")
    assert heard.texts == ["READY=1", "STATUS=well"]
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.parametrize("most", [1, 2])
def test_who_is_held_up_by_what_came_along_holds_up_nobody_until_they_are_many(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(module, "TAKE", late(tmp_path / "go", reads_first=True))
    monkeypatch.setattr(process, "send_signal", lambda *_: True)  # beyond SIGKILL
    monkeypatch.setattr(module, "MOST_HELD_UP", most)
    reader, writer = os.pipe()
    socket.send_fds(heard.program, [b"READY=1"], [writer])
    os.close(writer)
    wait_until(lambda: heard.loop.turn(0) or select.select([reader], [], [], 0)[0], what="it to be taken")
    os.close(reader)
    heard.program.send(b"STATUS=well")
    heard.now += module.TAKEN_WITHIN
    if most == 1:
        heard.loop.turn(0)
        assert heard.texts == ["READY=1"]
        (tmp_path / "go").touch()
    wait_until(lambda: heard.loop.turn(0) or len(heard.texts) > 1, what="the next word")
    assert heard.texts == ["READY=1", "STATUS=well"]
    (tmp_path / "go").touch()


def test_who_is_late_and_has_not_taken_it_takes_nothing_any_more(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take the next one, and what that says."""
    monkeypatch.setattr(module, "TAKE", late(tmp_path / "never", reads_first=False))
    with open(os.devnull, "rb") as file:
        socket.send_fds(heard.program, [b"READY=1"], [file.fileno()])
    wait_until(lambda: heard.loop.turn(0) or heard.texts, what="its word")
    monkeypatch.undo()
    heard.now += module.TAKEN_WITHIN
    heard.program.send(b"STATUS=well")
    wait_until(lambda: heard.loop.turn(0) or "STATUS=well" in heard.texts, what="the next word")
    wait_until(lambda: heard.loop.turn(0) or not heard._notify._takers, what="both to end")

"""The dashboard at a control socket where many wait."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from pyworker.protocol.control import Status
from pyworker.web import control
from pyworker.web.control import Away, ask
from tests.support.control import crowded


def test_one_more_than_may_wait_to_be_let_in_waits_too(tmp_path: Path) -> None:
    async def late() -> None:
        with crowded(str(tmp_path)) as listener:
            asking = asyncio.ensure_future(ask(str(tmp_path), Status(), 5.0))
            done, _ = await asyncio.wait({asking}, timeout=0.2)
            assert not done
            while not asking.done():  # lets them in, one after the other, and tells none of them anything
                listener.accept()[0].close()
                await asyncio.wait({asking}, timeout=0.1)
            with pytest.raises(Away, match="went away before"):
                await asking

    asyncio.run(late())


def test_what_keeps_from_asking_is_not_taken_for_a_daemon_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(Away, match="is not running"):
        asyncio.run(ask(str(tmp_path), Status()))
    (tmp_path / "control.sock").symlink_to("control.sock")
    with pytest.raises(Away, match="cannot be asked: Too many levels of symbolic links"):
        asyncio.run(ask(str(tmp_path), Status()))


def test_a_daemon_that_says_nothing_is_away_when_the_time_is_over(tmp_path: Path) -> None:
    with _listener(tmp_path), pytest.raises(Away, match=r"did not answer within 0\.05 s"):
        asyncio.run(ask(str(tmp_path), Status(), 0.05))


def test_the_socket_of_another_user_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer", lambda _: (1, 4321))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with _listener(tmp_path) as listener:
        with pytest.raises(Away, match="belongs to user 4321"):
            asyncio.run(ask(str(tmp_path), Status()))
        with listener.accept()[0] as accepted:
            assert accepted.recv(1) == b""


def _listener(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "control.sock"))
    listener.listen()
    return listener

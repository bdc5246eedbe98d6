"""Where sd_notify of commands arrives."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyworker.daemon.loop import Loop
from pyworker.daemon.notify import Notify, _bound
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

"""daemon/spawn.py: what a start that fails half-way leaves behind."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, LimitsConfig, ResolvedApp
from pyworker.daemon import spawn
from pyworker.daemon.app import Generation
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.launcher import Launcher
from pyworker.daemon.loop import Loop
from pyworker.daemon.spawn import Spawner
from pyworker.unix import fds
from tests.support.channels import ends as ends
from tests.support.words import TOO_MANY_OPEN_FILES


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # our end of the channel is Python's to close
@pytest.mark.parametrize("refused", ["pyworker-cert", "pyworker-key", "pyworker-spec", "pyworker-enter"])
def test_a_start_for_which_there_is_no_descriptor_keeps_none_of_those_it_had(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    loop, store = Loop(), FdStore(ends[0])
    spawner = Spawner(store, str(tmp_path), Launcher(loop))
    config = AppConfig("api", target="a:b")
    resolved = ResolvedApp(config, 1, sys.executable, {}, (), None, None, (), "", 0)
    generation = Generation(1, resolved, tls=(b"certificate", b"key", b""))
    app: Any = SimpleNamespace(name="api", listeners={}, want=1, board=SimpleNamespace(fd=spawner._null))
    memfd = fds.memfd

    def memfd_or_not(name: str, content: bytes, *, seal: bool = True) -> int:
        if name == refused:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return memfd(name, content, seal=seal)

    monkeypatch.setattr(fds, "memfd", memfd_or_not)
    gc.collect()  # what earlier tests have left open is none of this one's
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=TOO_MANY_OPEN_FILES):
        spawner.template(app, generation, 0.0)
    store.remove(*store.fds)  # the pipes are the store's, and go with the app
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    fds.close_all([spawner._null, spawner._runtime])
    loop.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # our end of the channel is Python's to close
@pytest.mark.parametrize(
    ("rights", "limits", "short"),
    [
        ((None, None), LimitsConfig(), True),
        ((os.getuid(), None), LimitsConfig(), False),
        ((None, os.getgid()), LimitsConfig(), False),
        ((None, None), LimitsConfig(nofile=100), False),
    ],
)
def test_a_template_takes_the_short_way_only_with_the_rights_of_the_daemon(
    ends: tuple[socket.socket, socket.socket],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rights: tuple[int | None, int | None],
    limits: LimitsConfig,
    short: bool,
) -> None:
    loop, store = Loop(), FdStore(ends[0])
    spawner = Spawner(store, str(tmp_path), Launcher(loop))
    config = AppConfig("api", target="a:b", limits=limits)
    resolved = ResolvedApp(config, 1, sys.executable, {}, (), *rights, (), "", 0)
    app: Any = SimpleNamespace(name="api", listeners={}, want=1, board=SimpleNamespace(fd=spawner._null))
    commands: list[list[str]] = []

    def refused(command: list[str], env: dict[str, str], table: dict[int, int]) -> tuple[int, int]:
        commands.append(command)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(spawn, "spawn_watched", refused)
    with pytest.raises(OSError, match="temporarily unavailable"):
        spawner.template(app, Generation(1, resolved, tls=(b"", b"", b"")), 0.0)
    store.remove(*store.fds)
    fds.close_all([spawner._null, spawner._runtime])
    loop.close()
    [command] = commands
    assert ("pyworker.template" in command, "-c" in command) == (not short, short)

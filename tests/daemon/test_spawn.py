"""daemon/spawn.py: what a process is given, and what a start that fails half-way leaves behind."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, LimitsConfig, MetricsConfig, ResolvedApp
from pyworker.daemon import spawn
from pyworker.daemon.app import Generation
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.launcher import Launcher
from pyworker.daemon.loop import Loop
from pyworker.daemon.spawn import Spawner
from pyworker.protocol import template as t
from pyworker.protocol.inherited import WorkerId
from pyworker.protocol.names import ENV_BIRTH
from pyworker.protocol.node import UNIQUE_ID
from pyworker.protocol.wire import decode
from pyworker.unix import fds
from tests.support.channels import ends as ends
from tests.support.descriptors import open_fds
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
    before = open_fds()
    with pytest.raises(OSError, match=TOO_MANY_OPEN_FILES):
        spawner.template(app, generation, 0.0)
    store.remove(*store.fds)  # the pipes are the store's, and go with the app
    assert open_fds() == before
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


class World:
    """A daemon about to make a worker, whose template is the test."""

    def __init__(self, channel: socket.socket, home: str) -> None:
        self.loop, self.store = Loop(), FdStore(channel)
        self.launched: list[tuple[t.LaunchSpec, bool]] = []
        launcher: Any = SimpleNamespace(launch=self.launch)
        self.spawner = Spawner(self.store, home, launcher)
        self.ours, self.theirs = fds.socketpair()
        self.template = TemplateHandle("api", 1, 0.0, channel=self.ours)
        self.app: Any = SimpleNamespace(
            name="api", want=3, target=None, templates={1: self.template}, workers={}, listeners={0: SimpleNamespace(sock=self.theirs)}, last_serial=6,
            board=SimpleNamespace(fd=self.spawner._null, row_of=lambda serial: serial + 100),
        )  # fmt: skip

    def launch(self, table: dict[int, int], spec_fd: int, failed: Any, started: Any, *, direct: bool) -> None:
        spec: t.LaunchSpec = decode(t.LaunchSpec, fds.read_whole(table[spec_fd]))
        for number in (0, 1, 2, spec.channel_fd, spec.runtime_fd, spec.board_fd, *spec.listener_fds, *([spec.ipc_fd] if spec.ipc_fd > 0 else [])):
            os.fstat(table[number])
        self.launched.append((spec, direct))

    def worker(self, *, held: bool = False, uid: int | None = None, **config: Any) -> WorkerHandle:
        resolved = ResolvedApp(AppConfig("api", **config), 1, "/usr/bin/python3", {}, (), uid, None, (), "", 0)
        handle = self.handle = self.spawner.prepare_worker(self.app, 2, 1, held=held, now=5.0)
        self.spawner.worker(self.app, Generation(1, resolved, (0,)), handle, lambda errno: None, lambda pid: None)
        return handle

    def let_go(self) -> None:
        """Close our own end of the channel, which is the worker's handle's."""
        assert self.handle.ctl is not None
        self.handle.ctl.close()

    def close(self) -> None:
        self.let_go()
        self.store.remove(*self.store.fds)
        fds.close_all([self.spawner._null, self.spawner._runtime])
        for sock in (self.ours, self.theirs):
            sock.close()
        self.loop.close()


@pytest.fixture
def world(ends: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(spawn, "runtime_zip", bytes)
    made = World(ends[0], str(tmp_path))
    yield made
    made.close()


OF_A_WORKER = ["ctl.api.1.2.7", "err.api.1.2.7", "out.api.1.2.7"]


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({"ipc": False}, []),
        ({}, ["ipc.api.1.2.7"]),
        ({"balance": "least-connections"}, ["feed.api.2", "inbox.api.2", "ipc.api.1.2.7"]),
    ],
)
def test_a_worker_is_asked_of_its_template_with_all_that_it_needs_whose_other_ends_are_stored(
    world: World, config: dict[str, Any], more: list[str]
) -> None:
    before = len(open_fds())
    handle = world.worker(target="a:b", held=True, **config)
    assert (handle.id, handle.held, handle.lost, world.app.last_serial) == (WorkerId("api", 1, 2, 7), True, False, 7)
    assert handle.ctl is not None
    assert handle.ctl.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1  # who says something is known
    assert sorted(world.store.fds) == sorted([*OF_A_WORKER, *more])
    assert world.template.asked == {7}
    packet = fds.recv_packet(world.theirs, 1000, 9)
    assert packet is not None
    ipc, inbox = "ipc.api.1.2.7" in more, "inbox.api.2" in more
    assert decode(t.ToTemplate, packet.data) == t.Fork(2, 7, 107, True, 3, inbox, ipc)
    assert len(packet.fds) == 3 + ipc + inbox
    os.write(packet.fds[1], b"said")
    os.write(packet.fds[2], b"wrong")
    assert (os.read(world.store.fds[OF_A_WORKER[2]], 9), os.read(world.store.fds[OF_A_WORKER[1]], 9)) == (b"said", b"wrong")
    if ipc:
        os.write(packet.fds[3], b"hello")
        assert os.read(world.store.fds["ipc.api.1.2.7"], 9) == b"hello"
        assert not os.get_blocking(world.store.fds["ipc.api.1.2.7"])
    fds.close_all(packet.fds)
    world.let_go()
    assert len(open_fds()) == before + len(world.store.fds)


@pytest.mark.parametrize("loading", [True, False])
def test_a_worker_finds_the_apps_folders_though_somebody_has_removed_them_since_its_template_was_told_of_them(
    world: World, tmp_path: Path, loading: bool
) -> None:
    """While other code is loaded they may be another user's."""
    world.app.target = 2 if loading else None
    world.worker(target="a:b", metrics=MetricsConfig(prometheus=True))
    assert (tmp_path / "state/api/prometheus").is_dir() is not loading


@pytest.mark.parametrize("gone", [True, False])
def test_a_template_that_has_just_died_is_no_error_and_one_that_takes_no_more_is(world: World, gone: bool) -> None:
    before = len(open_fds())
    if gone:
        world.theirs.close()
        handle = world.worker(target="a:b")
        assert handle.lost
        before -= 1
    else:
        while fds.send_packet(world.ours, b"x"):
            pass
        with pytest.raises(BlockingIOError, match="does not take any more"):
            world.worker(target="a:b")
    assert world.template.asked == set()
    world.let_go()
    assert len(open_fds()) == before + len(world.store.fds)


NODE = {"command": ("node", "app.js")}


@pytest.mark.parametrize(
    ("config", "held", "role", "listeners", "env", "has_ipc"),
    [
        ({"command": ("sleep", "60"), "balance": "shared"}, True, "command", 1, {}, False),
        ({"script": "/srv/run.py"}, True, "script", 1, {}, True),
        # a dispatcher holds these back
        ({**NODE, "balance": "round-robin"}, False, "command", 0, {UNIQUE_ID: "2"}, True),
        ({**NODE, "balance": "shared", "bind": ("127.0.0.1:80",)}, True, "command", 1, {UNIQUE_ID: "2"}, True),
        ({"command": ("sh", "-c", "serve $PORT"), "balance": "proxy"}, False, "command", 0, {"PORT": "20007"}, False),
        ({"script": "/srv/run.py", "balance": "proxy"}, False, "command", 0, {"PORT": "20007"}, False),
    ],
)
def test_a_script_or_command_is_launched_as_what_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], held: bool, role: str, listeners: int, env: dict[str, str], has_ipc: bool
) -> None:
    monkeypatch.setattr(spawn, "free_port", lambda taken: 20007)
    before = len(open_fds())
    handle = world.worker(held=True, **config)
    [(spec, direct)] = world.launched
    assert (spec.role, spec.held, spec.slot, spec.row, len(spec.listener_fds), spec.ipc_fd > 0) == (role, held, 2, 107, listeners, has_ipc)
    born = {ENV_BIRTH: "api.1.2.7"} if role == "command" else {}
    assert {name: spec.env[name] for name in (ENV_BIRTH, UNIQUE_ID, "PORT") if name in spec.env} == env | born
    assert handle.launching is direct is (listeners == 0)  # behind a dispatcher
    assert handle.port == int(env.get("PORT", 0))
    if handle.port:
        assert spec.app.command in (("sh", "-c", "serve 20007"), ("/usr/bin/python3", "-u", "/srv/run.py"))
    world.let_go()
    assert len(open_fds()) == before + len(world.store.fds)


@pytest.mark.parametrize(("uid", "node", "strange"), [(None, False, False), (os.geteuid(), False, False), (4711, False, True), (4711, True, False)])
def test_only_of_another_user_are_no_descriptors_taken_by_the_message_channel(
    world: World, monkeypatch: pytest.MonkeyPatch, uid: int | None, node: bool, strange: bool
) -> None:
    refused: list[socket.SocketKind] = []
    monkeypatch.setattr(fds, "refuse_fds", lambda sock: refused.append(sock.type))
    world.worker(uid=uid, **({**NODE, "balance": "round-robin"} if node else {"target": "a:b"}))
    assert refused == [socket.SOCK_SEQPACKET] + [socket.SOCK_STREAM] * strange
    packet = None if node else fds.recv_packet(world.theirs, 1000, 9)
    fds.close_all(packet.fds if packet else [])

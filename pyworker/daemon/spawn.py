"""Daemon: make the processes of an app. Pipes, channels and rows first, in the store before they matter; then the process.

A daemon that is killed between any two lines leaves nothing, or something that the next one recognises: a channel
whose process never came shows end-of-file and is dropped.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import socket
import sys
import sysconfig
import time
from typing import Literal

from pyworker import failpoint
from pyworker.config.schema import AppConfig
from pyworker.daemon import appmetrics, state
from pyworker.daemon.app import App, Generation
from pyworker.daemon.bundle import enter_text, runtime_zip
from pyworker.daemon.direct import is_direct
from pyworker.daemon.dispatchers import dispatcher_holds, make_inbox
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.launcher import PYTHON, Failed, Launcher, Started, environ
from pyworker.daemon.messages import wants_channel
from pyworker.daemon.nodeshared import is_node, shares
from pyworker.daemon.ports import free_port, proxied
from pyworker.protocol import template as t
from pyworker.protocol.inherited import WorkerId, fd_name, worker_fd
from pyworker.protocol.names import ENV_BIRTH, ENV_FAILPOINTS, ENV_SOFT_NOFILE, ENV_STATE, NOTIFY_SOCKET
from pyworker.protocol.node import UNIQUE_ID
from pyworker.protocol.wire import encode
from pyworker.unix import fds as unix_fds
from pyworker.unix.process import spawn_watched
from pyworker.unix.title import ROOM

_SPEC_FD = 3
_CHANNEL_FD = 4
_RUNTIME_FD = 5
_BOARD_FD = 6

Role = Literal["template", "script", "command"]


class _Birth:
    """What a new process is given: a channel, pipes, and its fds by the places it expects them at."""

    def __init__(self, null: int) -> None:
        self.ours, self._theirs = unix_fds.socketpair()
        unix_fds.pass_credentials(self.ours)
        unix_fds.refuse_fds(self.ours)  # of a FUSE file it is beyond SIGKILL that whoever closes it can be held up
        self.table = {0: null, _CHANNEL_FD: self._theirs.fileno()}
        self.ipc: list[int] = []  # its end of its message channel, if it has one
        self._given: list[int] = []  # fds that are to be closed once they were passed on

    def connect(
        self, store: FdStore, channel: str, out: str, err: str, *, ipc: str = "", is_strange: bool = False
    ) -> None:
        """Make what it has an end of. Ours are stored by these names, also when there is no descriptor for the next."""
        stored: dict[str, int] = {}
        try:
            for place, name in ((1, out), (2, err)):
                stored[name], self.table[place] = os.pipe2(os.O_CLOEXEC)
                self._given.append(self.table[place])
                os.set_blocking(stored[name], False)
            stored[channel] = os.dup(self.ours.fileno())
            if ipc:
                ours, theirs = socket.socketpair()
                if is_strange:
                    unix_fds.refuse_fds(ours)  # as above
                ours.setblocking(False)
                theirs.setblocking(False)
                stored[ipc] = ours.detach()
                self.ipc = [theirs.detach()]
                self._given += self.ipc
        finally:
            store.put_all(stored)

    def place(self, fd: int) -> int:
        """Give it an fd more; return the number that it will have there."""
        number = max(self.table) + 1
        self.table[number] = fd
        return number

    def made(self, name: str, content: bytes) -> int:
        """Return a new fd that is for it only."""
        self._given.append(unix_fds.memfd(name, content))
        return self._given[-1]

    def end(self) -> None:
        """It has all of it, or will not be."""
        self._theirs.close()
        unix_fds.close_all(self._given)


class Spawner:
    """Knows how a process of ours is started; decides nothing."""

    def __init__(self, store: FdStore, home: str, launcher: Launcher) -> None:
        self._store = store
        self.launcher = launcher
        self._home = home
        self.notify_socket = os.path.join(home, NOTIFY_SOCKET)
        self._runtime = unix_fds.memfd("pyworker-runtime", runtime_zip())
        self._enter = enter_text()
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        # where our own HTTP libraries are: a path only, as their import would be a seventh of the daemon's memory
        found = importlib.util.find_spec("uvicorn")
        assert found is not None
        assert found.origin is not None
        packages = os.path.dirname(os.path.dirname(os.path.abspath(found.origin)))
        self._engine = t.Engine(packages, str(sysconfig.get_config_var("SOABI") or ""))

    # ---- templates -----------------------------------------------------------------------------------
    def template(self, app: App, generation: Generation, now: float) -> TemplateHandle:
        """Start what becomes the template; raises OSError."""
        number = generation.number
        handle = TemplateHandle(app.name, number, now)
        birth = _Birth(self._null)
        handle.channel = birth.ours
        try:
            names = (fd_name(kind, app.name, number) for kind in ("template", "tout", "terr"))
            birth.connect(self._store, *names)
            failpoint.hit("spawn.template")
            spec = self._described("template", app, generation, None, birth, held=False)
            handle.pid, pidfd = spawn_watched(self._template_command(spec, birth), environ(), birth.table)
        finally:
            birth.end()
        self._store.put(fd_name("tpid", app.name, number), pidfd)
        return handle

    def _template_command(self, spec: t.LaunchSpec, birth: _Birth) -> list[str]:
        """Return the command line that becomes a template: the launcher's, or a shorter way where there are no rights to give up."""
        app = spec.app
        if spec.uid is not None or spec.gid is not None or app.limits.nofile is not None:
            return [*PYTHON, str(_SPEC_FD)]
        own = environ()
        armed = {ENV_FAILPOINTS: own[ENV_FAILPOINTS]} if ENV_FAILPOINTS in own else {}
        command = t.boot_command(spec, _SPEC_FD, ROOM)
        how = [app.cwd, app.file_umask, own.get(ENV_SOFT_NOFILE, ""), _SPEC_FD, len(command), *command]
        text = "".join(f"{word}\0" for word in (*how, *(f"{n}={v}" for n, v in (spec.env | armed).items())))
        fd = birth.place(birth.made("pyworker-enter", text.encode("utf-8", "surrogateescape")))
        return [sys.executable, "-I", "-S", "-c", self._enter, str(fd)]

    # ---- workers -------------------------------------------------------------------------------------
    def prepare_worker(self, app: App, slot: int, generation: int, *, held: bool, now: float) -> WorkerHandle:
        """Return the handle of a worker that is about to be made, its serial given out."""
        app.last_serial += 1
        identity = WorkerId(app.name, generation, slot, app.last_serial)
        return WorkerHandle(identity, held, now, time.time(), since=now)

    def worker(self, app: App, generation: Generation, handle: WorkerHandle, failed: Failed, started: Started) -> None:
        """Ask the template to fork the worker, or the launcher to start it; `failed` is called when that one cannot.

        `started` is called with the pid of what the launcher has started. Raises OSError; the worker then counts as one that died.
        """
        identity = handle.id
        birth = _Birth(self._null)
        handle.ctl = birth.ours
        config = generation.config
        try:
            # a dispatcher, which reads those of Node's, has no more rights than the app
            is_strange = generation.resolved.uid not in (None, os.geteuid()) and not is_node(config)
            names = (worker_fd(kind, identity) for kind in ("ctl", "out", "err"))
            ipc = worker_fd("ipc", identity) if wants_channel(config) else ""
            birth.connect(self._store, *names, ipc=ipc, is_strange=is_strange)
            failpoint.hit("spawn.worker")
            if config.target is None:
                held = handle.held and not dispatcher_holds(config)
                if config.balance == "proxy":
                    handle.port = free_port({w.port for w in app.workers.values()})
                role: Role = "script" if config.script is not None and not handle.port else "command"
                self._described(role, app, generation, handle, birth, held=held)
                direct = is_direct(generation, handle)
                self.launcher.launch(birth.table, _SPEC_FD, failed, started, direct=direct)
                handle.launching = direct
                return
            template = app.templates[generation.number]
            assert template.channel is not None
            if app.target is None:  # else the folders may be another user's by now: of the code that is being loaded
                self._renew_folders(generation)
            inbox: list[int] = []
            if config.balance == "least-connections":
                inbox = [make_inbox(self._store, app.name, identity.slot)]
            fork = t.Fork(
                slot=identity.slot,
                serial=identity.serial,
                row=app.board.row_of(identity.serial),
                held=handle.held,
                workers=app.want,
                inbox=bool(inbox),
                ipc=bool(birth.ipc),
            )
            given = [birth.table[_CHANNEL_FD], birth.table[1], birth.table[2], *birth.ipc, *inbox]
            try:
                if not unix_fds.send_packet(template.channel, encode(fork), given):
                    raise BlockingIOError("the template does not take any more requests")
            except (BrokenPipeError, ConnectionResetError):
                handle.lost = True  # it has just died: what follows from that, follows when its pidfd says so
            else:
                template.asked.add(identity.serial)
        finally:
            birth.end()

    def _renew_folders(self, generation: Generation) -> None:
        """Mend what somebody has done below the home (rm -r, chown -R): the template has told its workers where it is."""
        resolved = generation.resolved
        if state.is_lost(self._home, resolved):
            state.prepare(self._home, resolved)
        if appmetrics.is_lost(self._home, resolved):
            appmetrics.prepare(self._home, resolved)

    def _stacks(self, app: App) -> int:
        """Return the memfd that the app's workers write their stacks into; made when the first of them needs it."""
        name = fd_name("stacks", app.name)
        fd = self._store.get(name)
        if fd is None:
            fd = unix_fds.memfd(f"pyworker-stacks-{app.name}", b"", seal=False)
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | os.O_RDWR)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)  # or a worker could keep us from emptying it
            self._store.put(name, fd)
        return fd

    def _described(
        self,
        role: Role,
        app: App,
        generation: Generation,
        handle: WorkerHandle | None,
        birth: _Birth,
        *,
        held: bool,
    ) -> t.LaunchSpec:
        """Give a process all that it needs at birth; return its spec, which is among that."""
        resolved = generation.resolved
        config, listeners = generation.config, generation.listeners
        if dispatcher_holds(config):  # and hands out their connections
            listeners = ()
        if handle is not None and handle.port:
            config = proxied(config, resolved.python, handle.port)
        birth.table |= {_RUNTIME_FD: self._runtime, _BOARD_FD: app.board.fd}
        listener_fds = tuple(birth.place(app.listeners[index].sock.fileno()) for index in listeners)
        stacks_fd = birth.place(self._stacks(app)) if role != "command" else -1
        ipc_fd = birth.place(birth.ipc[0]) if birth.ipc else -1
        cert_fd, key_fd, ca_fd = (
            birth.place(birth.made(f"pyworker-{name}", content)) if content else -1
            for name, content in zip(("cert", "key", "ca"), generation.tls, strict=True)
        )
        spec = t.LaunchSpec(
            role=role,
            app=config,
            generation=generation.number,
            slot=handle.id.slot if handle else 0,
            serial=0,
            held=held,
            python=resolved.python,
            env=self._environment(role, generation, config, handle),
            uid=resolved.uid,
            gid=resolved.gid,
            groups=resolved.groups,
            engine=self._engine,
            channel_fd=_CHANNEL_FD,
            runtime_fd=_RUNTIME_FD,
            board_fd=_BOARD_FD,
            row=app.board.row_of(handle.id.serial) if handle else 0,
            listener_fds=listener_fds,
            ipc_fd=ipc_fd,
            cert_fd=cert_fd,
            key_fd=key_fd,
            ca_fd=ca_fd,
            notify_socket=self.notify_socket if role == "command" else "",
            workers=app.want,
            stacks_fd=stacks_fd,
        )
        birth.table[_SPEC_FD] = birth.made("pyworker-spec", encode(spec))
        return spec

    def _environment(
        self, role: Role, generation: Generation, config: AppConfig, handle: WorkerHandle | None
    ) -> dict[str, str]:
        resolved = generation.resolved
        env = {**resolved.env, **appmetrics.environment(self._home, resolved, generation.number)}
        env[ENV_STATE] = state.address(self._home, resolved)
        if handle is None:
            return env
        if handle.port:
            env["PORT"] = str(handle.port)
        if is_node(config) or shares(config):
            env[UNIQUE_ID] = str(handle.id.slot)
        if role == "command":
            env[ENV_BIRTH] = str(handle.id)
        return env

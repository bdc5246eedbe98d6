"""Daemon: take over what a daemon before this one has left in the guardian's store.

fd names say what exists, the ledger says in which state it was. Whatever is only half there (a channel whose process
never came) is given its handle all the same: its end-of-file or its silence ends it like any other.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from pyworker import failpoint
from pyworker.config.address import Address
from pyworker.daemon.app import App, Generation, Listener
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.desired import DesiredApp
from pyworker.daemon.handles import TemplateHandle, WorkerHandle, copy_socket
from pyworker.daemon.ledger import Ledger
from pyworker.protocol.inherited import WorkerId, fd_name, parse_fd_name, worker_fd
from pyworker.protocol.template import Loaded
from pyworker.protocol.wire import WireError, from_json
from pyworker.unix.fds import pass_credentials, read_whole
from pyworker.unix.process import UNKNOWN, pidfd_pid


def adopt(brain: Brain, wanted: dict[str, DesiredApp]) -> list[str]:
    """Rebuild every app that has a ledger in the store; return their names. Fds that belong to nothing are dropped."""
    store = brain.store
    adopted: list[str] = []
    for name in [n.app for n in store.names("ledger")]:
        desired = wanted.get(name)
        board_fd = store.get(fd_name("board", name))
        ledger_fd = store.get(fd_name("ledger", name))
        if desired is None or board_fd is None or ledger_fd is None:
            _drop(brain, name)
            continue
        failpoint.hit("daemon.adopt_app")
        ledger = Ledger(ledger_fd)
        memo = ledger.read()
        serials = {n.worker.serial for n in store.names("ctl", name)}
        app = App(name, desired.source, Board.adopt(os.dup(board_fd), serials), ledger)
        app.scale, app.scale_base = desired.scale, desired.scale_base
        if memo:
            app.recall(memo)
        app.generation = desired.generation if memo else 0  # apps.json is the commit point
        _generations(brain, app)
        if app.generation not in app.generations and memo and int(memo["generation"]) in app.generations:
            app.generation = int(memo["generation"])  # begun by a boot or a restart that was not written down yet
        _listeners(brain, app, memo)
        brain.apps[name] = app
        adopted.append(name)
        app.closed = app.generation not in app.generations
        if app.closed:
            continue
        if app.restart_to is not None and app.restart_to not in app.generations:
            app.restart_to = None
        if app.previous is not None and app.previous not in app.generations:
            app.previous = None
        _templates(brain, app, memo.get("templates", {}))
        _workers(brain, app, memo.get("workers", {}))
        brain.dispatchers.adopt(app, memo.get("dispatcher"))
        brain.poke(app)
    for name in {n.app for kind in ("board", "logs", "env", "ctl", "listen") for n in store.names(kind)} - set(
        brain.apps
    ):
        _drop(brain, name)
    return adopted


def let_go(brain: Brain, app: App) -> None:
    """Give up what was found of an app whose generation nobody can read; its listeners stay open.

    The channels of its workers close, so they finish what they have and leave.
    """
    doomed = [n for n in brain.store.fds if (p := parse_fd_name(n)) is not None and p.app == app.name]
    brain.store.remove(*(n for n in doomed if not n.startswith("listen.")))


def _drop(brain: Brain, name: str) -> None:
    doomed = [n for n in brain.store.fds if (p := parse_fd_name(n)) is not None and p.app == name]
    brain.store.remove(*doomed)


def _generations(brain: Brain, app: App) -> None:
    for name in brain.store.names("env", app.name):
        number = name.numbers[0]
        fd = brain.store.get(fd_name("env", app.name, number))
        assert fd is not None
        try:
            app.generations[number] = Generation.unpack(number, read_whole(fd))
        except (ValueError, KeyError, TypeError):
            continue  # of another version of pyworker: its workers are let go, the app started again
        app.last_generation = max(app.last_generation, number)


def _listeners(brain: Brain, app: App, memo: dict[str, Any]) -> None:
    addresses = memo.get("listeners", {})
    for name in brain.store.names("listen", app.name):
        index = name.numbers[0]
        fd = brain.store.get(fd_name("listen", app.name, index))
        known = addresses.get(str(index))
        assert fd is not None
        sock = socket.socket(fileno=os.dup(fd))
        if known is None:  # opened in the moment in which the other daemon died
            local = sock.getsockname()
            address = (
                Address("unix", path=str(local)) if isinstance(local, str) else Address("inet", local[0], local[1])
            )
        else:
            address = Address(**known)
        app.listeners[index] = Listener(index, address, sock)


def _templates(brain: Brain, app: App, memos: dict[str, Any]) -> None:
    store = brain.store
    for name in store.names("template", app.name):
        number = name.numbers[0]
        memo = memos.get(str(number), {})
        handle = TemplateHandle(app.name, number, float(memo.get("since", brain.loop.clock())))
        handle.pid = int(memo.get("pid", 0))
        handle.state = memo.get("state", "loading")
        try:
            handle.loaded = from_json(Loaded, memo["loaded"], "loaded") if memo.get("loaded") else None
        except WireError:
            handle.loaded = None
        fd = store.get(fd_name("template", app.name, number))
        assert fd is not None
        handle.channel = copy_socket(fd)
        pass_credentials(handle.channel)
        app.templates[number] = handle
        brain.templates.watch(app, handle)
        pidfd = store.get(fd_name("tpid", app.name, number))
        if pidfd is None:
            brain.templates.gone(app, handle, UNKNOWN)
        else:
            handle.pid = handle.pid or pidfd_pid(pidfd)
            brain.templates.watch_pid(app, handle, pidfd)


def _workers(brain: Brain, app: App, memos: dict[str, Any]) -> None:
    store = brain.store
    now = brain.loop.clock()
    for name in store.names("ctl", app.name):
        identity: WorkerId = name.worker
        memo = memos.get(str(identity))
        handle = WorkerHandle(identity, held=False, born_at=now, since=now)
        if memo is not None:
            handle.recall(memo)
        app.last_serial = max(app.last_serial, identity.serial)
        handle.row = app.board.row_of(identity.serial)
        fd = store.get(worker_fd("ctl", identity))
        assert fd is not None
        handle.ctl = copy_socket(fd)
        app.workers[identity.serial] = handle
        pidfd = store.get(worker_fd("pid", identity))
        if pidfd is not None:
            handle.pid = handle.pid or max(0, pidfd_pid(pidfd))
            brain.deaths.watch_pid(app, handle, pidfd)
        else:
            handle.pid = 0  # not stored, so not claimed: its next message names it, by the kernel's word
        brain.workers.resume(app, handle)

"""Daemon: take over what a daemon before this one has left in the guardian's store.

fd names say what exists, the ledger says in which state it was. Whatever is only half there (a channel whose process
never came) is given its handle all the same: its end-of-file or its silence ends it like any other.

What is there may be of another version of pyworker (files were replaced while an older daemon ran, and that one died).
All that is known of an app is read before any of it is acted on; an app of which this version understands too little
is let go: its listeners stay open, its workers finish what they have, and it is started again from its source.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

from pyworker import failpoint
from pyworker.config.address import Address, parse_bind
from pyworker.daemon.app import App, Generation, Listener
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.desired import DesiredApp, Source
from pyworker.daemon.handles import TemplateHandle, WorkerHandle, copy_socket
from pyworker.daemon.ledger import Ledger
from pyworker.daemon.listener import bound_to
from pyworker.daemon.preflight import check_memo
from pyworker.protocol.inherited import PIDFD_KINDS, WorkerId, app_of, fd_name, worker_fd
from pyworker.protocol.wire import WireError, from_json
from pyworker.record import field, mutable
from pyworker.unix import process
from pyworker.unix.fds import pass_credentials, read_whole
from pyworker.unix.process import pidfd_pid

LEAVE_WITHIN = 40.0  # seconds that the processes of an app that is let go have: more than any usual drain
THEN_KILLED = 5.0  # seconds from SIGTERM to SIGKILL for those that have not left by then
_LOG_PIPES = frozenset({"out", "err", "tout", "terr"})


@mutable
class Adopted:
    """What `adopt` has found."""

    names: list[str] = field(default_factory=list)  # of apps that go on as if nothing had been
    wanted: dict[str, DesiredApp] = field(default_factory=dict)  # by what was left of them, where apps.json was lost
    let_go: dict[str, str] = field(default_factory=dict)  # name -> why it has to be started again


def adopt(brain: Brain, wanted: dict[str, DesiredApp], *, complete: bool = True) -> Adopted:
    """Rebuild every app that is in the store. Fds of apps that are not wanted are dropped.

    With `complete` false apps.json was no help, and what is wanted is what was left.
    """
    found = Adopted()
    _end_hooks(brain)
    names = {app for name in brain.store.fds if (app := app_of(name)) is not None}
    for name in sorted(names):
        memo: dict[str, Any] = {}
        ledger: Ledger | None = None
        try:
            ledger_fd = brain.store.get(fd_name("ledger", name))
            ledger = Ledger(ledger_fd) if ledger_fd is not None else None
            memo = ledger.read() if ledger is not None else {}
            desired = wanted.get(name)
            if desired is None and not complete and memo:  # without one: begun by a start that was not answered yet
                desired = found.wanted[name] = _as_it_was(name, memo)
            if desired is None:
                drop(brain, name)
                continue
            if ledger is None:
                raise ValueError("nothing says in which state it was")
            check_memo(name, memo)
            board_fd = brain.store.get(fd_name("board", name))
            if board_fd is None:
                raise ValueError("it has no scoreboard")
            serials = {n.worker.serial for n in brain.store.names("ctl", name)}
            board = Board.adopt(os.dup(board_fd), serials)
        except (WireError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError) as error:
            # the next version, or the one before: its code has changed while it ran
            found.let_go[name] = f"missing {error}" if isinstance(error, KeyError) else str(error)
            if ledger is not None:
                ledger.close()
            continue
        _adopt_app(brain, App(name, desired.source, board, ledger), desired, memo)
        found.names.append(name)
    return found


def _end_hooks(brain: Brain) -> None:
    """End each pre_start that the daemon before this one has left running: it is begun again, or its reload was given up."""
    for hook in brain.store.names("hook"):
        name = fd_name("hook", hook.app, *hook.numbers)
        process.kill_session_of(brain.store.fds[name])
        brain.store.remove(name)


def _close_what_was_opened(brain: Brain, app: App) -> None:
    """A stopped app was about to be started when the other daemon died: nobody would accept from its port, or close it."""
    for listener in list(app.listeners.values()):
        brain.listening.close(app, listener)
    app.generations.clear()
    brain.store.remove(*(fd_name("env", app.name, *env.numbers) for env in brain.store.names("env", app.name)))


def _as_it_was(name: str, memo: dict[str, Any]) -> DesiredApp:
    """Return what apps.json would say of an app, by what the app's own memo says."""
    source: Source = from_json(Source, memo["source"], "source")
    scale, base = memo.get("scale", (None, None))
    generation = max(int(memo["generation"]), 1)
    stopped = tuple(map(int, memo.get("stopped_slots", ())))
    return DesiredApp(name, source, bool(memo["wanted"]), generation, stopped, scale, base)


def _adopt_app(brain: Brain, app: App, desired: DesiredApp, memo: dict[str, Any]) -> None:
    failpoint.hit("daemon.adopt_app")
    brain.store.alive()
    app.scale, app.scale_base = desired.scale, desired.scale_base
    if memo:
        app.recall(memo)
    app.generation = desired.generation if memo else 0  # apps.json is the commit point
    _generations(brain, app)
    begun = int(memo["generation"]) if memo else 0
    is_later = begun > app.generation != app.previous  # else it was rolled back, which the memo does not say yet
    if begun in app.generations and (is_later or app.generation not in app.generations):
        app.generation = begun  # by a boot or a restart that was not written down yet
    _listeners(brain, app, memo)
    brain.apps[app.name] = app
    app.closed = app.generation not in app.generations
    if app.closed:
        # its memo may be of a start whose generation never came into the store
        app.wanted, app.running, app.starting, app.restart_to = desired.running, False, False, None
        if not desired.running or app.stays_failed:
            _close_what_was_opened(brain, app)
        return
    if app.restart_to is not None and app.restart_to not in app.generations:
        app.restart_to = None if app.running else app.generation  # all stop for it already: something has to come
    if app.target not in app.generations or app.target == app.generation:  # committed in the other's last moment
        app.target = None
    elif brain.store.reason != "upgrade":  # whoever waited for it has seen the daemon end, and been told so
        app.target_failure = brain.fail(f"the daemon ended before the commit ({brain.store.reason})")
    if app.previous is not None and app.previous not in app.generations:
        app.previous = None
    _templates(brain, app, memo.get("templates", {}))
    _workers(brain, app, memo.get("workers", {}))
    brain.workers.tell_time_to_drain(app)  # the other may have died before it could, in the moment of a commit
    brain.dispatchers.adopt(app, memo.get("dispatcher"))
    brain.poke(app)


def let_go(brain: Brain, name: str) -> None:
    """Give up what was found of an app that this version does not understand; its listeners stay open.

    The channels of its workers close, so they finish what they have and leave. What does not know our channels (a
    command) is told by signal, and what has not left in time is killed: nothing may stay that nobody looks after.
    """
    store = brain.store
    of_app = [n for n in store.fds if app_of(n) == name]
    pidfds = [os.dup(store.fds[n]) for n in of_app if n.partition(".")[0] in PIDFD_KINDS]
    if not raw_resolved(brain, name).get("config", {}).get("target"):
        _signal(pidfds, signal.SIGTERM)
    _give_back(brain, (n for n in of_app if not n.startswith("listen.")))

    def kill() -> None:
        for pidfd in pidfds:
            process.kill_session_of(pidfd)  # also what one that has ended has left
        _signal(pidfds, signal.SIGKILL)
        for pidfd in pidfds:
            os.close(pidfd)

    def tell() -> None:
        _signal(pidfds, signal.SIGTERM)
        brain.loop.call_later(THEN_KILLED, kill)

    brain.loop.call_later(LEAVE_WITHIN, tell)


def _signal(pidfds: list[int], number: signal.Signals) -> None:
    for pidfd in pidfds:
        if not process.is_gone(pidfd):
            with contextlib.suppress(PermissionError):  # of a root without CAP_KILL
                process.send_signal(pidfd, number)


def drop(brain: Brain, name: str) -> None:
    """Give up all that was found of an app that nobody wants any more."""
    _give_back(brain, (n for n in brain.store.fds if app_of(n) == name))


def _give_back(brain: Brain, names: Iterable[str]) -> None:
    """Remove these from the store, but for log pipes: the logger, or the next one, reads them to their end."""
    found = [*names]
    pipes = [n for n in found if n.partition(".")[0] in _LOG_PIPES]
    brain.store.forget(*pipes)
    brain.store.remove(*(n for n in found if n not in pipes))


def raw_resolved(brain: Brain, name: str) -> dict[str, Any]:
    """Return the latest generation of an app as JSON, whatever version wrote it; {} when nothing can be read."""
    for env in reversed(brain.store.names("env", name)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            resolved = json.loads(read_whole(brain.store.fds[fd_name("env", name, *env.numbers)]))["resolved"]
            if isinstance(resolved, dict) and isinstance(resolved.get("config", {}), dict):
                return resolved
    return {}


def found_listeners(brain: Brain, name: str) -> dict[int, Listener]:
    """Return the listeners of an app that is let go."""
    written = _written_addresses(brain, name)
    found: dict[int, Listener] = {}
    for parsed in brain.store.names("listen", name):
        index = parsed.numbers[0]
        sock = socket.socket(fileno=os.dup(brain.store.fds[fd_name("listen", name, index)]))
        found[index] = Listener(index, written.get(index) or bound_to(sock), sock)
    return found


def _written_addresses(brain: Brain, name: str) -> dict[int, Address]:
    """Return the addresses of an app's listeners as its generations name them, or its memo, whatever version wrote these.

    The kernel's word is another one: it has looked up a host name and chosen a port for 0, and of a Unix socket it knows
    the name only under which that was made.
    """
    found: dict[int, Address] = {}
    unreadable = contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError)
    for env in brain.store.names("env", name):
        with unreadable:
            memo = json.loads(read_whole(brain.store.fds[fd_name("env", name, *env.numbers)]))
            bind = map(parse_bind, memo["resolved"]["config"]["bind"])
            found |= dict(zip(map(int, memo["listeners"]), bind, strict=True))
    with unreadable:  # those that workers have asked for, too
        memo = Ledger(brain.store.fds[fd_name("ledger", name)]).read()
        found |= {int(index): Address(**address) for index, address in memo["listeners"].items()}
    return found


def _generations(brain: Brain, app: App) -> None:
    for name in brain.store.names("env", app.name):
        number = name.numbers[0]
        fd = brain.store.fds[fd_name("env", app.name, number)]
        try:
            app.generations[number] = Generation.unpack(number, read_whole(fd))
        except (ValueError, KeyError, TypeError):
            continue  # of another version of pyworker: its workers are let go, the app started again
        app.last_generation = max(app.last_generation, number)


def _listeners(brain: Brain, app: App, memo: dict[str, Any]) -> None:
    addresses, asked = memo.get("listeners", {}), memo.get("asked", {})
    for name in brain.store.names("listen", app.name):
        index = name.numbers[0]
        known = addresses.get(str(index))
        sock = socket.socket(fileno=os.dup(brain.store.fds[fd_name("listen", app.name, index)]))
        if known is None:  # opened in the moment in which the other daemon died
            address = _written_addresses(brain, app.name).get(index) or bound_to(sock)
        else:
            address = Address(**known)
        by = asked.get(str(index), app.generations)  # not known: any that live may have been given it
        app.listeners[index] = Listener(index, address, sock, {int(number) for number in by})


def _templates(brain: Brain, app: App, memos: dict[str, Any]) -> None:
    store = brain.store
    for name in store.names("template", app.name):
        number = name.numbers[0]
        handle = TemplateHandle(app.name, number, brain.loop.clock())
        handle.recall(memos.get(str(number), {}))
        handle.channel = copy_socket(store.fds[fd_name("template", app.name, number)])
        pass_credentials(handle.channel)
        app.templates[number] = handle
        brain.templates.watch(app, handle)
        pidfd = store.get(fd_name("tpid", app.name, number))
        if pidfd is None:
            brain.templates.never_told(app, handle)
        else:
            handle.pid = handle.pid or pidfd_pid(pidfd)
            brain.templates.watch_pid(app, handle, pidfd)


def _workers(brain: Brain, app: App, memos: dict[str, Any]) -> None:
    store = brain.store
    now = brain.loop.clock()
    for name in store.names("ctl", app.name):
        identity: WorkerId = name.worker
        memo = memos.get(str(identity))
        # one that was ordered in the moment in which the other daemon died: who comes before the commit is held back
        held = identity.generation != app.generation
        handle = WorkerHandle(identity, held, born_at=now, started_at=time.time(), since=now)
        if memo is not None:
            handle.recall(memo)
        app.last_serial = max(app.last_serial, identity.serial)
        handle.ctl = copy_socket(store.fds[worker_fd("ctl", identity)])
        app.workers[identity.serial] = handle
        pidfd = store.get(worker_fd("pid", identity))
        if pidfd is not None:
            handle.pid = handle.pid or pidfd_pid(pidfd)
            brain.pids.watch(app, handle, pidfd)
        else:
            # not stored, so not claimed: its next message names it, by the kernel's word
            handle.pid, handle.untold = 0, True
        brain.workers.resume(app, handle)

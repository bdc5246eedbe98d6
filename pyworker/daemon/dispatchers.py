"""Daemon: dispatchers as it sees them: started, told who takes connections, replaced when they end.

Level-triggered like all of the brain: `sync` compares what a dispatcher has been told with what is so, and says the
difference. A dispatcher that is new has been told nothing. The processes themselves are dispatcher/.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, assert_never

from pyworker.config.schema import AppConfig
from pyworker.daemon import nodeshared, signals
from pyworker.daemon.fdstore import NO_ROOM, FdStore
from pyworker.daemon.handles import DispatcherHandle, WorkerHandle, copy_socket
from pyworker.daemon.loop import READ
from pyworker.daemon.nodeshared import is_node
from pyworker.daemon.shortage import Shortage, by_somebody, step_to_start
from pyworker.policy import restart
from pyworker.policy.lifecycle import LEAVING, SERVING, State
from pyworker.protocol import dispatcher as d
from pyworker.protocol.events import exit_words
from pyworker.protocol.inherited import fd_name, worker_fd
from pyworker.protocol.names import DAEMON_LOG
from pyworker.protocol.wire import MAX_MESSAGE, WireError, decode, encode
from pyworker.unix import fds as unix_fds
from pyworker.unix import process, title
from pyworker.unix.ready import ready

if TYPE_CHECKING:
    from pyworker.daemon.app import App, Generation
    from pyworker.daemon.brain import Brain

AGAIN = 0.02  # seconds until a message is tried again that the dispatcher has no room for
_OF_WORKER = ("open", "attach", "shut")  # what is told of a worker, and forgotten with it
_News: TypeAlias = tuple[d.ToDispatcher, tuple[int, ...], object]  # a message, its fds, what has been told by it


class Dispatchers:
    """One for each app that needs one."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain

    # ---- life --------------------------------------------------------------------------------------------
    def start(self, app: App, now: float) -> None:
        generation = app.generations.get(app.target or 0) or app.current
        assert generation is not None
        handle = DispatcherHandle(now)
        app.dispatcher = handle
        try:
            handle.channel, theirs = unix_fds.socketpair()
            with theirs:
                self._brain.store.put(fd_name("dispatcher", app.name), os.dup(handle.channel.fileno()))
                handle.pid, pidfd = self._spawn(app, generation, theirs)
        except OSError as error:
            handle.killed_because, handle.step = f"cannot start a process: {error.strerror}", step_to_start(error)
            self.gone(app, handle, process.UNKNOWN, Shortage())
            return
        self._brain.store.put(fd_name("dpid", app.name), pidfd)
        self._watch(app, handle, pidfd)

    def _spawn(self, app: App, generation: Generation, channel: socket.socket) -> tuple[int, int]:
        resolved = generation.resolved
        spec = d.DispatcherSpec(app.name, resolved.uid, resolved.gid, resolved.groups)
        made = [unix_fds.memfd("pyworker-dispatcher", encode(spec))]
        try:
            made.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            argv = [sys.executable, "-I", "-m", "pyworker.dispatcher", title.ROOM]
            environ = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
            spec_fd, null = made
            table = {0: null, 1: 2, 2: 2, d.CHANNEL_FD: channel.fileno(), d.BOARD_FD: app.board.fd, d.SPEC_FD: spec_fd}
            return process.spawn_watched(argv, environ, table)
        finally:
            unix_fds.close_all(made)

    def adopt(self, app: App, memo: dict[str, Any] | None) -> None:
        """Go on with the dispatcher of the daemon before this one, if it left one."""
        fd = self._brain.store.get(fd_name("dispatcher", app.name))
        if fd is None:
            return
        handle = DispatcherHandle(self._brain.loop.clock())
        if memo:
            handle.recall(memo)
        handle.channel = copy_socket(fd)
        app.dispatcher = handle
        pidfd = self._brain.store.get(fd_name("dpid", app.name))
        if pidfd is None:  # its channel alone was stored: it reads the end of it now, if it came at all
            handle.state = "stopping"  # which is no failure
            self.gone(app, handle, process.UNKNOWN, Shortage())
            return
        handle.pid = handle.pid or process.pidfd_pid(pidfd)
        self._watch(app, handle, pidfd)

    def _watch(self, app: App, handle: DispatcherHandle, pidfd: int) -> None:
        assert handle.channel is not None
        self._brain.loop.add(handle.channel.fileno(), READ, lambda _: self._on_message(app, handle))
        self._brain.loop.add(pidfd, READ, lambda _: self._ended(app, handle, pidfd))

    def stop(self, app: App, reason: str, now: float) -> None:
        """Let it leave, or (with a reason) kill it."""
        handle = app.dispatcher
        assert handle is not None
        handle.state, handle.since = "stopping", now
        if not reason:
            self._say(app, handle, d.Leave())
            return
        handle.killed_because = reason
        pidfd = self._brain.store.get(fd_name("dpid", app.name))
        if pidfd is not None:
            whose = f"generation {app.generation}: its dispatcher"
            signals.send(self._brain, app, pidfd, signal.SIGKILL, whose=whose, pid=handle.pid)

    def _ended(self, app: App, handle: DispatcherHandle, pidfd: int) -> None:
        self._brain.loop.remove(pidfd)
        try:
            self._on_message(app, handle)  # its last words first
        finally:
            self._brain.pids.of_helper(handle.pid, pidfd, functools.partial(self.gone, app, handle))

    def gone(self, app: App, handle: DispatcherHandle, status: process.ExitStatus, shortage: Shortage) -> None:
        if handle.ended:
            return
        handle.ended = True
        app.dispatcher = None
        if handle.channel is not None:
            self._brain.loop.remove(handle.channel.fileno())
            handle.channel.close()
        self._brain.store.remove(fd_name("dispatcher", app.name), fd_name("dpid", app.name))
        for text in handle.troubles:  # nobody would say that they are over
            self._brain.note_is_over(app, text)
        self._brain.poke(app)
        if handle.state == "stopping" and not handle.killed_because:
            return
        now = self._brain.loop.clock()
        words = handle.killed_because or f"ended {exit_words(status.code, status.signal)}"
        self._brain.emit(app, "dispatcher_exited", None, pid=handle.pid, reason=words)
        app.dispatcher_record = restart.after_helper_death(
            app.dispatcher_record, handle.ready_at, now, app.restart_config, jitter=random.random()
        )
        # as with workers: a boot tries again what the machine cannot do yet, and any start what somebody has killed
        again = app.restored and not handle.pid
        if not handle.killed_because and by_somebody(status, shortage):
            again = app.dispatcher_record.tries == 1
        if app.starting and handle.ready_at is None and not again:
            said = f"see its last words: tail {quote(os.path.join(self._brain.home, DAEMON_LOG))}"
            app.start_failure = self._brain.fail(f"the dispatcher {words}", hint=handle.step or said)

    # ---- what it says --------------------------------------------------------------------------------------
    def _on_message(self, app: App, handle: DispatcherHandle) -> None:
        for _ in range(64):
            if handle.channel is None or handle.ended:
                return
            packet = unix_fds.peek_packet(handle.channel, MAX_MESSAGE)  # as of a worker: workers.py
            if packet is None:
                return
            if not packet.data:
                self._brain.loop.remove(handle.channel.fileno())  # its pidfd says how it ended
                return
            try:
                message: d.FromDispatcher = decode(d.FromDispatcher, packet.data)
                self._take(app, handle, message)
            except WireError as error:
                self.stop(app, f"it said something that is no message: {error}", self._brain.loop.clock())
                return
            finally:
                unix_fds.drop_packet(handle.channel)
            self._brain.poke(app)

    def _take(self, app: App, handle: DispatcherHandle, message: d.FromDispatcher) -> None:
        now = self._brain.loop.clock()
        match message:
            case d.Up():
                if handle.state == "starting":
                    handle.state, handle.since = "ready", now
                    handle.ready_at = now
                    app.write_memo()  # said once only
                    self._brain.emit(app, "dispatcher_ready", None, pid=handle.pid)
                elif handle.state == "ready":  # it could not take what it was told, for want of descriptors
                    handle.told.clear()
            case d.Empty(serial=serial):
                worker = app.workers.get(serial)
                via = _via(app, worker) if worker is not None else None
                if worker is not None and worker.state is State.DRAINING and via == "port":
                    self._brain.workers.stop(app, worker, "its connections have ended", now)
                elif worker is not None and via == "node":
                    worker.asked_by = handle.pid
            case d.Wants():
                self._find_listener(app, handle, message)
            case d.Asked(serial=serial, text=text):
                worker = app.workers.get(serial)
                if worker is not None and len(worker.queries) < d.MAX_QUERIES and text not in worker.queries:
                    worker.queries.append(text)
                    nodeshared.note_asked(self._brain, app, worker, text)
            case d.Listening(serial=serial):
                worker = app.workers.get(serial)
                if worker is not None:
                    self._brain.readiness.listens(app, worker)
            case d.Said(serial=serial, text=text, size=size):
                worker = app.workers.get(serial)
                if worker is not None:
                    with contextlib.suppress(ValueError, RecursionError):
                        self._brain.messages.heard(app, worker, text, size)
            case d.Pong():
                handle.unanswered = 0
            case d.Trouble(text=text):
                self._brain.note(app, text)
                if text not in handle.troubles:
                    handle.troubles.append(text)
            case d.Over(text=text):
                self._brain.note_is_over(app, text)
                handle.troubles = [trouble for trouble in handle.troubles if trouble != text]
            case _:
                assert_never(message)

    def _find_listener(self, app: App, handle: DispatcherHandle, message: d.Wants) -> None:
        found, error = nodeshared.for_whoever_asked(self._brain, app, message)
        fds = (found.sock.fileno(),) if found is not None else ()
        if not self._say(app, handle, d.Bound(message.key, error), fds):
            self._brain.loop.call_later(AGAIN, lambda: self._find_listener(app, handle, message))

    def tell(self, app: App, serial: int, text: str) -> DispatcherHandle | None:
        """A message for a Node worker: return the dispatcher that is to pass it on; None when that is not possible now."""
        handle = app.dispatcher
        if handle is None or handle.state != "ready" or ("attach", serial) not in handle.told:
            return None
        with contextlib.suppress(OSError):  # it is dying, and its successor is not told this
            if handle.channel is not None and unix_fds.send_packet(handle.channel, encode(d.Tell(serial, text))):
                return handle
        return None

    def ping(self, app: App, handle: DispatcherHandle, number: int) -> None:
        handle.unanswered += 1
        self._say(app, handle, d.Ping(number))

    # ---- what it is told -----------------------------------------------------------------------------------
    def sync(self, app: App) -> None:
        """Tell the dispatcher what has changed."""
        handle = app.dispatcher
        if handle is None or handle.state != "ready":
            return
        for _ in range(3):  # what is said may call for more: an inbox has to be known before it is closed
            news = list(self._news(app, handle))
            if not all(self._say(app, handle, *each) for each in news):
                # once, however many rounds there are while one that stands still has no room
                self._brain.loop.call_once(("sync", id(app)), AGAIN, lambda: self.sync(app))
                return
            if not news:
                return

    def may_give_to(self, app: App, worker: WorkerHandle) -> bool:
        """Whether a dispatcher has not read yet that this one is to get nothing any more."""
        handle = app.dispatcher
        if _via(app, worker) is None or worker.asked_by or handle is None or handle.ended or handle.channel is None:
            return False
        return ("shut", worker.id.serial) not in handle.told or unix_fds.unread(handle.channel) > 0

    def _news(self, app: App, handle: DispatcherHandle) -> Iterator[_News]:
        """Find all that it does not know yet."""
        told = handle.told
        stopping = app.is_stopping and not self._brain.stops_after(app)
        current = app.current
        listens: set[int] = set()
        if current is not None and app.listening and dispatches(current) and not is_node(current.config):
            listens = set(current.listeners)  # Node workers ask for theirs
        if "begun" not in told:
            yield d.Begin(), (), "begun"
        for index in sorted(i for i in listens if ("listen", i) not in told and i in app.listeners):
            yield d.Listen(index), (app.listeners[index].sock.fileno(),), ("listen", index)
        yield from self._new_inboxes(app, told)
        for worker in sorted(app.workers.values(), key=lambda w: w.id.serial):
            yield from self._news_of(app, handle, worker, stopping)
        if "settled" not in told:
            yield d.Settled(), (), "settled"
        known = {what[1] for what in told if isinstance(what, tuple) and what[0] in _OF_WORKER}
        for serial in sorted(known - set(app.workers)):
            yield d.Gone(serial), (), None
        if not stopping:
            yield from self._withdrawn(app, told, listens)
        elif not handle.finished:
            yield d.Finish(), (), "finished"

    def _new_inboxes(self, app: App, told: set[object]) -> Iterator[_News]:
        store = self._brain.store
        slots = {name.numbers[0] for name in store.names("inbox", app.name)}
        for slot in sorted(s for s in slots if ("inbox", s) not in told):
            feed, inbox = (store.get(fd_name(kind, app.name, slot)) for kind in ("feed", "inbox"))
            if feed is not None and inbox is not None:
                yield d.Inbox(slot), (feed, inbox), ("inbox", slot)
            elif slot not in self._wanted_slots(app):
                # its feed was never stored: the daemon that made it was killed in between
                store.remove(fd_name("inbox", app.name, slot))

    def _news_of(self, app: App, handle: DispatcherHandle, worker: WorkerHandle, stopping: bool) -> Iterator[_News]:
        via, serial, told = _via(app, worker), worker.id.serial, handle.told
        if via is None or worker.asked_by not in (0, handle.pid):
            return  # a Node worker that the one before has asked to leave: it needs no other
        if via == "node" and worker.is_alive and ("attach", serial) not in told:
            fd = self._brain.store.get(worker_fd("ipc", worker.id))
            if fd is not None:
                yield d.Attach(serial, tuple(worker.queries)), (fd,), ("attach", serial)
        if worker.state in SERVING and worker.ready_at is not None:
            if ("open", serial) not in told:
                proxied = app.generations[worker.id.generation].config.proxy_protocol
                row = app.board.row_of(serial)
                yield d.Open(serial, worker.id.slot, row, via, worker.port, proxied), (), ("open", serial)
        elif worker.state in LEAVING and ("shut", serial) not in told and (via != "inbox" or not stopping):
            yield d.Shut(serial), (), ("shut", serial)

    def _withdrawn(self, app: App, told: set[object], listens: set[int]) -> Iterator[_News]:
        """Find what it has and is to have no more."""
        for what in sorted((t for t in told if isinstance(t, tuple)), key=str):
            match what:
                case ("listen", int(index)) if index not in listens:
                    yield d.Unlisten(index), (), what
                case ("inbox", int(slot)) if slot not in self._wanted_slots(app):
                    yield d.CloseInbox(slot), (), what

    def _wanted_slots(self, app: App) -> set[int]:
        """Slots whose inbox is, or will be, read by somebody."""
        read = {w.id.slot for w in app.workers.values() if w.state not in LEAVING}
        return read | set(app.slots())

    def _say(
        self,
        app: App,
        handle: DispatcherHandle,
        message: d.ToDispatcher,
        fds: tuple[int, ...] = (),
        what: object = None,
    ) -> bool:
        """Say one thing and note that it has been said; False when there is no room for it now."""
        if handle.channel is None:
            return False
        try:
            if not unix_fds.send_packet(handle.channel, encode(message), fds):
                return False
        except OSError as error:
            # else it is dying: its pidfd will say so, and its successor be told everything
            return error.errno not in NO_ROOM
        match message:
            case d.Unlisten(index=index):
                handle.told.discard(what)
                self._brain.listening.refuse(app, index)
            case d.Gone(serial=serial):
                handle.told -= {(word, serial) for word in _OF_WORKER}
            case d.CloseInbox(slot=slot):
                handle.told.discard(what)
                self._brain.store.remove(fd_name("feed", app.name, slot), fd_name("inbox", app.name, slot))
            case _:
                if what is not None:
                    handle.told.add(what)
        return True

    def close(self, app: App) -> None:
        """The app is over: nothing of its inboxes is wanted any more."""
        for name in self._brain.store.names("inbox", app.name) + self._brain.store.names("feed", app.name):
            self._brain.store.remove(fd_name(name.kind, app.name, name.numbers[0]))
        app.dispatcher_record = restart.CLEAR


def has_read(handle: DispatcherHandle) -> bool | None:
    """Whether a dispatcher has read all that it was told; None: it has ended, and nobody knows."""
    if handle.ended or handle.channel is None:
        return None
    is_read = not unix_fds.unread(handle.channel)  # asked first: what it has not read is gone with it
    return None if ready(handle.channel.fileno(), 0) else is_read


def make_inbox(store: FdStore, app: str, slot: int) -> int:
    """Return the reading end (the store's) of a slot's inbox, made when the slot has its first worker."""
    inbox, feed = fd_name("inbox", app, slot), fd_name("feed", app, slot)
    if store.get(inbox) is None or store.get(feed) is None:
        reader, writer = unix_fds.socketpair()
        unix_fds.refuse_fds(writer)  # nobody reads what a worker would say there
        store.put(inbox, reader.detach())
        store.put(feed, writer.detach())
    return store.fds[inbox]


def dispatcher_holds(config: AppConfig) -> bool:
    """Whether workers are held back, and given nothing more, by the dispatcher and not by themselves."""
    return config.balance == "proxy" or is_node(config)


def dispatches(generation: Generation) -> bool:
    """Whether the connections of this generation are handed out."""
    return generation.config.balance == "least-connections" or dispatcher_holds(generation.config)


def _via(app: App, worker: WorkerHandle) -> Literal["inbox", "port", "node"] | None:
    generation = app.generations.get(worker.id.generation)
    if generation is None or not dispatches(generation):
        return None
    if is_node(generation.config):
        return "node"
    return "port" if generation.config.balance == "proxy" else "inbox"

"""Daemon: workers as it sees them: what they are told, what they say, when they count as ready, their health.

How they end is deaths.py. What a worker says is untrusted: out of protocol is killed, and no message can name
another worker, a path to open, a pid or a command.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from typing import TYPE_CHECKING, assert_never

from pyworker import failpoint
from pyworker.config.address import Address
from pyworker.config.schema import HealthConfig
from pyworker.daemon import check, diagnosis
from pyworker.daemon.app import App, Generation
from pyworker.daemon.board import BoardFull
from pyworker.daemon.dispatchers import is_node
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.health import HealthWatch, check_of
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.loop import READ
from pyworker.daemon.nodeshared import shares
from pyworker.daemon.shortage import step_for
from pyworker.policy import restart
from pyworker.policy.health import Verdict
from pyworker.policy.lifecycle import LEAVING, SERVING, UNTOUCHED, Happening, State
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import worker_fd
from pyworker.protocol.wire import WireError, decode, encode
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain

COMMAND_SETTLE = 1.0  # a command without any way to say so counts as ready after this
PORT_TRIES = 0.05  # seconds between tries to reach the port of a worker that starts
_TRY = HealthConfig(type="tcp", timeout=2.0)
MAX_LISTENERS = 64  # of one app: each is a descriptor of guardian and daemon, and it is a worker that asks
EARLY = 10.0  # seconds for which READY=1 of a command whose pid nobody has told yet is remembered
MAX_EARLY = 1000
SCRIPT_SETTLE = 3.0  # ... and a script that has bound no port after this


class Workers:
    """Everything between birth and death."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._early: dict[int, float] = {}  # session of a command that was ready before its pid was told -> when

    def spawn(self, app: App, slot: int, number: int, held: bool, now: float) -> None:
        try:
            handle = self._brain.spawner.prepare_worker(app, slot, number, held=held, now=now)
        except BoardFull as error:
            self._brain.note(app, str(error))
            app.record = restart.after_unstable_death(app.record, now, app.restart_config, jitter=random.random())
            return
        app.workers[handle.id.serial] = handle
        try:
            self._brain.spawner.worker(
                app,
                app.generations[number],
                handle,
                lambda errno: self._brain.direct.failed(app, handle, errno),
                lambda pid: self._brain.direct.started(app, handle, pid),
            )
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            step = step_for(getattr(error, "errno", None))
            handle.failure = w.Failed("other", f"cannot start a process: {why}", "", step)
            self._brain.deaths.finish(app, handle, process.UNKNOWN)  # or its slot would wait for it
            if not isinstance(error, OSError):
                raise
            return
        config = app.generations[number].config
        handle.checked = config.health is None
        if handle.port and config.health is None and config.ready != "notify":
            self._watch_port(app, handle)
        self.watch(app, handle)

    def go(self, app: App, handle: WorkerHandle, now: float) -> None:
        failpoint.hit("reload.go")
        handle.gone_go = True
        handle.happen(Happening.GO, now)
        config = app.generations[handle.id.generation].config
        if config.balance == "proxy" or is_node(config):
            self._accepts(app, handle)  # it does already; the dispatcher is told so
        elif config.script is not None:
            self._answer_bind(app, handle)
            self._accepts(app, handle)
        else:
            self._say(handle, w.Go())

    def drain(self, app: App, handle: WorkerHandle, to_empty: bool, reason: str, now: float) -> None:
        failpoint.hit("reload.drain")
        config = app.generations[handle.id.generation].config
        handle.leaving_because = reason
        handle.happen(Happening.DRAIN, now)
        self._say_draining(app, handle, reason)
        if config.balance == "proxy" or is_node(config):
            return  # the dispatcher gives it no more, and says when what it had has ended
        if config.command and self._brain.messages.disconnect(app, handle):
            return  # it closes its channel when what it had has ended
        if not self._say(handle, w.Drain(config.stop.drain_timeout, to_empty)):
            self.signal(app, handle, signal.SIGTERM)  # a worker takes it for the same wish
        self.kick_siblings(app, handle)

    def stop(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        config = app.generations[handle.id.generation].config
        serves = handle.state not in LEAVING and handle.state is not State.STARTING
        if handle.state not in LEAVING:
            handle.leaving_because = reason
            self._say_draining(app, handle, reason)
        handle.happen(Happening.STOP, now)
        if self._give_up_unborn(app, handle):
            return
        # our own workers take a first signal for a wish to drain in their own time; who is in a hurry says so
        if serves and app.hurry and config.target is not None and self._say(handle, w.Drain(0.0, to_empty=False)):
            return
        self.signal(app, handle, signal_number(config.stop.signal))
        self.kick_siblings(app, handle)

    def _say_draining(self, app: App, handle: WorkerHandle, reason: str) -> None:
        if handle.health is not None:
            handle.health.stop()
        generation = handle.id.generation
        self._brain.emit(app, "worker_draining", handle.id.slot, generation=generation, pid=handle.pid, reason=reason)

    def kill(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        if handle.state is State.STARTING or handle.state is State.OPENING:
            hint = "is it stuck, or does it need a longer reload.ready_timeout?"
            if handle.health is not None and (failing := handle.health.health.reason):
                reason = f"{reason}: it fails its health check: {failing}"
                hint = "try the check by hand; if it only needs longer: reload.ready_timeout"
            handle.failure = handle.failure or w.Failed("other", reason, "", hint)
        handle.leaving_because = handle.leaving_because or reason
        handle.happen(Happening.KILL, now)
        if not self._give_up_unborn(app, handle):
            self.signal(app, handle, signal.SIGKILL)
            process.kill_group(handle.pid, signal.SIGKILL)

    def _give_up_unborn(self, app: App, handle: WorkerHandle) -> bool:
        """If nobody has said its pid yet, have it end by itself; False when there is a process to signal."""
        if not handle.pid:
            self.on_message(app, handle)  # it may have said it this moment
        if handle.pid:
            return False
        self._say(handle, w.Drain(0.0, to_empty=False))  # the guardian may hold its channel open for a while
        self._brain.deaths.ended(app, handle, process.UNKNOWN)
        return True

    def signal(self, app: App, handle: WorkerHandle, number: int) -> None:
        pidfd = self._brain.store.get(worker_fd("pid", handle.id))
        if pidfd is not None:
            with contextlib.suppress(PermissionError):
                process.send_signal(pidfd, number)

    def recycle(self, app: App, handle: WorkerHandle, reason: str) -> None:
        """Have a worker replaced, its successor first."""
        if handle.state in UNTOUCHED and not handle.recycle:
            handle.recycle = reason
            self._brain.emit(
                app, "worker_recycled", handle.id.slot, pid=handle.pid, generation=handle.id.generation, reason=reason
            )
            self._brain.poke(app)

    def watch(self, app: App, handle: WorkerHandle) -> None:
        """Listen to a worker's channel."""
        assert handle.ctl is not None
        self._brain.messages.watch(app, handle)
        self._brain.loop.add(handle.ctl.fileno(), READ, lambda _: self.on_message(app, handle))

    def on_message(self, app: App, handle: WorkerHandle) -> None:
        for _ in range(8):  # a flooding worker waits in its own buffer
            if handle.ctl is None:
                return
            packet = unix_fds.recv_packet(handle.ctl, w.MAX_WORKER_MESSAGE, 0)
            if packet is None:
                return
            if not packet.data and not packet.pid:  # an empty message has a sender, the end has none
                self._brain.loop.remove(handle.ctl.fileno())
                self._brain.deaths.channel_closed(app, handle)
                return
            try:
                if packet.truncated:
                    raise WireError("a message that is too long, or with fds")
                if not handle.talk.is_left(self._brain.loop.clock()):  # it has some ten to say in its life
                    raise WireError("more messages than there is a use for")
                handle.talk.spend()
                message: w.FromWorker = decode(w.FromWorker, packet.data, limit=w.MAX_WORKER_MESSAGE)
            except WireError as error:
                self._brain.note(app, f"worker {handle.id.slot} was killed: its channel said {str(error)[:200]}")
                handle.failure = handle.failure or w.Failed(
                    "other", f"it broke the protocol of its channel: {error}", ""
                )
                self.signal(app, handle, signal.SIGKILL)
                self._brain.loop.remove(handle.ctl.fileno())
                return
            state = handle.state
            self._take(app, handle, message, packet.pid)
            if handle.state is not state:
                app.write_memo()  # said once only: a daemon after this one must know it, whatever comes next here
            self._brain.poke(app)

    def resume(self, app: App, handle: WorkerHandle) -> None:
        """Go on with a worker of the daemon before this one: the timers that died with it are set again."""
        self.watch(app, handle)
        generation = app.generations.get(handle.id.generation)
        if handle.ready_at is not None:
            self.watch_health(app, handle)
        elif generation is not None and handle.state is State.STARTING and generation.config.target is None:
            if handle.port and generation.config.health is None:
                self._watch_port(app, handle)
            elif generation.config.script is not None and not handle.port:
                self._brain.loop.call_later(SCRIPT_SETTLE, lambda: self._script_settled(app, handle))
            elif handle.pid:
                self.is_ready(app, handle, generation, serving=True)

    def _take(self, app: App, handle: WorkerHandle, message: w.FromWorker, sender: int) -> None:
        now = self._brain.loop.clock()
        generation = app.generations.get(handle.id.generation)
        if generation is None:
            return
        if not handle.pid and sender > 0:  # Hello, or what follows it if a daemon died over it
            self._brain.deaths.claim(app, handle, sender)
        match message:
            case w.Hello(version=version):
                handle.version = version[:40]
                if generation.config.script is not None and not handle.port:  # one that never binds says nothing more
                    self._brain.loop.call_later(SCRIPT_SETTLE, lambda: self._script_settled(app, handle))
            case w.Ready(serving=serving):
                self.is_ready(app, handle, generation, serving)
            case w.Accepting():
                self._accepts(app, handle)
            case w.Failed():
                handle.failure = message
            case w.Recycle() if handle.recycle:
                pass  # it is about to be replaced
            case w.Recycle(reason=reason):
                handle.recycle = reason[:200] or "it asked for it"
                self._brain.emit(
                    app,
                    "worker_recycled",
                    handle.id.slot,
                    pid=handle.pid,
                    generation=handle.id.generation,
                    reason=handle.recycle,
                )
            case w.Drained():
                handle.drained = message
            case w.Bind(family=family, host=host, port=port):
                handle.waits_to_bind = (family, host, port)
                handle.bound = True
                if not handle.held or handle.gone_go:
                    self._answer_bind(app, handle)
                    self._accepts(app, handle)
                else:
                    self._is_held(app, handle, now)
            case w.Notice(text=text):
                self._brain.note(app, text)
            case _:
                assert_never(message)

    def is_ready(self, app: App, handle: WorkerHandle, generation: Generation, serving: bool) -> None:
        now = self._brain.loop.clock()
        config = generation.config
        if config.target is not None:
            if handle.held and not serving:
                self._is_held(app, handle, now)
            else:
                self._accepts(app, handle)
        elif is_node(config):
            # it says so when it listens; one that never does has come up all the same
            self._brain.loop.call_later(SCRIPT_SETTLE, lambda: self.says_ready(app, handle))
        elif config.balance == "proxy":
            if config.health is not None:
                self.watch_health(app, handle)
        elif config.script is not None:
            if not handle.bound:  # it called pyworker.ready()
                self._script_settled(app, handle)
        elif config.health is not None:
            self.watch_health(app, handle)
        elif config.ready != "notify":
            # it has been exec'd this moment; a command that cannot run is gone before this, a Node program says it listens
            settle = SCRIPT_SETTLE if shares(config) else COMMAND_SETTLE
            self._brain.loop.call_later(settle, lambda: self._settled(app, handle))

    def _watch_port(self, app: App, handle: WorkerHandle) -> None:
        """Try the port of a worker that says nothing by itself, until somebody answers there."""

        def tried(ok: bool, reason: str) -> None:
            if handle.state is not State.STARTING or handle.ended_at is not None:
                return
            if ok:
                self._comes_up(app, handle)
                self._brain.poke(app)
            else:
                self._brain.loop.call_later(PORT_TRIES, lambda: self._watch_port(app, handle))

        if handle.state is State.STARTING and handle.ended_at is None:
            try:
                check.tcp_at(self._brain.loop, ("127.0.0.1", handle.port), _TRY, tried)
            except OSError as error:  # out of fds: again
                tried(False, str(error))

    def _comes_up(self, app: App, handle: WorkerHandle) -> None:
        """A worker that serves on a port of its own can; before the commit of a reload nobody comes there."""
        generation = app.generations.get(handle.id.generation)
        silent = handle.port or (generation is not None and is_node(generation.config))
        if silent and handle.held and not handle.gone_go:
            self._is_held(app, handle, self._brain.loop.clock())
        else:
            self._accepts(app, handle)

    def _settled(self, app: App, handle: WorkerHandle) -> None:
        if handle.state is State.STARTING and handle.ended_at is None:
            self._accepts(app, handle)
            self._brain.poke(app)

    def _script_settled(self, app: App, handle: WorkerHandle) -> None:
        if handle.state is State.STARTING and handle.ended_at is None and not handle.bound:
            if handle.held:
                self._is_held(app, handle, self._brain.loop.clock())
            else:
                self._accepts(app, handle)
            self._brain.poke(app)

    def on_notified(self, pid: int, text: str) -> None:
        """A datagram on the notify socket, its sender by the kernel's word."""
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            session = pid
        for app in self._brain.apps.values():
            for handle in app.workers.values():
                if handle.pid and handle.pid in (pid, session) and handle.is_alive:
                    lines = text.splitlines()
                    if "READY=1" in lines and handle.state is State.STARTING:
                        self._comes_up(app, handle)
                    self._brain.poke(app)
                    return
        # a command that was started directly runs before the launcher, or a search, can tell its pid; it has our rights
        if "READY=1" in text.splitlines() and process.owner(session) == os.geteuid():
            now = self._brain.loop.clock()
            self._early = {pid: at for pid, at in self._early.items() if now - at < EARLY}
            if len(self._early) < MAX_EARLY:
                self._early[session] = now

    def was_early(self, pid: int) -> bool:
        """Whether a command had said that it is ready before anybody told its pid."""
        at = self._early.pop(pid, None)
        return at is not None and self._brain.loop.clock() - at < EARLY

    def says_ready(self, app: App, handle: WorkerHandle) -> None:
        """A command with ready = "notify" said so over its message channel."""
        if handle.state is State.STARTING and handle.ended_at is None:
            self._comes_up(app, handle)
            self._brain.poke(app)

    def watch_health(self, app: App, handle: WorkerHandle) -> None:
        """Begin to check a worker that says it is ready; goes on until it leaves."""
        generation = app.generations.get(handle.id.generation)
        if generation is None or generation.config.health is None or handle.health is not None:
            return
        begin_check = check_of(
            self._brain.loop,
            generation.resolved,
            lambda sock: self._say(handle, w.Check(), sock.fileno()),
            handle.port,
        )
        handle.health = HealthWatch(
            self._brain.loop,
            generation.config.health,
            begin_check,
            lambda verdict, reason: self._on_verdict(app, handle, verdict, reason),
        )

    def _on_verdict(self, app: App, handle: WorkerHandle, verdict: Verdict, reason: str) -> None:
        now = self._brain.loop.clock()
        if handle.state not in UNTOUCHED:
            return
        if verdict == "ok":
            handle.checked = True
            if handle.state is State.STARTING:  # a command that is ready when its check passes
                self._comes_up(app, handle)
            else:
                handle.happen(Happening.WELL, now)
        elif verdict == "failing" and handle.state is not State.STARTING:
            self._sick(app, handle, reason, now)
        self._brain.poke(app)

    def _sick(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        if handle.id.generation == app.target:
            said = diagnosis.last_lines(diagnosis.log_file(app, self._brain.home), handle.pid)
            app.target_failure = self._brain.fail(f"a new worker fails its health check: {reason}", "\n".join(said))
        elif handle.happen(Happening.SICK, now) is State.UNHEALTHY and handle.since == now:
            data = {"generation": handle.id.generation, "pid": handle.pid, "reason": reason}
            self._brain.events.emit_data("worker_unhealthy", app.name, handle.id.slot, data)

    def _is_held(self, app: App, handle: WorkerHandle, now: float) -> None:
        if handle.state is State.STARTING:
            handle.happen(Happening.IS_READY, now)
            self._note_ready(app, handle, now)
            took = round(now - handle.born_at, 3)
            self._brain.emit(
                app, "worker_held", handle.id.slot, generation=handle.id.generation, pid=handle.pid, took_s=took
            )

    def _accepts(self, app: App, handle: WorkerHandle) -> None:
        now = self._brain.loop.clock()
        before = handle.state
        if handle.happen(Happening.ACCEPTS, now) is State.READY and before is not State.READY:
            if handle.ready_at is None:
                self._note_ready(app, handle, now)
            took = round(handle.ready_at - handle.born_at, 3) if handle.ready_at else 0.0
            self._brain.emit(
                app, "worker_ready", handle.id.slot, generation=handle.id.generation, pid=handle.pid, took_s=took
            )

    def _note_ready(self, app: App, handle: WorkerHandle, now: float) -> None:
        handle.ready_at = now
        self.watch_health(app, handle)
        app.board.set_ready(handle.id.serial)

    def _answer_bind(self, app: App, handle: WorkerHandle) -> None:
        """Give a script the shared listener of the address it asked for."""
        if handle.waits_to_bind is None:
            return
        family, host, port = handle.waits_to_bind
        handle.waits_to_bind = None
        generation = app.generations[handle.id.generation]
        address = Address("unix", path=host) if family == "unix" else Address(family, host, port)  # type: ignore[arg-type]
        if address.family == "inet" and not host:
            address = Address("inet", "0.0.0.0", port)
        elif address.family == "inet6" and not host:
            address = Address("inet6", "::", port)
        try:
            if generation.resolved.uid is not None and str(address) not in generation.config.bind:
                message = f'with `user` set a script may only bind addresses named in the file: bind = "{address}"'
                raise ListenFailed(message, hint="add it to bind in the file", code="no_permission")
            listener = self._brain.listening.find(app, address)
            if listener is None and len(app.listeners) >= MAX_LISTENERS:
                message = (
                    f"cannot listen on {address}: this app has {len(app.listeners)} listeners, the most there can be"
                )
                raise ListenFailed(message, hint="close what is not needed", code="failed")
            listener = listener or self._brain.listening.open(app, address, generation)
        except ListenFailed as error:
            handle.failure = w.Failed("bind", error.message, "", error.hint)
            errno = 13 if error.code == "no_permission" else 98
            self._say(handle, w.Bound(errno, error.message[:500]))
            return
        self._say(handle, w.Bound(0), listener.sock.fileno())

    def _say(self, handle: WorkerHandle, message: w.ToWorker, fd: int | None = None) -> bool:
        if handle.ctl is None:
            return False
        try:
            return unix_fds.send_packet(handle.ctl, encode(message), [fd] if fd is not None else [])
        except OSError:
            return False  # it is dying: its pidfd will say so

    def kick_siblings(self, app: App, handle: WorkerHandle) -> None:
        """It may have been woken for a connection that it will not take now: the others look once."""
        for sibling in app.workers.values():
            if sibling is not handle and sibling.state in SERVING:
                self._say(sibling, w.Kick())


def signal_number(name: str) -> int:
    """Return the number of "TERM" or "SIGTERM"; the schema has checked that there is one."""
    return int(getattr(signal, "SIG" + name.removeprefix("SIG"), signal.SIGTERM))

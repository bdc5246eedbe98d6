"""Daemon: workers as it sees them: what they are told and what they say.

When they count as ready, and their health, is readiness.py; how they end is deaths.py. What a worker says is
untrusted: out of protocol is killed, and no message can name another worker, a path to open, a pid or a command.
"""

from __future__ import annotations

import errno
import random
import signal
import socket
from typing import TYPE_CHECKING, assert_never

from pyworker import failpoint
from pyworker.config.address import MAX_LISTENERS, Address
from pyworker.daemon import signals
from pyworker.daemon.app import App, Listener, note_exit
from pyworker.daemon.board import BoardFull
from pyworker.daemon.dispatchers import dispatcher_holds
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.listener import ListenFailed, check_asked
from pyworker.daemon.loop import READ
from pyworker.daemon.readiness import is_known_by_its_port
from pyworker.daemon.shortage import is_want, step_for, step_to_start
from pyworker.policy import restart
from pyworker.policy.converge import DRAIN_TIMEOUT
from pyworker.policy.lifecycle import LEAVING, SERVING, UNTOUCHED, Happening, State
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import worker_fd
from pyworker.protocol.names import DOES_NOT_END, STOPPED, WHO_STOPPED
from pyworker.protocol.stacks import parse, parse_tasks, whereabouts
from pyworker.protocol.wire import WireError, decode, encode
from pyworker.record import replace
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain

SAY_AGAIN = 0.05  # seconds until what a worker waits for is said again that could not be sent


class Workers:
    """Everything between birth and death."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain

    def spawn(self, app: App, slot: int, number: int, held: bool, now: float) -> None:
        handle = self._brain.spawner.prepare_worker(app, slot, number, held=held, now=now)
        app.workers[handle.id.serial] = handle
        try:
            app.board.allocate(handle.id)
            self._brain.spawner.worker(
                app,
                app.generations[number],
                handle,
                lambda number: self._brain.direct.failed(app, handle, number),
                lambda pid: self._brain.direct.started(app, handle, pid),
            )
        except BoardFull as error:
            del app.workers[handle.id.serial]
            self._brain.note(app, str(error))
            app.record = restart.after_unstable_death(app.record, now, app.restart_config, jitter=random.random())
            return
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            handle.failure = w.Failed("other", f"cannot start a process: {why}", "", step_to_start(error))
            self._brain.deaths.finish(app, handle, process.UNKNOWN)  # or its slot would wait for it
            if not isinstance(error, OSError):
                raise
            return
        config = app.generations[number].config
        handle.checked = config.health is None
        if is_known_by_its_port(config, handle):
            self._brain.readiness.watch_port(app, handle)
        self.watch(app, handle)

    def go(self, app: App, handle: WorkerHandle, now: float) -> None:
        failpoint.hit("reload.go")
        if handle.waits_to_bind is not None:
            self.on_message(app, handle)  # a daemon that was killed may have answered this, and it asks for another
        handle.gone_go = True
        handle.happen(Happening.GO, now)
        config = app.generations[handle.id.generation].config
        if dispatcher_holds(config):
            self._brain.readiness.accepts(app, handle)  # it does already; the dispatcher is told so
        elif config.script is not None:
            self._answer_bind(app, handle)
            self._brain.readiness.accepts(app, handle)
        else:
            self._tell(handle, w.Go())

    def drain(self, app: App, handle: WorkerHandle, to_empty: bool, reason: str, now: float) -> None:
        failpoint.hit("reload.drain")
        config = app.generations[handle.id.generation].config
        handle.leaving_because = reason
        handle.happen(Happening.DRAIN, now)
        self._say_draining(app, handle, reason)
        if dispatcher_holds(config):
            return  # the dispatcher gives it no more, and says when what it had has ended
        if config.command and self._brain.messages.disconnect(app, handle):
            return  # it closes its channel when what it had has ended
        to_empty = to_empty or bool(self._brain.listening.drops(app, handle.id.generation))
        if not self.say(handle, w.Drain(app.stop_config(handle.id.generation).drain_timeout, to_empty)):
            self.signal(app, handle, signal.SIGTERM)  # a worker takes it for the same wish
        self.kick_siblings(app, handle)

    def tell_time_to_drain(self, app: App) -> None:
        """Have those that drain already keep to `stop.drain_timeout` as it is now; what they were told may be another."""
        now = self._brain.loop.clock()
        for handle in app.workers.values():
            generation = app.generations.get(handle.id.generation)
            if handle.state is not State.DRAINING or generation is None or generation.config.command:
                continue
            if generation.config.balance != "proxy":
                left = handle.since + app.stop_config(generation.number).drain_timeout - now
                self.say(handle, w.Drain(max(0.0, left), to_empty=False))

    def stop(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        config = app.generations[handle.id.generation].config
        serves = handle.state not in LEAVING and handle.state is not State.STARTING
        late = reason == DRAIN_TIMEOUT and not app.hurry and not config.command
        if handle.state not in LEAVING:
            handle.leaving_because = reason
            self._say_draining(app, handle, reason)
        handle.happen(Happening.STOP, now)
        if self._give_up_unborn(app, handle):
            return
        # our own workers take a first signal for a wish to drain in their own time; who is in a hurry says so
        if serves and app.hurry and config.target is not None and self.say(handle, w.Drain(0.0, to_empty=False)):
            return
        number = signal_number(app.stop_config(handle.id.generation).signal)
        if late and process.is_stopped(handle.pid):
            self._is_late(app, handle, "", number)
        elif late:  # the signal may end it at once: first it is asked what has kept it
            self._brain.stacks.take(app, handle, lambda text, *_: self._is_late(app, handle, text, number))
        else:
            self.signal(app, handle, number)
        self.kick_siblings(app, handle)

    def _is_late(self, app: App, handle: WorkerHandle, stacks: str, number: int) -> None:
        """It has not ended within its time to drain: say where it is, then send the stop signal."""
        if not handle.is_alive or handle.ended_at is not None or handle.id.generation not in app.generations:
            return
        where = whereabouts([*parse(stacks), *parse_tasks(stacks, handle.pid)])
        patience = app.stop_config(handle.id.generation).drain_timeout
        text = f"worker {handle.id.slot} has not ended within stop.drain_timeout ({patience:g} s)"
        if process.is_stopped(handle.pid):
            text += f": {STOPPED}, and kill -CONT {handle.pid} lets it go on"
        elif where:
            text += f": it is in {where}"
        self._brain.remark(app, text[:500])
        self.signal(app, handle, number)

    def _say_draining(self, app: App, handle: WorkerHandle, reason: str) -> None:
        if handle.health is not None:
            handle.health.stop()
        self._brain.emit(app, "worker_draining", handle, reason=reason)

    def kill(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        ask_where = False
        if handle.state is State.STARTING or handle.state is State.OPENING:
            hint = "is it stuck, or does it need a longer reload.ready_timeout?"
            if process.is_stopped(handle.pid):
                reason, hint = f"{reason}: {STOPPED}", WHO_STOPPED
            elif handle.health is not None and (failing := handle.health.health.reason):
                reason = f"{reason}: it fails its health check: {failing}"
                hint = "try the check by hand; if it only needs longer: reload.ready_timeout"
            elif handle.state is State.STARTING and self._brain.readiness.is_to_bind(app, handle):
                reason = f"{reason}: it has bound no port, and the one that it is to replace has"
                hint = f"a longer reload.ready_timeout? one that is to bind none any more: pyworker restart {app.name}"
            else:
                ask_where = handle.failure is None and app.kind in ("asgi", "wsgi")
            handle.failure = handle.failure or w.Failed("other", reason, "", hint)
        handle.leaving_because = handle.leaving_because or reason
        handle.happen(Happening.KILL, now)
        if self._give_up_unborn(app, handle, at_last=True):
            return
        if ask_where:
            self._brain.stacks.take(app, handle, lambda text, *_: self._kill_stuck(app, handle, text))
        else:
            self._kill_now(app, handle)

    def _kill_stuck(self, app: App, handle: WorkerHandle, stacks: str) -> None:
        """It was to be ready by now: it has been asked where it is, which is why it has failed."""
        where = whereabouts([*parse(stacks), *parse_tasks(stacks, handle.pid)])
        if handle.failure is not None and where:
            handle.failure = replace(handle.failure, message=f"{handle.failure.message}: it is in {where}")
        if handle.is_alive and handle.ended_at is None:
            self._kill_now(app, handle)

    def _kill_now(self, app: App, handle: WorkerHandle) -> None:
        self.signal(app, handle, signal.SIGKILL)
        # one that has ended already has left others; of those of one that ends now Deaths takes care
        if handle.ended_at is None:
            process.kill_group(handle.pid, signal.SIGKILL)
        else:
            self._brain.deaths.signal_rest(handle, signal.SIGKILL)

    def do_without(self, app: App, handle: WorkerHandle, now: float) -> None:
        """Go on as if one that was killed had ended, if it has not."""
        pidfd = self._brain.store.get(worker_fd("pid", handle.id))
        if pidfd is None or handle.status is not None or process.is_gone(pidfd) or not process.is_kept(handle.pid):
            handle.since = now  # its end is being dealt with, or it could not be killed, which has been said
            return
        self._brain.remark(app, f"worker {handle.id.slot} (pid {handle.pid}) {DOES_NOT_END}")
        self._brain.loop.remove(pidfd)
        self._brain.deaths.ended(app, handle, process.UNKNOWN)

    def _give_up_unborn(self, app: App, handle: WorkerHandle, *, at_last: bool = False) -> bool:
        """If nobody has said its pid yet, have it end by itself; False when there is a process to signal."""
        if not handle.pid:
            self.on_message(app, handle)  # it may have said it this moment
        if handle.pid:
            return False
        self.say(handle, w.Drain(0.0, to_empty=False))  # the guardian may hold its channel open for a while
        template = app.templates.get(handle.id.generation)
        if template is not None and handle.id.serial in template.asked and not at_last:
            return True  # it is about to say the pid; what the worker has started by its end is to end with it
        if handle.launching:
            return True  # it may run, and then it reads nothing: who knows its pid is about to say it, or dies
        if handle.untold:
            self._brain.direct.end_untold(app, handle)
        self._brain.deaths.ended(app, handle, process.UNKNOWN)
        return True

    def leave_at_last(self, app: App, handle: WorkerHandle) -> None:
        """It was told to leave when nobody knew its pid, which has been said now, or it ends by itself."""
        if not self._give_up_unborn(app, handle):
            stop = signal_number(app.stop_config(handle.id.generation).signal)
            self.signal(app, handle, signal.SIGKILL if handle.state is State.KILLED else stop)

    def signal(self, app: App, handle: WorkerHandle, number: int) -> None:
        pidfd = self._brain.store.get(worker_fd("pid", handle.id))
        if pidfd is not None:
            handle.alive_at = process.alive_at(pidfd) or handle.alive_at
            signals.send(self._brain, app, pidfd, number, whose=f"worker {handle.id.slot}", pid=handle.pid, kill="kill")

    def recycle(
        self, app: App, handle: WorkerHandle, reason: str, *, can_wait: bool = False, again: bool = False
    ) -> None:
        """Have a worker replaced, its successor first; one that `can_wait` leaves once that has passed a health check.

        What is not begun again (a run of a job) ends instead; `again`: it is to be, all the same.
        """
        if handle.state not in UNTOUCHED or handle.recycle:
            return
        self._brain.emit(app, "worker_recycled", handle, reason=reason)
        if app.runs_once and not again:
            now = self._brain.loop.clock()
            app.failure = self._brain.fail(f"it was ended: {reason}")
            app.finished_slots.add(handle.id.slot)
            note_exit(app, handle.id.slot, process.UNKNOWN, round(now - handle.born_at, 3), reason, app.failure.at)
            self.stop(app, handle, reason, now)
        else:
            handle.recycle, handle.can_wait = reason, can_wait
        self._brain.poke(app)

    def watch(self, app: App, handle: WorkerHandle) -> None:
        assert handle.ctl is not None
        self._brain.messages.watch(app, handle)
        self._brain.loop.add(handle.ctl.fileno(), READ, lambda _: self.on_message(app, handle))

    def on_message(self, app: App, handle: WorkerHandle) -> None:
        for _ in range(8):  # a flooding worker waits in its own buffer
            if handle.ctl is None:
                return
            # it stays there until what follows from it is written down: it is said once, and a daemon that is killed over it
            # would leave a worker that was never ready, or a script that waits for its port for ever
            packet = unix_fds.peek_packet(handle.ctl, w.MAX_WORKER_MESSAGE + 1)  # which is seen to be too long
            if packet is None:
                return
            if not packet.data and not packet.pid:  # an empty message has a sender, the end has none
                self._brain.loop.remove(handle.ctl.fileno())
                self._brain.pids.channel_closed(app, handle)
                return
            if not handle.pid and packet.pid > 0 and handle.id.generation in app.generations:
                # Hello, or what follows it if a daemon died over it. One that has ended by now is heard to its end in there
                try:
                    self._brain.pids.claim(app, handle, packet.pid)
                except Exception:
                    unix_fds.drop_packet(handle.ctl)  # or it would be tried without end
                    raise
                continue
            try:
                if packet.truncated:
                    raise WireError("a message with fds")
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
                unix_fds.drop_packet(handle.ctl)
                return
            state = handle.state
            try:
                self._take(app, handle, message)
                if handle.state is not state:
                    app.write_memo()
            finally:
                unix_fds.drop_packet(handle.ctl)
            self._brain.poke(app)

    def resume(self, app: App, handle: WorkerHandle) -> None:
        """Go on with a worker of the daemon before this one."""
        self.watch(app, handle)
        if (handle.gone_go or not handle.held) and handle.id.generation in app.generations:
            self._answer_bind(app, handle)  # if that one could not
        self._brain.readiness.resume(app, handle)

    def _take(self, app: App, handle: WorkerHandle, message: w.FromWorker) -> None:
        now, readiness = self._brain.loop.clock(), self._brain.readiness
        generation = app.generations.get(handle.id.generation)
        if generation is None:
            return
        match message:
            case w.Hello(version=version):
                handle.version = version[:40]
                if generation.config.script is not None and not handle.port:
                    readiness.await_script(app, handle)
            case w.Ready(serving=serving):
                readiness.is_ready(app, handle, generation, serving)
            case w.Accepting():
                # a script has the listener that it asked for first, by the word maybe of a daemon that died over it
                handle.gone_go, handle.waits_to_bind = True, None
                readiness.accepts(app, handle)
            case w.Failed():
                if handle.failure is None or handle.failure.message.partition("\n")[0] not in message.message:
                    handle.failure = message  # else we have told it so, and know what helps
            case w.Recycle(reason=reason):
                self.recycle(app, handle, reason[:200] or "it asked for it", can_wait=True)
            case w.Drained():
                handle.drained = message
            case w.Bind(family=family, host=host, port=port):
                handle.waits_to_bind = (family, host, port)
                handle.bound = True
                if not handle.held or handle.gone_go:
                    if self._answer_bind(app, handle):
                        readiness.accepts(app, handle)
                    elif handle.state is State.STARTING:  # it ends, binds another one, or goes on without
                        handle.bound = False
                        readiness.await_script(app, handle)
                elif self._find_listener(app, handle) is not None:  # else it is told now, while the old ones serve
                    readiness.is_held(app, handle, now)
            case w.Notice(text=text):
                if not handle.noted:  # it has one in its life; the app has any number, and each would be an event
                    handle.noted = True
                    self._brain.note(app, text)
            case _:
                assert_never(message)

    def _answer_bind(self, app: App, handle: WorkerHandle) -> bool:
        """Give a script the shared listener of the address it asked for; False if it is told that there is none."""
        listener = self._find_listener(app, handle)
        if listener is None:
            return False
        self._tell(handle, w.Bound(0), listener.sock)
        return True

    def _find_listener(self, app: App, handle: WorkerHandle) -> Listener | None:
        """Return what a script asks for, opened if need be; without one it is told why there is none."""
        if handle.waits_to_bind is None:
            return None
        family, host, port = handle.waits_to_bind
        generation = app.generations[handle.id.generation]
        address = Address("unix", path=host) if family == "unix" else Address(family, host, port)  # type: ignore[arg-type]
        if address.family == "inet" and not host:
            address = Address("inet", "0.0.0.0", port)
        elif address.family == "inet6" and not host:
            address = Address("inet6", "::", port)
        try:
            check_asked(address)
            listener = self._brain.listening.find(app, address)
            is_named = str(address) in generation.config.bind
            is_named = is_named or (listener is not None and listener.index in generation.listeners)
            if generation.resolved.uid is not None and not is_named:
                message = f'with `user` set a script may only bind addresses named in the file: bind = "{address}"'
                raise ListenFailed(message, hint="add it to bind in the file", code="no_permission")
            if listener is None and len(app.listeners) >= MAX_LISTENERS:
                message = (
                    f"cannot listen on {address}: this app has {len(app.listeners)} listeners, the most there can be"
                )
                raise ListenFailed(message, hint="close what is not needed")
            listener = listener or self._brain.listening.open(app, address, generation)
        except ListenFailed as error:
            handle.failure = w.Failed("bind", error.message, "", error.hint)
            self._tell(handle, w.Bound(error.errno, error.message[:500]))
            return None
        except OSError as error:  # no descriptor is left: it would wait for its answer until it is killed
            message = f"cannot listen on {address}: {error.strerror}"
            handle.failure = w.Failed("bind", message, "", step_for(error.errno))
            self._tell(handle, w.Bound(error.errno or errno.EADDRINUSE, message[:500]))
            return None
        self._brain.listening.is_asked_for(app, listener, handle.id.generation)
        handle.failure = None  # of a port that it has tried before
        return listener

    def _tell(self, handle: WorkerHandle, message: w.ToWorker, sock: socket.socket | None = None) -> None:
        """Say what it waits for, again and again while there is no room for that: it would serve nobody, and count as one that does."""
        try:
            if self.send(handle, message, sock.fileno() if sock else None):
                if isinstance(message, w.Bound):  # not before: a daemon after this one would not know that it waits
                    handle.waits_to_bind = None
                return
        except OSError as error:
            if not is_want(error.errno):
                return  # it is dying: its pidfd will say so
        if handle.is_alive and handle.ctl is not None and handle.leaving_at is None:
            self._brain.loop.call_later(SAY_AGAIN, lambda: self._tell(handle, message, sock))

    def say(self, handle: WorkerHandle, message: w.ToWorker) -> bool:
        try:
            return self.send(handle, message)
        except OSError:
            return False  # it is dying: its pidfd will say so

    def send(self, handle: WorkerHandle, message: w.ToWorker, fd: int | None = None) -> bool:
        """Return whether there was room for a message; raises OSError."""
        if handle.ctl is None:
            return False
        return unix_fds.send_packet(handle.ctl, encode(message), [fd] if fd is not None else [])

    def kick_siblings(self, app: App, handle: WorkerHandle) -> None:
        """It may have been woken for a connection that it will not take now: the others look once."""
        for sibling in app.workers.values():
            if sibling is not handle and sibling.state in SERVING:
                self.say(sibling, w.Kick())


def signal_number(name: str) -> int:
    """Return the number of "TERM" or "SIGTERM"; the schema has checked that there is one."""
    return int(getattr(signal, "SIG" + name.removeprefix("SIG"), signal.SIGTERM))

"""Daemon: run policy after every event and carry out what it says. Events come in as methods named on_*.

Nothing is decided here that policy/ can decide. Whatever happens changes values, then `poke` has converge look at
all of them again; there is no recovery code for single events. What a worker or template says is untrusted: a message
that is out of protocol kills its sender, never the daemon.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from typing import assert_never

from pyworker.config.address import Address, parse_bind
from pyworker.config.schema import RestartConfig
from pyworker.daemon import diagnosis
from pyworker.daemon.app import App, Failure, Generation, Listener
from pyworker.daemon.board import BoardFull
from pyworker.daemon.events import EventLog, stamp
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import TemplateHandle, WorkerHandle
from pyworker.daemon.health import HealthWatch, check_of
from pyworker.daemon.listener import ListenFailed, open_listener, url
from pyworker.daemon.loop import READ, Loop, Timer
from pyworker.daemon.spawn import Spawner
from pyworker.policy import converge as c
from pyworker.policy import restart
from pyworker.policy.health import Verdict
from pyworker.policy.lifecycle import LEAVING, SERVING, UNTOUCHED, Happening, State
from pyworker.protocol import store as store_messages
from pyworker.protocol import template as t
from pyworker.protocol import worker as w
from pyworker.protocol.inherited import fd_name, worker_fd
from pyworker.protocol.logs import LogsSpec
from pyworker.protocol.scoreboard import AppF
from pyworker.protocol.wire import MAX_MESSAGE, WireError, decode, encode
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

STATUS_PATIENCE = 0.5  # how long the guardian's word on an exit status is waited for once a pidfd says "ended"
STRANGER_PATIENCE = 10.0  # how long an exit that nobody claims keeps its pid reserved
DIAGNOSIS_DELAY = 0.15  # lets the logger write the last words of a worker that died before it was ready
COMMAND_SETTLE = 1.0  # a command without any way to say so counts as ready after this
SCRIPT_SETTLE = 3.0  # ... and a script that has bound no port after this
RETIRE_TIMEOUT = 5.0  # a template that was told to leave


class Brain:
    """All apps, and the loop between what is seen and what is done."""

    def __init__(self, loop: Loop, store: FdStore, spawner: Spawner, events: EventLog, home: str) -> None:
        self.loop = loop
        self.store = store
        self.spawner = spawner
        self.events = events
        self.home = home
        self.apps: dict[str, App] = {}
        self.save: Callable[[], None] = lambda: None  # writes apps.json; raises OSError
        self.on_settled: Callable[[App], None] = lambda app: None  # after each round: waiting commands look
        self.on_closed: Callable[[App], None] = lambda app: None
        self._poked: set[str] = set()
        self._looks: dict[str, Timer] = {}
        self._unclaimed: dict[int, process.ExitStatus] = {}
        self._helpers: dict[int, tuple[int, App, int]] = {}  # pidfd of a launcher -> pid, app, serial
        store.on_exited = self.on_exited

    # ---- rounds ------------------------------------------------------------------------------------------
    def poke(self, app: App) -> None:
        """Have policy look at the app soon."""
        if app.name not in self._poked:
            self._poked.add(app.name)
            self.loop.call_soon(lambda: self._round(app))

    def _round(self, app: App) -> None:
        self._poked.discard(app.name)
        if app.closed or app.current is None:
            return
        look: float | None = None
        for _ in range(100):
            now = self.loop.clock()
            actions = c.converge(app.view(), now)
            looks = [a.at for a in actions if isinstance(a, c.LookAgain)]
            look = looks[0] if looks else None
            doing = [a for a in actions if not isinstance(a, c.LookAgain)]
            for action in doing:
                self._perform(app, action, now)
            if _is_over(app) or not doing:
                break
        self._note_progress(app)
        timer = self._looks.pop(app.name, None)
        if timer is not None:
            timer.cancel()
        if look is not None and not _is_over(app):
            self._looks[app.name] = self.loop.call_at(max(look, self.loop.clock() + 0.001), lambda: self.poke(app))
        self._drop_generations(app)
        if not _is_over(app):
            app.write_memo()
        self.on_settled(app)

    def _note_progress(self, app: App) -> None:
        """Turn what has been reached into events: a start that is complete, a reload that is."""
        now = self.loop.clock()
        if app.restart_to is not None and not app.running and app.is_empty():
            number, app.restart_to = app.restart_to, None
            app.keep_listening = False
            self.begin(app, number)
            with contextlib.suppress(
                OSError
            ):  # the old number would have the next daemon look for the wrong generation
                self.save()
            return
        if _is_over(app) or not app.running:
            return
        if app.starting and app.is_open(now):
            app.starting = False
            app.failure = None
            took = round(now - app.started_at, 3)
            self.emit(app, "app_running", None, generation=app.generation, workers=len(app.slots()), took_s=took)
        elif app.starting and not app.slots():
            app.starting = False  # all of it has finished already (policy = "never", a job)
        if app.reload_from is not None and app.is_open(now):
            took = round(now - app.reload_started_at, 3)
            data = {"from": app.reload_from, "to": app.generation, "took_s": took}
            app.reload_from = None
            app.board.add_app(AppF.RELOADS)
            self.events.emit_data("reload_done", app.name, None, data)
        elif not app.starting and app.record.is_clear and app.is_open(now):
            app.failure = None

    def emit(self, app: App, type: str, slot: int | None, **data: object) -> None:
        self.events.emit_data(type, app.name, slot, data)

    def fail(self, message: str, traceback: str = "", hint: str = "") -> Failure:
        return Failure(message, traceback, hint, stamp(time.time()))

    # ---- actions -------------------------------------------------------------------------------------------
    def _perform(self, app: App, action: c.Action, now: float) -> None:
        match action:
            case c.StartTemplate(generation=number):
                self._start_template(app, number, now)
            case c.StopTemplate(generation=number, reason=reason):
                self._stop_template(app, app.templates[number], reason, now)
            case c.Spawn(slot=slot, generation=number, held=held):
                self._spawn(app, slot, number, held, now)
            case c.SendGo(serial=serial):
                self._go(app, app.workers[serial], now)
            case c.SendDrain(serial=serial, to_empty=to_empty, reason=reason):
                self._drain(app, app.workers[serial], to_empty, reason, now)
            case c.SendStop(serial=serial, reason=reason):
                self._stop(app, app.workers[serial], reason, now)
            case c.SendKill(serial=serial, reason=reason):
                self._kill(app, app.workers[serial], reason, now)
            case c.Commit(generation=number):
                self._commit(app, number, now)
            case c.AbortReload():
                self._abort_reload(app)
            case c.RollBack(generation=number, reason=reason):
                self._roll_back(app, number, reason)
            case c.EndSoak():
                app.previous = None
            case c.FailStart():
                self._fail_start(app, now)
            case c.ClearRecord():
                app.record = restart.CLEAR
                app.failure = None
            case c.ShutListeners():
                for listener in app.listeners.values():
                    with contextlib.suppress(OSError):
                        listener.sock.shutdown(socket.SHUT_RD)
                app.listening = False
            case c.Close():
                self.close(app)
            case c.LookAgain():
                pass
            case _:
                assert_never(action)

    def _start_template(self, app: App, number: int, now: float) -> None:
        self.emit(app, "template_starting", None, generation=number)
        try:
            handle = self.spawner.template(app, app.generations[number], now)
        except OSError as error:
            self._template_failed(app, number, self.fail(f"cannot start a process: {error.strerror}"), now)
            return
        app.templates[number] = handle
        assert handle.channel is not None
        self.watch_template(app, handle)
        try:
            pidfd = os.pidfd_open(handle.pid)
        except OSError:
            self.template_gone(app, handle, process.UNKNOWN)
            return
        self.store.put(fd_name("tpid", app.name, number), pidfd)
        self.watch_template_pid(app, handle, pidfd)

    def watch_template_pid(self, app: App, handle: TemplateHandle, pidfd: int) -> None:
        """Wait for the end of a template."""
        self.loop.add(pidfd, READ, lambda _: self._template_ended(app, handle, pidfd))

    def _stop_template(self, app: App, handle: TemplateHandle, reason: str, now: float) -> None:
        if reason:
            handle.killed_because = reason
            handle.state, handle.since = "retiring", now
            self._kill_template(app, handle)
            return
        handle.state, handle.since = "retiring", now
        with contextlib.suppress(OSError):
            if handle.channel is not None:
                unix_fds.send_packet(handle.channel, encode(t.Retire()))
        self.loop.call_later(RETIRE_TIMEOUT, lambda: None if handle.ended else self._kill_template(app, handle))

    def _kill_template(self, app: App, handle: TemplateHandle) -> None:
        pidfd = self.store.get(fd_name("tpid", app.name, handle.generation))
        if pidfd is not None and app.templates.get(handle.generation) is handle:
            process.send_signal(pidfd, signal.SIGKILL)

    def _spawn(self, app: App, slot: int, number: int, held: bool, now: float) -> None:
        try:
            handle = self.spawner.prepare_worker(app, slot, number, held=held, now=now)
        except BoardFull as error:
            self.note(app, str(error))
            app.record = restart.after_unstable_death(app.record, now, self._restart(app), jitter=random.random())
            return
        app.workers[handle.id.serial] = handle
        try:
            launcher = self.spawner.worker(app, app.generations[number], handle)
        except OSError as error:
            handle.failure = w.Failed("other", f"cannot start a process: {error.strerror or error}", "")
            self._finish(app, handle, process.UNKNOWN)
            return
        config = app.generations[number].config
        handle.checked = config.health is None
        self.watch_worker(app, handle)
        if launcher:
            self._watch_launcher(app, handle, launcher)

    def _watch_launcher(self, app: App, handle: WorkerHandle, pid: int) -> None:
        pidfd = os.pidfd_open(pid)  # our own child, unreaped: the pid cannot have been used again

        def ended(_: int) -> None:
            self.loop.remove(pidfd)
            status = process.collect(pidfd)
            os.close(pidfd)
            if status is not None and status != process.ExitStatus(0, None) and not handle.pid and handle.is_alive:
                self._ended(app, handle, status)

        self.loop.add(pidfd, READ, ended)

    def _go(self, app: App, handle: WorkerHandle, now: float) -> None:
        handle.gone_go = True
        handle.happen(Happening.GO, now)
        if app.generations[handle.id.generation].config.script is not None:
            self._answer_bind(app, handle)
            self._accepts(app, handle)
        else:
            self._say(handle, w.Go())

    def _drain(self, app: App, handle: WorkerHandle, to_empty: bool, reason: str, now: float) -> None:
        config = app.generations[handle.id.generation].config
        handle.leaving_because = reason
        handle.happen(Happening.DRAIN, now)
        self._say_draining(app, handle, reason)
        if not self._say(handle, w.Drain(config.stop.drain_timeout, to_empty)):
            self._signal(app, handle, signal.SIGTERM)  # a worker takes it for the same wish
        self._kick_siblings(app, handle)

    def _stop(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        config = app.generations[handle.id.generation].config
        serves = handle.state not in LEAVING and handle.state is not State.STARTING
        if handle.state not in LEAVING:
            handle.leaving_because = reason
            self._say_draining(app, handle, reason)
        handle.happen(Happening.STOP, now)
        if not handle.pid:
            self._kill_unborn(app, handle)
            return
        # our own workers take a first signal for a wish to drain in their own time; who is in a hurry says so
        if serves and app.hurry and config.target is not None and self._say(handle, w.Drain(0.0, to_empty=False)):
            return
        self._signal(app, handle, _signal_number(config.stop.signal))
        self._kick_siblings(app, handle)

    def _say_draining(self, app: App, handle: WorkerHandle, reason: str) -> None:
        if handle.health is not None:
            handle.health.stop()
        generation = handle.id.generation
        self.emit(app, "worker_draining", handle.id.slot, generation=generation, pid=handle.pid, reason=reason)

    def _kill(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        if handle.state is State.STARTING or handle.state is State.OPENING:
            handle.failure = handle.failure or w.Failed(
                "other", reason, "", "is it stuck, or does it need a longer reload.ready_timeout?"
            )
        handle.leaving_because = handle.leaving_because or reason
        handle.happen(Happening.KILL, now)
        if handle.pid:
            self._signal(app, handle, signal.SIGKILL)
            process.kill_group(handle.pid, signal.SIGKILL)
        else:
            self._kill_unborn(app, handle)

    def _kill_unborn(self, app: App, handle: WorkerHandle) -> None:
        """Nobody has said its pid yet: it ends by itself when its channel is closed."""
        self._ended(app, handle, process.UNKNOWN)

    def _signal(self, app: App, handle: WorkerHandle, number: int) -> None:
        pidfd = self.store.get(worker_fd("pid", handle.id))
        if pidfd is not None:
            with contextlib.suppress(PermissionError):
                process.send_signal(pidfd, number)

    def _commit(self, app: App, number: int, now: float) -> None:
        old, old_previous = app.generation, app.previous
        config = app.generations[number].config
        app.previous = old if config.reload.soak > 0 and app.view().overlaps and old in app.generations else None
        app.generation, app.target = number, None
        try:
            self.save()
        except OSError as error:
            app.generation, app.target, app.previous = old, number, old_previous
            app.target_failure = self.fail(
                f"cannot write apps.json: {error.strerror}", hint="free some disk space, then reload again"
            )
            return
        app.soak_until = now + config.reload.soak
        app.soak_deaths = 0
        app.record = restart.CLEAR
        app.finished_slots.clear()
        app.reload_from = old
        self.write_logs_spec(app)
        self.events.emit_data("reload_committed", app.name, None, {"from": old, "to": number})

    def _abort_reload(self, app: App) -> None:
        assert app.target is not None
        failure = app.target_failure or self.fail("it was given up")
        number, app.target, app.target_failure = app.target, None, None
        app.refused[number] = failure
        data = {
            "from": app.generation,
            "to": number,
            "reason": failure.message,
            "traceback": failure.traceback,
            "hint": failure.hint,
        }
        self.events.emit_data("reload_refused", app.name, None, data)

    def _roll_back(self, app: App, number: int, reason: str) -> None:
        given_up = app.generation
        app.generation, app.previous = number, None
        app.record = restart.CLEAR
        app.reload_from = None
        failure = self.fail(
            reason + (f": {app.failure.message}" if app.failure else ""), app.failure.traceback if app.failure else ""
        )
        app.refused[given_up] = failure
        with contextlib.suppress(OSError):
            self.save()
        self.note(app, f"generation {given_up} was rolled back: {failure.message}")
        self.events.emit_data(
            "reload_rolled_back", app.name, None, {"from": number, "to": given_up, "reason": failure.message}
        )

    def _fail_start(self, app: App, now: float) -> None:
        failure = app.start_failure or self.fail("the start failed")
        app.start_failure = None
        app.record = restart.after_refusal(app.record, now)
        app.failure = failure
        app.running = app.starting = False  # its port is closed again: nobody would answer there
        self.emit(
            app, "app_failed", None, reason=failure.message, traceback=failure.traceback, hint=failure.hint, restarts=0, window_s=0.0
        )  # fmt: skip

    # ---- starting and ending an app ----------------------------------------------------------------------------
    def begin(self, app: App, number: int) -> None:
        """Start the app with a generation whose listeners are open."""
        app.generation = number
        app.wanted = app.running = app.starting = True
        app.closed = False
        app.listening, app.hurry, app.keep_listening = True, False, False
        app.target = app.previous = app.reload_from = None
        app.target_failure = app.start_failure = app.failure = None
        app.record = restart.CLEAR
        app.finished_slots.clear()
        app.started_at = self.loop.clock()
        app.refused.clear()
        app.notes.clear()
        if app.scale is not None and app.scale_base != app.generations[number].config.workers:
            app.scale = app.scale_base = None
        self.write_logs_spec(app)
        generation = app.generations[number]
        listen = [url(app.listeners[i].address, generation.config.tls is not None) for i in generation.listeners]
        self.emit(app, "app_started", None, generation=number, workers=app.want, listen=listen)
        self.poke(app)

    def add_generation(self, app: App, generation: Generation) -> None:
        """Pin a generation: its listeners opened (raises ListenFailed, then nothing has changed), its memo stored."""
        opened: list[Listener] = []
        indexes: list[int] = []
        try:
            for text in generation.config.bind:
                address = parse_bind(text)
                listener = self._find_listener(app, address)
                if listener is None:
                    listener = self._open_listener(app, address, generation)
                    opened.append(listener)
                indexes.append(listener.index)
        except ListenFailed:
            for listener in opened:
                self.close_listener(app, listener)
            raise
        generation.listeners = tuple(indexes)
        app.generations[generation.number] = generation
        app.last_generation = max(app.last_generation, generation.number)
        self.store.put(
            fd_name("env", app.name, generation.number), unix_fds.memfd(f"pyworker-env-{app.name}", generation.pack())
        )

    def _find_listener(self, app: App, address: Address) -> Listener | None:
        return next((x for x in app.listeners.values() if x.address == address and app.listening), None)

    def _open_listener(self, app: App, address: Address, generation: Generation) -> Listener:
        for other in self.apps.values():
            for theirs in other.listeners.values():
                if other is not app and theirs.address == address and address.port != 0:
                    raise ListenFailed(
                        f"cannot listen on {address}: already in use by your app {other.name}",
                        hint=f"pyworker stop {other.name}   or choose another address",
                        code="port_in_use",
                    )
        index = max(app.listeners, default=-1) + 1
        sock = open_listener(address, backlog=generation.config.backlog)
        listener = Listener(index, address, sock)
        app.listeners[index] = listener
        self.store.put(fd_name("listen", app.name, index), os.dup(sock.fileno()))
        return listener

    def close_listener(self, app: App, listener: Listener) -> None:
        app.listeners.pop(listener.index, None)
        self.store.remove(fd_name("listen", app.name, listener.index))
        if listener.address.family == "unix":
            _unlink_own_socket(listener)
        listener.sock.close()

    def close(self, app: App) -> None:
        """Nothing lives any more: give back all that the system keeps for the app."""
        app.closed = True
        app.running = app.starting = False
        for listener in list(app.listeners.values()):
            with contextlib.suppress(OSError):
                listener.sock.shutdown(socket.SHUT_RD)
            self.close_listener(app, listener)
        for number in list(app.generations):
            if number != app.generation:
                del app.generations[number]
            self.store.remove(fd_name("env", app.name, number))
        app.write_memo()
        self.emit(app, "app_stopped", None)
        self.on_closed(app)

    def _drop_generations(self, app: App) -> None:
        if app.closed:
            return
        used = {app.generation, app.target, app.previous, app.restart_to}
        used |= {x.id.generation for x in app.workers.values()} | set(app.templates)
        for number in [n for n in app.generations if n not in used]:
            del app.generations[number]
            self.store.remove(fd_name("env", app.name, number))
        named = {i for g in app.generations.values() for i in g.listeners}
        scripts = any(g.config.script is not None for g in app.generations.values())
        for listener in [x for x in app.listeners.values() if x.index not in named and not scripts]:
            self.close_listener(app, listener)

    def write_logs_spec(self, app: App) -> None:
        """Tell the logger how this app's log is written."""
        config = app.config
        assert config is not None
        logs = config.logs
        file = logs.file or os.path.join(self.home, "logs", f"{app.name}.log")
        spec = LogsSpec(
            file,
            logs.format,
            logs.max_size,
            logs.max_files,
            logs.compress,
            stop_signal=_signal_number(config.stop.signal),
            drain_timeout=config.stop.drain_timeout,
            drains_alone=config.target is not None or config.script is not None,
        )
        self.store.put(fd_name("logs", app.name), unix_fds.memfd(f"pyworker-logs-{app.name}", encode(spec)))

    def note(self, app: App, text: str) -> None:
        """Something the operator should know."""
        if text not in app.notes:
            app.notes.append(text[:500])
            del app.notes[:-20]
            self.emit(app, "app_note", None, text=text[:500])

    # ---- templates: what they say and how they end --------------------------------------------------------------
    def watch_template(self, app: App, handle: TemplateHandle) -> None:
        """Listen to a template's channel."""
        assert handle.channel is not None
        self.loop.add(handle.channel.fileno(), READ, lambda _: self._on_template(app, handle))

    def _on_template(self, app: App, handle: TemplateHandle) -> None:
        channel = handle.channel
        for _ in range(64):
            if channel is None:
                return
            packet = unix_fds.recv_packet(channel, MAX_MESSAGE, 0)
            if packet is None:
                break
            if not packet.data and not packet.pid:  # an empty message has a sender, the end has none
                self.loop.remove(channel.fileno())  # its pidfd says how it ended
                break
            try:
                message: t.FromTemplate = decode(t.FromTemplate, packet.data)
            except WireError as error:
                handle.killed_because = f"it said something that is no message: {error}"
                self._kill_template(app, handle)
                break
            self._take_template(app, handle, message)
        self.poke(app)

    def _take_template(self, app: App, handle: TemplateHandle, message: t.FromTemplate) -> None:
        now = self.loop.clock()
        match message:
            case t.Loaded():
                handle.loaded = message
                if handle.state == "loading":
                    handle.state, handle.since = "ready", now
                self.emit(
                    app, "template_ready", None,
                    generation=handle.generation, took_s=message.took, preload=message.preload, why=message.why,
                )  # fmt: skip
                if message.why:
                    self.note(app, message.why)
            case t.LoadFailed():
                handle.failure = message
            case t.Forked(serial=serial, pid=pid):
                worker = app.workers.get(serial)
                if worker is not None and worker.id.generation == handle.generation and not worker.pid:
                    self._claim(app, worker, pid)
            case t.ForkFailed(serial=serial, errno=errno):
                worker = app.workers.get(serial)
                if worker is not None and worker.is_alive and worker.id.generation == handle.generation:
                    worker.failure = w.Failed("other", f"cannot fork: {os.strerror(errno)}", "")
                    self._finish(app, worker, process.UNKNOWN)
            case _:
                assert_never(message)

    def _template_ended(self, app: App, handle: TemplateHandle, pidfd: int) -> None:
        self.loop.remove(pidfd)
        self._on_template(app, handle)  # its last words first
        status = process.collect(pidfd)
        if status == process.UNKNOWN:  # adopted: the guardian's child
            known = self._unclaimed.pop(handle.pid, None)
            if known is None:
                self.loop.call_later(
                    STATUS_PATIENCE,
                    lambda: self.template_gone(app, handle, self._unclaimed.pop(handle.pid, process.UNKNOWN)),
                )
                return
            status = known
        self.template_gone(app, handle, status or process.UNKNOWN)

    def template_gone(self, app: App, handle: TemplateHandle, status: process.ExitStatus) -> None:
        if handle.ended:
            return
        handle.ended = True
        number = handle.generation
        if app.templates.get(number) is handle:
            del app.templates[number]
        if handle.channel is not None:
            self.loop.remove(handle.channel.fileno())
            handle.channel.close()
        self.store.remove(fd_name("template", app.name, number), fd_name("tpid", app.name, number))
        self.store.forget(fd_name("tout", app.name, number), fd_name("terr", app.name, number))
        now = self.loop.clock()
        if handle.state == "retiring" and not handle.killed_because:
            self.poke(app)
            return
        words, traceback, hint = diagnosis.of_template(app, handle, status)
        self.emit(app, "template_exited", None, generation=number, reason=words)
        # whoever was being forked by it dies unborn
        for worker in list(app.workers.values()):
            if worker.id.generation == number and worker.state is State.STARTING and not worker.pid:
                self.loop.call_later(STATUS_PATIENCE, functools.partial(self._unborn, app, worker))
        if handle.state != "ready":
            self._template_failed(app, number, self.fail(words, traceback, hint), now, permanent=status.code == 78)
        self.poke(app)

    def _unborn(self, app: App, handle: WorkerHandle) -> None:
        """Nobody has said a pid: the process never came."""
        if not handle.pid:
            self._ended(app, handle, process.UNKNOWN)

    def _template_failed(self, app: App, number: int, failure: Failure, now: float, *, permanent: bool = False) -> None:
        if number == app.target:
            app.target_failure = failure
        elif number == app.generation and app.starting:
            app.start_failure = failure
        elif number == app.generation and app.running:
            self._unstable_death(app, failure, now, permanent=permanent)
        self.poke(app)

    # ---- workers: what they say -------------------------------------------------------------------------------
    def watch_worker(self, app: App, handle: WorkerHandle) -> None:
        """Listen to a worker's channel."""
        assert handle.ctl is not None
        self.loop.add(handle.ctl.fileno(), READ, lambda _: self._on_worker(app, handle))

    def _on_worker(self, app: App, handle: WorkerHandle) -> None:
        for _ in range(8):  # a flooding worker waits in its own buffer
            if handle.ctl is None:
                return
            packet = unix_fds.recv_packet(handle.ctl, w.MAX_WORKER_MESSAGE, 0)
            if packet is None:
                return
            if not packet.data and not packet.pid:  # an empty message has a sender, the end has none
                self.loop.remove(handle.ctl.fileno())
                self._channel_closed(app, handle)
                return
            try:
                if packet.truncated:
                    raise WireError("a message that is too long, or with fds")
                message: w.FromWorker = decode(w.FromWorker, packet.data, limit=w.MAX_WORKER_MESSAGE)
            except WireError as error:
                self.note(app, f"worker {handle.id.slot} was killed: its channel said {str(error)[:200]}")
                handle.failure = handle.failure or w.Failed(
                    "other", f"it broke the protocol of its channel: {error}", ""
                )
                self._signal(app, handle, signal.SIGKILL)
                self.loop.remove(handle.ctl.fileno())
                return
            self._take_worker(app, handle, message, packet.pid)
            self.poke(app)

    def _take_worker(self, app: App, handle: WorkerHandle, message: w.FromWorker, sender: int) -> None:
        now = self.loop.clock()
        generation = app.generations.get(handle.id.generation)
        if generation is None:
            return
        match message:
            case w.Hello():
                if not handle.pid and sender > 0:
                    self._claim(app, handle, sender)
                if generation.config.script is not None:  # one that never binds says nothing more
                    self.loop.call_later(SCRIPT_SETTLE, lambda: self._script_settled(app, handle))
            case w.Ready(serving=serving):
                self._is_ready(app, handle, generation, serving)
            case w.Accepting():
                self._accepts(app, handle)
            case w.Failed():
                handle.failure = message
            case w.Recycle(reason=reason):
                handle.recycle = reason[:200] or "it asked for it"
                self.emit(
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
                self.note(app, text)
            case _:
                assert_never(message)

    def _is_ready(self, app: App, handle: WorkerHandle, generation: Generation, serving: bool) -> None:
        now = self.loop.clock()
        config = generation.config
        if config.target is not None:
            if handle.held and not serving:
                self._is_held(app, handle, now)
            else:
                self._accepts(app, handle)
        elif config.script is not None:
            if not handle.bound:  # it called pyworker.ready()
                self._script_settled(app, handle)
        elif config.health is not None:
            self.watch_health(app, handle)
        elif config.ready != "notify":
            # it has been exec'd this moment; a command that cannot run is gone before this
            self.loop.call_later(COMMAND_SETTLE, lambda: self._settled(app, handle))

    def _settled(self, app: App, handle: WorkerHandle) -> None:
        if handle.state is State.STARTING and handle.ended_at is None:
            self._accepts(app, handle)
            self.poke(app)

    def _script_settled(self, app: App, handle: WorkerHandle) -> None:
        if handle.state is State.STARTING and handle.ended_at is None and not handle.bound:
            if handle.held:
                self._is_held(app, handle, self.loop.clock())
            else:
                self._accepts(app, handle)
            self.poke(app)

    def on_notified(self, pid: int, text: str) -> None:
        """A datagram on the notify socket, its sender by the kernel's word."""
        try:
            session = os.getsid(pid)
        except ProcessLookupError:
            session = pid
        for app in self.apps.values():
            for handle in app.workers.values():
                if handle.pid and handle.pid in (pid, session) and handle.is_alive:
                    lines = text.splitlines()
                    if "READY=1" in lines and handle.state is State.STARTING:
                        self._accepts(app, handle)
                    self.poke(app)
                    return

    # ---- health ----------------------------------------------------------------------------------------
    def watch_health(self, app: App, handle: WorkerHandle) -> None:
        """Begin to check a worker that says it is ready; goes on until it leaves."""
        generation = app.generations.get(handle.id.generation)
        if generation is None or generation.config.health is None or handle.health is not None:
            return
        begin_check = check_of(self.loop, generation.resolved, lambda sock: self._say(handle, w.Check(), sock.fileno()))
        handle.health = HealthWatch(
            self.loop,
            generation.config.health,
            begin_check,
            lambda verdict, reason: self._on_verdict(app, handle, verdict, reason),
        )

    def _on_verdict(self, app: App, handle: WorkerHandle, verdict: Verdict, reason: str) -> None:
        now = self.loop.clock()
        if handle.state not in UNTOUCHED:
            return
        if verdict == "ok":
            handle.checked = True
            if handle.state is State.STARTING:  # a command that is ready when its check passes
                self._accepts(app, handle)
            else:
                handle.happen(Happening.WELL, now)
        elif verdict == "failing" and handle.state is not State.STARTING:
            self._sick(app, handle, reason, now)
        self.poke(app)

    def _sick(self, app: App, handle: WorkerHandle, reason: str, now: float) -> None:
        if handle.id.generation == app.target:
            app.target_failure = self.fail(f"a new worker fails its health check: {reason}")
        elif handle.happen(Happening.SICK, now) is State.UNHEALTHY and handle.since == now:
            data = {"generation": handle.id.generation, "pid": handle.pid, "reason": reason}
            self.events.emit_data("worker_unhealthy", app.name, handle.id.slot, data)

    def _is_held(self, app: App, handle: WorkerHandle, now: float) -> None:
        if handle.state is State.STARTING:
            handle.happen(Happening.IS_READY, now)
            self._note_ready(app, handle, now)
            took = round(now - handle.born_at, 3)
            self.emit(app, "worker_held", handle.id.slot, generation=handle.id.generation, pid=handle.pid, took_s=took)

    def _accepts(self, app: App, handle: WorkerHandle) -> None:
        now = self.loop.clock()
        before = handle.state
        if handle.happen(Happening.ACCEPTS, now) is State.READY and before is not State.READY:
            if handle.ready_at is None:
                self._note_ready(app, handle, now)
            took = round(handle.ready_at - handle.born_at, 3) if handle.ready_at else 0.0
            self.emit(app, "worker_ready", handle.id.slot, generation=handle.id.generation, pid=handle.pid, took_s=took)

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
            listener = self._find_listener(app, address) or self._open_listener(app, address, generation)
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

    def _kick_siblings(self, app: App, handle: WorkerHandle) -> None:
        """It may have been woken for a connection that it will not take now: the others look once."""
        for sibling in app.workers.values():
            if sibling is not handle and sibling.state in SERVING:
                self._say(sibling, w.Kick())

    # ---- workers: how they end -----------------------------------------------------------------------------------
    def _claim(self, app: App, handle: WorkerHandle, pid: int) -> None:
        """This process is that worker. The pid is the guardian's child and stays reserved until `collected`."""
        handle.pid = pid
        app.board.set_pid(handle.id.serial, pid)
        known = self._unclaimed.pop(pid, None)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            self._ended(app, handle, known or process.UNKNOWN)
            return
        self.store.put(worker_fd("pid", handle.id), pidfd)
        self.emit(app, "worker_starting", handle.id.slot, generation=handle.id.generation, pid=pid)
        if known is not None:
            self._ended(app, handle, known)
        else:
            self.watch_pid(app, handle, pidfd)

    def watch_pid(self, app: App, handle: WorkerHandle, pidfd: int) -> None:
        """Wait for the end of a worker."""

        def ended(_: int) -> None:
            self.loop.remove(pidfd)
            if handle.status is None:
                handle.ended_at = self.loop.clock()
                self.loop.call_later(STATUS_PATIENCE, lambda: self._ended(app, handle, process.UNKNOWN))

        self.loop.add(pidfd, READ, ended)

    def on_exited(self, message: store_messages.Exited) -> None:
        """The guardian says how one of its children ended."""
        status = process.ExitStatus(message.code, message.signal, message.core)
        for app in self.apps.values():
            for handle in app.workers.values():
                if handle.pid == message.pid and handle.is_alive:
                    self._ended(app, handle, status)
                    return
        pid = message.pid
        self._unclaimed[pid] = status

        def forget() -> None:
            self._unclaimed.pop(pid, None)
            self.store.collected(pid)

        self.loop.call_later(STRANGER_PATIENCE, forget)

    def _channel_closed(self, app: App, handle: WorkerHandle) -> None:
        """End-of-file: normal for a command (it is exec'd); else the process is gone or about to be."""
        if not handle.pid and handle.is_alive:
            self.loop.call_later(
                STATUS_PATIENCE, lambda: None if handle.pid else self._ended(app, handle, process.UNKNOWN)
            )

    def _ended(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> None:
        if handle.status is not None or not handle.is_alive:
            return
        handle.status = status
        handle.ended_at = self.loop.clock()
        self._on_worker(app, handle)  # its last words first
        if handle.ready_at is None and handle.failure is None and handle.state is State.STARTING:
            self.loop.call_later(DIAGNOSIS_DELAY, lambda: self._finish(app, handle, status))
        else:
            self._finish(app, handle, status)

    def _finish(self, app: App, handle: WorkerHandle, status: process.ExitStatus) -> None:
        if not handle.is_alive:
            return
        now = self.loop.clock()
        handle.ended_at = handle.ended_at or now
        before = handle.state
        handle.happen(Happening.EXIT, now)
        self._release(app, handle)
        self._kick_siblings(app, handle)
        slot, number = handle.id.slot, handle.id.generation
        if before in LEAVING and handle.failure is None:
            drained = handle.drained or w.Drained(0, 0)
            self.emit(
                app, "worker_stopped", slot, generation=number, pid=handle.pid,
                took_s=round(now - handle.since if before is not State.KILLED else 0.0, 3),
                requests=drained.requests, cancelled=drained.cancelled,
            )  # fmt: skip
        else:
            self._died(app, handle, status, before)
        self.poke(app)

    def _release(self, app: App, handle: WorkerHandle) -> None:
        if handle.health is not None:
            handle.health.stop()
        if handle.pid and handle.status != process.UNKNOWN:
            # what it has left behind in its process group; its pid is reserved until `collected`
            process.kill_group(handle.pid, signal.SIGKILL)
        if handle.ctl is not None:
            self.loop.remove(handle.ctl.fileno())
            handle.ctl.close()
            handle.ctl = None
        pidfd = self.store.get(worker_fd("pid", handle.id))
        if pidfd is not None:
            self.loop.remove(pidfd)
        self.store.remove(worker_fd("ctl", handle.id))
        # the logger still wants the pidfd and the pipes until it has read them to their end
        self.store.forget(worker_fd("out", handle.id), worker_fd("err", handle.id))
        self.store.remove(worker_fd("pid", handle.id))
        app.board.free(handle.id.serial)
        if handle.pid:
            self.store.collected(handle.pid)
        del app.workers[handle.id.serial]

    def _died(self, app: App, handle: WorkerHandle, status: process.ExitStatus, before: State) -> None:
        """A worker ended by itself (or was killed for not getting ready)."""
        now = self.loop.clock()
        reason, traceback, hint = diagnosis.of_worker(app, handle, status, self.home)
        after = round((handle.ended_at or now) - handle.born_at, 3)
        self.emit(
            app, "worker_exited", handle.id.slot, generation=handle.id.generation, pid=handle.pid, code=status.code,
            signal=status.signal, after_s=after, reason=reason, traceback=traceback,
        )  # fmt: skip
        failure = self.fail(reason, traceback, hint)
        if handle.id.generation == app.target:
            app.target_failure = failure
            return
        if (
            handle.id.generation != app.generation
            or not app.running
            or (before in LEAVING and handle.ready_at is not None)
        ):
            return
        config = self._restart(app)
        if (
            app.starting
            and not any(x.ready_at is not None and x.id.generation == app.generation for x in app.workers.values())
            and (handle.ready_at is None or status.code != 0)
        ):
            app.start_failure = failure
            return
        if status.code != 78 and not restart.wants_replacement(config, clean=status.code == 0):
            app.finished_slots.add(handle.id.slot)
            return
        if status.code != 78:  # which asks not to be started again
            app.board.add_app(AppF.RESTARTS)
        if status.code != 78 and restart.is_stable(handle.ready_at, handle.ended_at or now, config):
            app.record = restart.CLEAR
            return
        if app.previous is not None:
            app.soak_deaths += 1
        self._unstable_death(app, failure, now, permanent=status.code == 78)

    def _unstable_death(self, app: App, failure: Failure, now: float, *, permanent: bool) -> None:
        config = self._restart(app)
        had_failed = app.record.failed or app.record.permanent
        if permanent:
            app.record = restart.after_refusal(app.record, now)
        else:
            app.record = restart.after_unstable_death(app.record, now, config, jitter=random.random())
        app.failure = failure
        if app.record.failed or app.record.permanent:
            words = "it asked not to be restarted (exit code 78)"
            if app.record.failed:
                words = f"gave up after {config.max_restarts} restarts in {config.window:g} s"
            app.failure = Failure(f"{words}: {failure.message}", failure.traceback, failure.hint, failure.at)
            if not had_failed:
                self.emit(
                    app,
                    "app_failed",
                    None,
                    reason=app.failure.message,
                    traceback=failure.traceback,
                    hint=failure.hint,
                    restarts=config.max_restarts,
                    window_s=config.window,
                )
        elif app.record.tries:
            data = {"try": app.record.tries, "max": config.max_restarts, "delay_s": round(app.record.next_at - now, 3)}
            self.events.emit_data("worker_backoff", app.name, None, data)

    def _restart(self, app: App) -> RestartConfig:
        assert app.config is not None
        return app.config.restart

    def recycle(self, app: App, handle: WorkerHandle, reason: str) -> None:
        """Have a worker replaced, its successor first."""
        if handle.state in UNTOUCHED and not handle.recycle:
            handle.recycle = reason
            self.emit(
                app, "worker_recycled", handle.id.slot, pid=handle.pid, generation=handle.id.generation, reason=reason
            )
            self.poke(app)


def _signal_number(name: str) -> int:
    """Return the number of "TERM" or "SIGTERM"; the schema has checked that there is one."""
    return int(getattr(signal, "SIG" + name.removeprefix("SIG"), signal.SIGTERM))


def _is_over(app: App) -> bool:
    """Closed by now: what was checked before a round may have changed in it."""
    return app.closed


def _unlink_own_socket(listener: Listener) -> None:
    """Remove the socket file of a listener, if it is still this listener's."""
    with contextlib.suppress(OSError):
        name = listener.sock.getsockname()
        if isinstance(name, str) and name:
            os.unlink(listener.address.path)

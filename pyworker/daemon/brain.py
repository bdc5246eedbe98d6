"""Daemon: run policy after every event and carry out what it says.

Nothing is decided here that policy/ can decide. Whatever happens changes values, then `poke` has converge look at
all of them again; there is no recovery code for single events. What a worker or template says is untrusted: a message
that is out of protocol kills its sender, never the daemon.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, assert_never

from pyworker import failpoint
from pyworker.config.address import Address, parse_bind
from pyworker.config.schema import INHERIT
from pyworker.daemon import appmetrics, diagnosis, shown
from pyworker.daemon.app import App, Failure, Generation, Listener
from pyworker.daemon.deaths import Deaths
from pyworker.daemon.direct import Direct
from pyworker.daemon.dispatchers import Dispatchers
from pyworker.daemon.events import EventLog
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.listener import ListenFailed, actual, url
from pyworker.daemon.listening import Listening, where_named
from pyworker.daemon.loop import Loop, Timer
from pyworker.daemon.messages import Messages
from pyworker.daemon.pids import Pids
from pyworker.daemon.readiness import Readiness
from pyworker.daemon.reloads import Reloads
from pyworker.daemon.spawn import Spawner
from pyworker.daemon.stacks import Stacks
from pyworker.daemon.templates import Templates
from pyworker.daemon.workers import Workers, signal_number
from pyworker.policy import actions as act
from pyworker.policy import converge as c
from pyworker.policy import restart
from pyworker.protocol.inherited import fd_name
from pyworker.protocol.logs import JOURNAL, STDOUT, LogsSpec, stamp
from pyworker.protocol.scoreboard import AppF
from pyworker.protocol.wire import encode
from pyworker.unix import fds as unix_fds

LEFT_WITHIN = 1.0  # seconds that a command waits for old workers to accept no more, who may stand still
LONGEST_NOTE = 500
SAVE_WITHIN = 0.1  # seconds
AGAIN = 0.5  # seconds until an app is looked at again after a round that failed


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
        self.save_or_note: Callable[[], None] = lambda: None  # the same; a disk that refuses is a note, and tried again
        self.on_settled: Callable[[App], None] = lambda app: None  # after each round: waiting commands look
        self.logs_to_stdout: Literal["", "short", "json", "plain"] = ""  # in the foreground: how, instead of files
        self.on_closed: Callable[[App], None] = lambda app: None
        self.gate: Callable[[App], frozenset[int]] = lambda app: frozenset()  # generations to be started later
        self.stops_after: Callable[[App], tuple[str, ...]] = lambda app: ()  # apps that have to go before it is stopped
        self._poked: set[int] = set()  # ids: one that was deleted may have the name of another
        self._looks: dict[str, Timer] = {}
        self.still = 0.0  # seconds in all of `stood_still`
        self.listening = Listening(self)
        self.templates = Templates(self)
        self.workers = Workers(self)
        self.readiness = Readiness(self)
        self.direct = Direct(self)
        self.pids = Pids(self)
        self.deaths = Deaths(self)
        self.dispatchers = Dispatchers(self)
        self.messages = Messages(self)
        self.reloads = Reloads(self)
        self.stacks = Stacks(self)
        store.on_exited = self.pids.on_exited
        loop.on_stood_still = self.stood_still

    # ---- time ------------------------------------------------------------------------------------------
    def stood_still(self, seconds: float) -> None:
        """Count nothing of a time in which nobody may have run against who is to get ready, to leave or to prove itself."""
        for app in self.apps.values():
            for handle in (*app.workers.values(), *app.templates.values(), app.dispatcher):
                if handle is not None:
                    handle.since += seconds
            app.soak_until += seconds
            self.workers.tell_time_to_drain(app)
        self.still += seconds

    # ---- rounds ------------------------------------------------------------------------------------------
    def poke(self, app: App) -> None:
        """Have policy look at the app soon."""
        if id(app) not in self._poked:
            self._poked.add(id(app))
            self.loop.call_soon(lambda: self._begin_round(app))

    def write_memos(self) -> None:
        """Put down what has been decided since policy looked last: a daemon after this one goes by it."""
        for app in self.apps.values():
            if id(app) in self._poked:
                app.write_memo()

    def _begin_round(self, app: App) -> None:
        self._poked.discard(id(app))
        try:
            self._round(app)
        except Exception:
            # what was not done is still wanted: the next round sees it, whatever this one stumbled over
            self.loop.call_later(AGAIN, lambda: self.poke(app))
            raise

    def _round(self, app: App) -> None:
        if app.closed or app.current is None:
            return
        look: float | None = None
        now = self.loop.clock()
        for _ in range(100):
            app.gated = self.gate(app)
            before, app.stops_after = app.stops_after, self.stops_after(app)
            if app.stops_after and not before:
                self.remark(app, shown.stops_after(app.stops_after))
            if app.running and app.restart_to is not None and app.restart_to not in app.gated:
                app.running = False  # its pre_start has succeeded: now all stop
                app.target = app.previous = None
            actions = c.converge(app.view(), now)
            looks = [a.at for a in actions if isinstance(a, act.LookAgain)]
            look = looks[0] if looks else None
            doing = [a for a in actions if not isinstance(a, act.LookAgain)]
            for action in doing:
                self._perform(app, action, now)
            if _is_over(app) or not doing:
                break
            now = self.loop.clock()
        self._note_progress(app, now)
        self.dispatchers.sync(app)
        self._drop_generations(app)
        if not _is_over(app):
            self.listening.keep_listening(app)
            unused_at = self.listening.close_unused(app, self.loop.clock())
            look = min((at for at in (look, unused_at) if at is not None), default=None)
        timer = self._looks.pop(app.name, None)
        if timer is not None:
            timer.cancel()
        if look is not None and not _is_over(app):
            self._looks[app.name] = self.loop.call_at(max(look, self.loop.clock() + 0.001), lambda: self.poke(app))
        if not _is_over(app):
            app.write_memo()
        self.on_settled(app)
        app.refused.clear()  # whoever waited for one of them has been answered

    def _note_progress(self, app: App, now: float) -> None:
        """Turn what has been reached into events: a start that is complete, a reload that is.

        `now` is policy's: at a later moment what has not opened in time would count as gone before policy has let it go.
        """
        if app.restart_to is not None and not app.running and app.is_empty():
            number, app.restart_to = app.restart_to, None
            self.begin(app, number)
            self._save_soon()
            return
        if _is_over(app) or not app.running:
            return
        if app.starting and app.is_open(now) and app.has_been_checked():
            app.starting = False
            app.failure = None
            took = round(now - app.started_at, 3)
            self.emit(app, "app_running", None, generation=app.generation, workers=len(app.slots()), took_s=took)
        elif app.starting and app.generation not in app.gated and (app.is_job or not app.slots()):
            app.starting = False  # a job waits for its time; or all of it has finished already (policy = "never")
        self.reloads.complete(app, now)
        as_wanted = app.is_open(now) or not (app.slots() or app.is_job)
        if not app.starting and app.record.is_clear and as_wanted and not app.has_ended_badly():
            app.failure = None

    def _save_soon(self) -> None:
        """Write down the numbers of restarted apps, once for all that restart together: with hundreds, a write for each
        takes longer than their restart. A daemon that dies before it goes by their memos."""
        self.loop.call_once("save soon", SAVE_WITHIN, lambda: self.save_or_note())

    def emit(self, app: App, type: str, of: WorkerHandle | int | None, /, **data: object) -> None:
        """`of`: the worker, which adds its generation and pid; a slot alone, or None: the whole app."""
        if isinstance(of, WorkerHandle):
            data = {"generation": of.id.generation, "pid": of.pid, **data}
            of = of.id.slot
        self.events.emit(type, app.name, of, **data)

    def emit_failed(self, name: str, failure: Failure, restarts: int = 0, window: float = 0.0) -> None:
        told = {"reason": failure.message, "traceback": failure.traceback, "hint": failure.hint}
        self.events.emit("app_failed", name, **told, restarts=restarts, window_s=window)

    def fail(self, message: str, traceback: str = "", hint: str = "") -> Failure:
        return Failure(message, traceback, hint, stamp(time.time()))

    # ---- actions -------------------------------------------------------------------------------------------
    def _perform(self, app: App, action: act.Action, now: float) -> None:
        match action:
            case act.StartTemplate(generation=number):
                self.templates.start(app, number, now)
            case act.StopTemplate(generation=number, reason=reason):
                self.templates.stop(app, app.templates[number], reason, now)
            case act.Spawn(slot=slot, generation=number, held=held):
                self.workers.spawn(app, slot, number, held, now)
            case act.SendGo(serial=serial):
                self.workers.go(app, app.workers[serial], now)
            case act.SendDrain(serial=serial, to_empty=to_empty, reason=reason):
                self.workers.drain(app, app.workers[serial], to_empty, reason, now)
            case act.SendStop(serial=serial, reason=reason):
                self.workers.stop(app, app.workers[serial], reason, now)
            case act.SendKill(serial=serial, reason=reason):
                self.workers.kill(app, app.workers[serial], reason, now)
            case act.DoWithout(serial=serial):
                self.workers.do_without(app, app.workers[serial], now)
            case act.Commit(generation=number):
                self.reloads.commit(app, number, now)
            case act.AbortReload():
                self.reloads.abort(app)
            case act.RollBack(generation=number, reason=reason):
                self.reloads.roll_back(app, number, reason)
            case act.EndSoak():
                app.previous = None
            case act.FailStart():
                self._fail_start(app)
            case act.ClearRecord():
                app.record = restart.CLEAR
                if app.slots() or not (app.is_job or app.has_ended_badly()):
                    app.failure = None
            case act.ShutListeners():
                for listener in app.listeners.values():
                    with contextlib.suppress(OSError):
                        listener.sock.shutdown(socket.SHUT_RD)
                app.listening = False
            case act.Close():
                self.close(app)
            case act.StartDispatcher():
                self.dispatchers.start(app, now)
            case act.StopDispatcher(reason=reason):
                self.dispatchers.stop(app, reason, now)
            case act.LookAgain():
                pass
            case _:
                assert_never(action)

    def may_old_ones_accept(self, app: App, now: float) -> bool:
        """Whether the next connection may be one of an old worker's: a reload, scale or restart of a worker is done after that."""
        for worker in app.workers.values():
            leaves = worker.is_alive and worker.leaving_at is not None and now - worker.leaving_at < LEFT_WITHIN
            if leaves and self._may_accept(app, worker):
                self.loop.call_later(c.LOOK_WHETHER_LEFT, lambda: self.poke(app))
                return True
        return False

    def _may_accept(self, app: App, worker: WorkerHandle) -> bool:
        if app.tells_when_it_has_left(worker):
            return not app.board.has_left(worker.id.serial)
        return self.dispatchers.may_give_to(app, worker)  # of a command that accepts for itself nobody can know

    def _fail_start(self, app: App) -> None:
        failure = app.start_failure or self.fail("the start failed")
        app.start_failure = None
        app.record = restart.after_refusal(app.record)
        app.failure = failure
        app.running = app.starting = False  # its port is closed again: nobody would answer there
        if app.target is not None:  # asked for meanwhile
            number, app.target = app.target, None
            self.reloads.refuse(app, number, failure)
        self.emit_failed(app.name, failure)

    # ---- starting and ending an app ----------------------------------------------------------------------------
    def begin(self, app: App, number: int) -> None:
        """Start the app with a generation whose listeners are open."""
        if app.is_empty():
            appmetrics.begin(self.home, app.generations[number].resolved)
        app.generation = number
        app.wanted = app.running = app.starting = True
        app.closed = app.delete_when_closed = False
        app.listening, app.hurry = True, False
        app.target = app.previous = app.reload_from = None
        app.target_failure = app.start_failure = app.failure = None
        app.record = app.template_record = restart.CLEAR
        app.fill_slots()
        app.blocked = None
        app.started_at, app.restored = self.loop.clock(), False
        app.board.set_app(AppF.STARTED_AT, time.time_ns() // 1_000_000)
        app.notes.clear()
        app.unusable = False
        app.last_exits.clear()
        app.slot_restarts.clear()
        if app.scale is not None and app.scale_base != app.generations[number].config.workers:
            app.scale = app.scale_base = None
        self.write_logs_spec(app)
        generation = app.generations[number]
        listeners = [app.listeners[i] for i in generation.listeners]
        listen = [url(actual(x.address, x.sock), generation.config.tls is not None) for x in listeners]
        workers, scheduled, by = len(app.slots()), app.is_job, generation.by
        self.emit(
            app, "app_started", None, generation=number, workers=workers, scheduled=scheduled, listen=listen, by=by
        )
        app.write_memo()  # a daemon after this one would go by that of the app's end, and stop it again
        self.poke(app)

    def add_generations(self, made: Sequence[tuple[App, Generation]]) -> None:
        """Pin generations: listeners opened, memos stored. ListenFailed, OSError: nothing has changed for any."""
        opened: list[tuple[App, Listener]] = []
        memos: list[int] = []
        try:
            for app, generation in made:
                self.listening.forget_shut(app)
                generation.listeners = tuple(self._listen(app, generation, opened))
                memos.append(unix_fds.memfd(f"pyworker-env-{app.name}", generation.pack()))
            failpoint.hit("start.listening")
        except Exception:
            for app, listener in opened:
                self.listening.close(app, listener)
            unix_fds.close_all(memos)
            raise
        for (app, generation), memo in zip(made, memos, strict=True):
            app.generations[generation.number] = generation
            generation.by = self.events.by
            app.last_generation = max(app.last_generation, generation.number)
            self.store.put(fd_name("env", app.name, generation.number), memo)
        failpoint.hit("start.pinned")

    def _listen(self, app: App, generation: Generation, opened: list[tuple[App, Listener]]) -> Iterator[int]:
        seen: dict[int, Address] = {}
        for text in generation.config.bind:
            address = parse_bind(text)
            try:
                listener = self.listening.find_named(app, address)
                if listener is None:
                    listener = self.listening.open(app, address, generation)
                    opened.append((app, listener))
                elif (other := seen.get(listener.index, address)) != address:  # by another name
                    message = f"cannot listen on {address}: that is {other}, which `bind` names, too"
                    raise ListenFailed(message, hint="remove one of them", code="port_in_use")
            except ListenFailed as error:
                error.hint += where_named(app, generation)
                raise
            seen[listener.index] = address
            yield listener.index

    def close(self, app: App) -> None:
        """Nothing lives any more: give back all that the system keeps for the app."""
        try:
            self._close(app)
        except Exception:
            app.closed = False  # the next round does it again: nobody has been told yet that it has stopped
            raise

    def _close(self, app: App) -> None:
        self.deaths.bury_all(app)
        app.closed = True
        app.running = app.starting = False
        app.write_memo()  # first: a daemon after this one would go on with a start that has failed, and find no listener
        for listener in list(app.listeners.values()):
            self.listening.close(app, listener)
        self.dispatchers.close(app)
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
            app.codes.pop(number, None)
            app.codes_at.pop(number, None)
            self.store.remove(fd_name("env", app.name, number))

    def write_logs_spec(self, app: App) -> None:
        """Tell the logger how this app's log is written."""
        config = app.config
        if config is None:  # it was deleted before this could be tried again
            return
        logs = config.logs
        file = diagnosis.log_file(app, self.home)
        to_stdout = self.logs_to_stdout if logs.named_file is None else ""
        if logs.file == INHERIT and not to_stdout:  # said once, not in each `ps`: nothing is wrong
            text = f'logs = "{INHERIT}": there is a stdout to inherit in `pyworker run` only; here the log is {file}'
            self.remark(app, text)
        spec = LogsSpec(
            STDOUT if to_stdout else file,
            to_stdout or logs.format,
            logs.max_size,
            logs.max_files,
            logs.compress,
            stop_signal=signal_number(config.stop.signal),
            drain_timeout=config.stop.drain_timeout,
            drains_alone=config.target is not None or config.script is not None,
            journald=logs.journald and not to_stdout,
        )
        if spec.journald and not os.path.exists(JOURNAL):
            text = f"logs.journald: there is no journal here ({JOURNAL}); lines go to the file only"
            self.remark(app, text)
        try:
            memo = unix_fds.memfd(f"pyworker-logs-{app.name}", encode(spec))
        except OSError:  # no descriptor is left: no reason to stop what has begun, and the logger has a usual way
            self.loop.call_later(AGAIN, lambda: None if app.closed else self.write_logs_spec(app))
            return
        self.store.put(fd_name("logs", app.name), memo)

    def when_written(self, app: App, pipes: tuple[str, ...], then: Callable[[], None]) -> None:
        """Call back when the logger has written down what came through these pipes, or has had its time."""
        diagnosis.when_written(self.loop, self.store, pipes, lambda: diagnosis.has_in_hand(self.home, app.name), then)

    def remark(self, app: App, text: str) -> None:
        """Something the operator may find among the events."""
        self.emit(app, "app_note", None, text=text)

    def note(self, app: App, text: str) -> None:
        """Something the operator should know, and is shown until it is over."""
        text = text[:LONGEST_NOTE]
        if text not in app.notes:
            app.notes.append(text)
            del app.notes[:-20]
            self.remark(app, text)

    def note_is_over(self, app: App, text: str) -> None:
        """What was noted is not so any more."""
        if text[:LONGEST_NOTE] in app.notes:
            app.notes.remove(text[:LONGEST_NOTE])
            self.poke(app)  # else the memo has it still, and the next daemon would go on saying it


def _is_over(app: App) -> bool:
    """Closed by now: what was checked before a round may have changed in it."""
    return app.closed

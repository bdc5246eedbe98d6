"""Daemon, in the foreground (`pyworker run`): what is wanted is in a memfd, the events go to stderr, signals are
orders, and the end of the apps is the end of all.

The promise: nothing is needed but memory. No file is read but the app's own, none is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

from pyworker.config.activated import or_activated
from pyworker.config.problem import ConfigError
from pyworker.daemon import desired
from pyworker.daemon.app import App
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.probe import Probe
from pyworker.daemon.report import ps_document
from pyworker.daemon.requests.apps import read_again
from pyworker.daemon.requests.auto import RESTORE_AGAIN, start_again
from pyworker.daemon.requests.change import reload_app
from pyworker.daemon.requests.look import status_document
from pyworker.daemon.requests.shutdown import shut_down
from pyworker.daemon.requests.start import restore, sources
from pyworker.daemon.shortage import step_for
from pyworker.daemon.systemd import ServiceManager
from pyworker.errors import PyworkerError
from pyworker.policy.fate import BY_SIGNAL, FAILED, UNUSABLE, AppEnd, fate
from pyworker.policy.restart import wants_replacement
from pyworker.protocol import control, wire
from pyworker.protocol.events import Event, sentence
from pyworker.protocol.inherited import RUN, WANTED
from pyworker.protocol.metrics import render
from pyworker.protocol.run import RELOAD, STOPS, RunSpec, orders
from pyworker.protocol.store import Fate
from pyworker.unix import fds as unix_fds
from pyworker.unix import process, stderr

if TYPE_CHECKING:
    from pyworker.daemon.fdstore import FdStore
    from pyworker.daemon.requests.desk import Desk

_HANGUP = "SIGHUP"
_MAX = 4 * wire.MAX_REQUEST
_QUIET = {"daemon_started", "daemon_stopped", "worker_starting", "worker_held", "template_starting", "worker_message"}
SIGNALS = orders(at_a_terminal=False)


def spec_of(store: FdStore) -> RunSpec | None:
    """Return what a foreground pyworker runs; None in the background."""
    fd = store.get(RUN)
    if fd is None:
        return None
    spec = wire.decode(RunSpec, unix_fds.read_whole(fd), limit=_MAX)
    assert isinstance(spec, RunSpec)
    return spec


def wanted(store: FdStore) -> desired.Desired:
    """Return what the daemon before this one wanted."""
    fd = store.get(WANTED)
    if fd is None:
        return {}
    raw = wire.parse_json(unix_fds.read_whole(fd), limit=_MAX)
    apps = [wire.from_json(desired.DesiredApp, value, "wanted") for value in raw]
    return {app.name: app for app in apps}


class Run:
    """The whole life of one foreground daemon."""

    def __init__(self, desk: Desk, spec: RunSpec) -> None:
        self._desk = desk
        self._spec = spec
        self._store = desk.brain.store
        self._stops = 0
        self._shown: set[str] = set()
        # `--once --only NAME`: what NAME depends on serves it, and ends with it
        is_once = (spec.request.get("overrides") or {}).get("cron") == ""
        self._jobs = frozenset(spec.request.get("only") or ()) if is_once else frozenset()
        desk.in_foreground = True
        brain = desk.brain
        brain.save = self._save
        brain.logs_to_stdout = spec.logs
        brain.events.subscribe(self._show)
        settled = brain.on_settled

        def look(app: App) -> None:
            settled(app)
            self._look()

        brain.on_settled = look
        self._manager: ServiceManager | None = None

    # ---- what is wanted ------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start everything, unless a daemon before this one has: what is wanted since then is brought back already."""
        try:
            if self._spec.probe:
                Probe(self._desk.brain.loop, self._store, self._spec.probe, self._ready, self._metrics)
        except (OSError, ListenFailed) as error:
            why = error.strerror if isinstance(error, OSError) else error.message
            _say(f"error: the probe cannot listen on {self._spec.probe}: {why}")
            self._end(FAILED)
            return
        if self._store.get(WANTED) is None and not self._start():
            return
        self._save()
        self._desk.brain.loop.call_soon(self._look)
        self._manager = ServiceManager.from_environment(self._desk)

    def _start(self) -> bool:
        """Begin all apps; False, and the end is near, when that cannot be."""
        try:
            request: control.Start = wire.from_json(control.Start, self._spec.request, "request")
            found = sources(self._desk, request)
        except (wire.WireError, PyworkerError) as error:  # the command has read it a moment ago: changed meanwhile
            _say(f"error: {error}")
            self._end(UNUSABLE)
            return False
        for source, name, values in found:
            try:
                failure = restore(self._desk, desired.DesiredApp(name, source, generation=0), values)
            except OSError as error:
                if not (step := step_for(error.errno)):
                    raise
                _say(f"error: {name} cannot be started: {error.strerror}. {step}")
                self._end(FAILED)
                return False
            app = self._desk.brain.apps[name]
            if failure and not app.unusable:  # should others serve meanwhile
                app.restored = True
                start_again(self._desk, [app], RESTORE_AGAIN)
        return True

    def _save(self) -> None:
        apps = [wire.to_json(app) for app in self._desk.wanted().values()]
        self._store.put(WANTED, unix_fds.memfd("pyworker-wanted", json.dumps(apps).encode()))

    # ---- signals -------------------------------------------------------------------------------------
    def on_signal(self, number: int) -> None:
        """Do what a signal asks for; the guardian passes on what it is sent."""
        if number == RELOAD and self._desk.shutting_down:
            _say("nothing is reloaded: it is stopping")
        elif number == RELOAD:
            with self._manager.reloading() if self._manager is not None else contextlib.nullcontext():
                self._reload()
        elif number in STOPS:
            self._stop()
        else:
            self._pass_on(number)

    def _stop(self) -> None:
        """Once: lame duck, drain, end. Twice: without the drain."""
        self._stops += 1
        if self._stops > 1:
            _say("stopping at once")
            shut_down(self._desk, now=True)
            return
        if self._manager is not None:
            self._manager.stopping(self._spec.lame_duck)
        if self._spec.lame_duck:
            _say(f"stopping: not ready any more, serves on for {self._spec.lame_duck:g} s")
            self._desk.brain.loop.call_later(self._spec.lame_duck, self._drain)
        else:
            self._drain()

    def _drain(self) -> None:
        if self._stops == 1:
            shut_down(self._desk, now=False)

    def _pass_on(self, number: int) -> None:
        """To programs that may know it. ASGI and WSGI workers are ours: the default action would end them."""
        for app in self._desk.brain.apps.values():
            if app.config is None or app.config.target is not None:
                continue
            for handle in app.workers.values():
                if handle.pid:
                    self._desk.brain.workers.signal(app, handle, number)

    def _reload(self) -> None:
        desk = self._desk
        try:
            made = [(app, read_again(desk, app, {})) for app in desk.brain.apps.values() if app.wanted]
            desk.brain.add_generations(made)
        except (ConfigError, ListenFailed) as error:
            self._not_reloaded(str(error))
            return
        except OSError as error:
            self._not_reloaded(f"{error.strerror}. {step_for(error.errno)}".rstrip())
            return
        for app, generation in made:
            reload_app(desk, app, generation, why=_HANGUP)
        desk.save()

    def _not_reloaded(self, why: str) -> None:
        _say(f"error: nothing was reloaded: {why}")
        for app in self._desk.brain.apps.values():
            self._desk.brain.reloads.note_not_reloaded(app, _HANGUP, why)

    # ---- what is said --------------------------------------------------------------------------------
    def _show(self, event: Event) -> None:
        if event.type in _QUIET:
            return
        _say(f"{event.who} {sentence(event)}" if event.who else sentence(event))
        for key in ("traceback", "hint"):
            text = str(event.data.get(key) or "")
            if key == "hint" and (app := self._desk.brain.apps.get(event.app or "")) and app.config is not None:
                text = or_activated(text, app.config.cwd)
            if text and text not in self._shown:
                self._shown = {*list(self._shown)[-50:], text}
                _say(text.rstrip() if key == "traceback" else "  = help: " + text.replace("\n", "\n  = help: "))

    # ---- the end -------------------------------------------------------------------------------------
    def _look(self) -> None:
        if self._desk.shutting_down or self._desk.waiting:
            return
        apps = self._desk.brain.apps.values()
        ends = {app.name: _end_of(app) for app in apps}
        jobs = [end for name, end in ends.items() if name in self._jobs]
        code = fate(ends.values() if not jobs or AppEnd("waits") in jobs else jobs)
        if code is not None and self._stops:  # a lame duck: nothing serves on
            self._drain()
        elif code is not None:
            for name, blocked in [(app.name, app.blocked) for app in apps if app.blocked is not None]:
                _say(f"{name} {blocked.message}")
            self._end(code)

    def _end(self, code: int) -> None:
        _say(f"nothing is left to run: exit code {code}")
        self._store.send(Fate(code))
        if code == 0 and self._manager is not None:
            self._manager.ready()
        shut_down(self._desk, now=True)

    # ---- the probe -----------------------------------------------------------------------------------
    def _ready(self, name: str) -> tuple[bool, str]:
        """Whether an app (or "": all of them) may be sent requests, and a line about each."""
        apps = self._desk.brain.apps
        if name and name not in apps:
            return False, f"no app {name}\n"
        lines = []
        good = not self._stops and (bool(name) or not self._desk.waiting)
        for each in [apps[name]] if name else apps.values():
            ready, want = each.ready_count(), len(each.slots())
            ok = each.running and (ready > 0 or (want == 0 and not each.starting and not each.has_ended_badly()))
            good = good and ok
            lines.append(f"{each.name} {'ready' if ok and not self._stops else 'not ready'} {ready}/{want}\n")
        if self._stops:
            lines.append("stopping\n")
        return good and bool(lines), "".join(lines)

    def _metrics(self) -> str:
        desk = self._desk
        apps = list(desk.brain.apps.values())
        return render(ps_document(desk.brain, desk.sampling(), apps, status_document(desk), pss=True))


def _end_of(app: App) -> AppEnd:
    if app.starting and app.blocked is not None:
        return AppEnd("waits")
    if app.starting or app.target is not None or app.has_untouched() or any(w.is_alive for w in app.workers.values()):
        return AppEnd("going")
    codes = tuple(_code(last) for _, last in sorted(app.last_exits.items()))
    if app.record.permanent or app.record.failed:
        if app.record.permanent and app.is_unusable:
            return AppEnd("unusable")
        # it has run, and that is how it ended; without a config: of another daemon, which was not to try it again either
        if codes and (app.config is None or app.restart_config.policy == "never"):
            return AppEnd("finished", codes)
        return AppEnd("failing" if _is_tried_again(app) else "failed")
    if app.is_job or not app.finished_slots or app.slots():
        return AppEnd("going")
    return AppEnd("finished", codes or (0,))


def _is_tried_again(app: App) -> bool:
    """By the limiter, or as a start that failed is (requests/auto.py)."""
    if app.running:
        return not app.record.permanent
    if app.config is None:  # its address was not free
        return app.restored
    return app.restart_config.retry > 0 and wants_replacement(app.restart_config, clean=False)


def _code(last: dict[str, Any]) -> int:
    if last["code"] is not None:
        return int(last["code"])
    return BY_SIGNAL + int(last["signal"]) if last["signal"] is not None else FAILED


def leave() -> None:
    """The guardian of a foreground pyworker is gone: so is whoever waits for us. Workers see it and leave."""
    stderr.write("daemon: the foreground process is gone: leaving\n")
    with contextlib.suppress(OSError):
        process.send_signal(os.pidfd_open(os.getpid()), signal.SIGKILL)


def _say(text: str) -> None:
    stderr.write("".join(f"pyworker: {line}\n" for line in text.splitlines()))

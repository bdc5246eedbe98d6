"""Daemon: one method per request. Checks first, so that what is refused has changed nothing."""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from collections.abc import Callable
from typing import Any, assert_never

from pyworker import __version__
from pyworker.config.cpus import usable_cpus
from pyworker.config.load import apply_overrides, load, load_inline
from pyworker.config.problem import ConfigError
from pyworker.config.schema import AppConfig
from pyworker.daemon import operations as ops
from pyworker.daemon import report
from pyworker.daemon.app import App, Failure, Generation
from pyworker.daemon.board import Board
from pyworker.daemon.brain import Brain
from pyworker.daemon.client import Client
from pyworker.daemon.desired import FileSource, InlineSource, without_env_values
from pyworker.daemon.events import stamp
from pyworker.daemon.ledger import Ledger
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.sample import Sampler
from pyworker.daemon.selection import Selected, nearest, select
from pyworker.daemon.sources import make_generation, read_config
from pyworker.errors import Exit
from pyworker.policy.lifecycle import UNTOUCHED
from pyworker.policy.restart import CLEAR, after_refusal
from pyworker.policy.scale import scaled
from pyworker.protocol import control as k
from pyworker.protocol.events import Event
from pyworker.protocol.inherited import fd_name
from pyworker.protocol.wire import to_json

Prepared = tuple[str, FileSource | InlineSource, Generation, dict[str, Any]]


class Handlers:
    """What the CLI can ask for."""

    def __init__(self, brain: Brain, sampler: Sampler, home: str, started_at: float) -> None:
        self._brain = brain
        self._sampler = sampler
        self._home = home
        self._started_at = started_at
        self._operations = ops.Operations(brain)
        self.shutting_down = False
        self._seq = 0  # of the last event before the request that is being handled
        self.on_shutdown: Callable[[], None] = lambda: None  # set by main
        brain.on_closed = self._app_closed

    def handle(self, client: Client, request: k.Request) -> None:
        """Answer a request, now or later."""
        if self.shutting_down and isinstance(request, (k.Start, k.Restart, k.Reload, k.Scale)):
            client.refuse(k.Refused("busy", Exit.BUSY, "the daemon is stopping", "try again in a moment"))
            return
        self._seq = self._brain.events.seq
        try:
            match request:
                case k.Start():
                    self._start(client, request)
                case k.Stop():
                    self._stop(client, request)
                case k.Restart():
                    self._restart(client, request)
                case k.Reload():
                    self._reload(client, request)
                case k.Scale():
                    self._scale(client, request)
                case k.Delete():
                    self._delete(client, request)
                case k.Ps():
                    self._ps(client, request)
                case k.Describe():
                    self._describe(client, request)
                case k.Follow():
                    self._follow(client, request)
                case k.Status():
                    client.reply(True, self._status())
                case k.Shutdown():
                    self._shutdown(client, request)
                case _:
                    assert_never(request)
        except ConfigError as error:
            client.refuse(k.Refused("config_invalid", Exit.BAD_CONFIG, error.message, error.hint, error.as_json()))
        except ListenFailed as error:
            exit_code = Exit.NO_PERMISSION if error.code == "no_permission" else Exit.FAILED
            client.refuse(k.Refused(error.code, exit_code, error.message, error.hint))
        except _Refuse as refuse:
            client.refuse(refuse.answer)

    # ---- start -----------------------------------------------------------------------------------------
    def _start(self, client: Client, request: k.Start) -> None:
        prepared: list[tuple[App, Generation, bool]] = []
        decided: dict[str, ops.Outcome] = {}
        goals: dict[str, ops.Goal] = {}
        todo: list[tuple[str, FileSource | InlineSource, dict[str, str]]] = []
        for source, name, values in self._sources(request):
            app = self._brain.apps.get(name)
            if app is not None and app.running and (app.starting or app.has_untouched()):
                if not _same_origin(app.source, source):
                    raise _Refuse(
                        "failed", Exit.FAILED, f"an app named {name} runs already, from {_origin(app.source)}",
                        f"choose another name (--name), or: pyworker delete {name}",
                    )  # fmt: skip
                if app.starting:  # another command has just started it: both get the same answer
                    goals[name] = ops.started("already_running", app.generation)
                else:
                    decided[name] = ops.Outcome(True, "already_running")
                continue
            todo.append((name, source, values))
        made: list[tuple[str, FileSource | InlineSource, Generation]] = []
        for name, source, values in todo:  # every mistake of a config is found before anything is started
            config, file, mtime = read_config(source, values)
            number = self._next_generation(name)
            made.append((name, source, make_generation(number, config, file, mtime, request.shell_env)))
        fresh: list[App] = []
        try:
            for name, source, generation in made:
                known = self._brain.apps.get(name)
                app = known or self._new_app(name, source)
                if known is None:
                    fresh.append(app)
                app.source = source
                self._brain.add_generation(app, generation)
                prepared.append((app, generation, app.is_empty() and app.closed))
        except ListenFailed:
            for app, generation, _ in prepared:
                self._give_back(app, generation)
            for app in fresh:
                self.forget(app)
            raise
        for app, generation, idle in prepared:
            app.stopped_slots.clear()
            if idle:
                self._brain.begin(app, generation.number)
            else:  # it is stopping, or has failed: everything old leaves first
                app.wanted, app.running, app.keep_listening = True, False, True
                app.restart_to = generation.number
                self._brain.poke(app)
            goals[app.name] = ops.started("started", generation.number)
        self._save()
        self._operations.wait(client, goals, decided, wait=request.wait, since_seq=self._seq)

    def _sources(self, request: k.Start) -> list[tuple[FileSource | InlineSource, str, dict[str, str]]]:
        overrides, env_names = without_env_values(request.overrides)
        values = {str(n): str(v) for n, v in (request.overrides.get("env") or {}).items()}
        if request.file:
            plain = load(request.file, only=request.only)
            here = load(request.file, only=request.only, environ=request.shell_env)
            found: list[tuple[FileSource | InlineSource, str, dict[str, str]]] = []
            for config, shell in zip(plain.apps, here.apps, strict=True):
                if overrides:
                    apply_overrides(config, overrides)  # mistakes are the user's to see now
                source = FileSource(plain.path, config.name, {**_from_shell(config, shell), **overrides}, env_names)
                found.append((source, config.name, values))
            return found
        if request.inline:
            config = load_inline(request.inline, request.cwd)
            shell = load_inline(request.inline, request.cwd, environ=request.shell_env)
            table, names = without_env_values(request.inline)
            inline_values = {str(n): str(v) for n, v in (request.inline.get("env") or {}).items()}
            table |= {**_from_shell(config, shell), "name": config.name}
            return [(InlineSource(table, request.cwd, names), config.name, inline_values)]
        selected = self._select(request.names)
        return [(self._brain.apps[s.app].source, s.app, self._values(self._brain.apps[s.app])) for s in selected]

    def _values(self, app: App) -> dict[str, str]:
        """The values of -e, from the generation that has them."""
        current = app.current
        if current is None:
            return {}
        return {n: current.resolved.env[n] for n in app.source.env_names if n in current.resolved.env}

    def _new_app(self, name: str, source: FileSource | InlineSource) -> App:
        store = self._brain.store
        board = Board.create(name)
        store.put(fd_name("board", name), os.dup(board.fd))
        ledger_fd = Ledger.create(name)
        ledger = Ledger(ledger_fd)
        store.put(fd_name("ledger", name), ledger_fd)
        app = App(name, source, board, ledger)
        self._brain.apps[name] = app
        return app

    def _next_generation(self, name: str) -> int:
        app = self._brain.apps.get(name)
        return (max(app.last_generation, app.generation) if app else 0) + 1

    def _give_back(self, app: App, generation: Generation) -> None:
        app.generations.pop(generation.number, None)
        self._brain.store.remove(fd_name("env", app.name, generation.number))
        if app.closed:
            for listener in list(app.listeners.values()):
                self._brain.listening.close(app, listener)

    def forget(self, app: App) -> None:
        self._brain.apps.pop(app.name, None)
        app.ledger.close()
        app.board.close()
        self._brain.store.remove(*(fd_name(kind, app.name) for kind in ("board", "ledger", "logs")))

    # ---- stop, restart, reload, scale, delete ----------------------------------------------------------------
    def _stop(self, client: Client, request: k.Stop) -> None:
        goals: dict[str, ops.Goal] = {}
        decided: dict[str, ops.Outcome] = {}
        slots: dict[str, set[int]] = {}
        for s in self._select(request.selectors):
            app = self._brain.apps[s.app]
            if s.slot is not None:
                self._check_slot(app, s)
                slots.setdefault(s.app, set()).add(s.slot)
                app.stopped_slots.add(s.slot)
                self._brain.poke(app)
            elif app.closed and not app.wanted:
                decided[s.app] = ops.Outcome(True, "unchanged")  # alone it is refused below; `all` means all that runs
            else:
                self._stop_app(app, now=request.now)
                goals[s.app] = ops.stopped(None)
        for name, numbers in slots.items():
            if name not in goals:
                goals[name] = ops.stopped(frozenset(numbers))
        if not goals and decided:
            names = ", ".join(decided)
            raise _Refuse("not_running", Exit.NOT_RUNNING, f"{names}: not running", "pyworker ps shows what is")
        self._save()
        self._operations.wait(client, goals, decided, wait=request.wait, since_seq=self._seq)

    def _stop_app(self, app: App, *, now: bool) -> None:
        was_running = app.running
        app.wanted = app.running = app.starting = False
        app.keep_listening = False
        app.restart_to = app.target = app.previous = None
        app.hurry = app.hurry or now
        app.failure = None
        app.record = CLEAR
        if app.closed:
            return
        if was_running:
            self._brain.emit(app, "app_stopping", None)
        self._brain.poke(app)

    def _restart(self, client: Client, request: k.Restart) -> None:
        selected = self._select(request.selectors)
        goals: dict[str, ops.Goal] = {}
        generations: list[tuple[App, Generation]] = []
        for s in selected:
            app = self._brain.apps[s.app]
            if s.slot is not None:
                self._check_slot(app, s)
            elif not any(a is app for a, _ in generations):
                config, file, mtime = read_config(app.source, self._values(app))
                number = self._next_generation(app.name)
                generations.append((app, make_generation(number, config, file, mtime, request.shell_env)))
        for app, generation in generations:
            self._brain.add_generation(app, generation)
        for app, generation in generations:
            if app.is_empty() and app.closed:
                self._brain.begin(app, generation.number)
            else:
                app.wanted, app.running, app.keep_listening = True, False, True
                app.target = app.previous = None
                app.restart_to = generation.number
                self._brain.poke(app)
            goals[app.name] = ops.started("restarted", generation.number)
        for s in selected:
            app = self._brain.apps[s.app]
            if s.slot is not None and s.app not in goals:
                app.stopped_slots.discard(s.slot)
                app.finished_slots.discard(s.slot)
                app.record = CLEAR
                serials = frozenset(
                    w.id.serial for w in app.workers.values() if w.id.slot == s.slot and w.state in UNTOUCHED
                )
                for serial in serials:
                    self._brain.workers.recycle(app, app.workers[serial], "restart")
                self._brain.poke(app)
                goals[s.app] = ops.replaced(serials)
        self._save()
        self._operations.wait(client, goals, {}, wait=request.wait, since_seq=self._seq)

    def _reload(self, client: Client, request: k.Reload) -> None:
        names = list(dict.fromkeys(s.app for s in self._select(request.selectors)))
        goals: dict[str, ops.Goal] = {}
        generations: list[tuple[App, Generation]] = []
        for name in names:
            app = self._brain.apps[name]
            if not app.wanted and app.closed:
                if len(names) > 1:
                    continue  # `reload all` means all that runs
                raise _Refuse("not_running", Exit.NOT_RUNNING, f"{name} is not running", f"pyworker start {name}")
            config, file, mtime = read_config(app.source, self._values(app))
            number = self._next_generation(name)
            generations.append((app, make_generation(number, config, file, mtime, request.shell_env)))
        for app, generation in generations:
            self._brain.add_generation(app, generation)
        for app, generation in generations:
            goals[app.name] = self._reload_app(app, generation)
        self._save()
        self._operations.wait(client, goals, {}, wait=request.wait, since_seq=self._seq)

    def _reload_app(self, app: App, generation: Generation) -> ops.Goal:
        number = generation.number
        if app.closed:
            self._brain.begin(app, number)
            return ops.started("reloaded", number)
        if not app.running or not app.has_untouched():  # nothing serves: there is nothing to keep
            app.wanted, app.running, app.keep_listening = True, False, True
            app.restart_to = number
            self._brain.poke(app)
            return ops.started("reloaded", number)
        app.target, app.target_failure = number, None
        app.previous = None  # a new reload ends the soak
        if app.scale is not None and app.scale_base != generation.config.workers:
            app.scale = app.scale_base = None
        app.reload_started_at = self._brain.loop.clock()
        data = {"from": app.generation, "to": number}
        self._brain.events.emit_data("reload_started", app.name, None, data)
        if not app.view().overlaps:
            text = "its command binds a port of its own: the old workers stop before the new ones start"
            self._brain.emit(app, "app_note", None, text=text)
        self._brain.poke(app)
        return ops.reloaded(number)

    def _scale(self, client: Client, request: k.Scale) -> None:
        changes: list[tuple[App, int]] = []
        for name, change in ((s.app, c) for selector, c in request.changes.items() for s in self._select((selector,))):
            app = self._brain.apps[name]
            if app.current is None or not app.running:
                raise _Refuse("not_running", Exit.NOT_RUNNING, f"{name} is not running", f"pyworker start {name}")
            count = scaled(app.want, change, usable_cpus())
            if count is None:
                raise _Refuse("usage", Exit.USAGE, f"cannot scale to {change!r}", 'for example: 8, +2, -1 or "auto"')
            changes.append((app, count))
        goals: dict[str, ops.Goal] = {}
        for app, count in changes:
            before = app.want
            assert app.config is not None
            app.scale, app.scale_base = count, app.config.workers
            app.finished_slots = {s for s in app.finished_slots if s <= count}
            if before != count:
                self._brain.events.emit_data("scaled", app.name, None, {"from": before, "to": count})
            goals[app.name] = ops.scaled
            self._brain.poke(app)
        self._save()
        self._operations.wait(client, goals, {}, wait=request.wait, since_seq=self._seq)

    def _delete(self, client: Client, request: k.Delete) -> None:
        goals: dict[str, ops.Goal] = {}
        decided: dict[str, ops.Outcome] = {}
        for s in self._select(request.selectors):
            if s.slot is not None:
                raise _Refuse(
                    "usage",
                    Exit.USAGE,
                    f"{s.app}.{s.slot} is a worker: only apps are deleted",
                    f"pyworker stop {s.app}.{s.slot}",
                )
            app = self._brain.apps[s.app]
            app.delete_logs = request.logs
            if app.closed:
                decided[app.name] = ops.Outcome(True, "deleted")
            else:
                app.delete_when_closed = True
                self._stop_app(app, now=False)
                goals[app.name] = _deleted
        gone = [self._brain.apps[n] for n in decided]
        self._operations.wait(client, goals, decided, wait=request.wait, since_seq=self._seq)
        for app in gone:
            self._delete_app(app)
        self._save()

    def _app_closed(self, app: App) -> None:
        if app.delete_when_closed:
            self._brain.loop.call_soon(lambda: self._delete_app(app))

    def _delete_app(self, app: App) -> None:
        if app.name not in self._brain.apps:
            return
        path = report.log_file(app, self._home)
        self.forget(app)
        if app.delete_logs:
            for name in (path, *(f"{path}.{i}" for i in range(1, 1001))):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        self._brain.emit(app, "app_deleted", None)
        self._save()
        self._operations.gone(app)

    # ---- looking --------------------------------------------------------------------------------------------
    def _ps(self, client: Client, request: k.Ps) -> None:
        apps = self._selected_apps(request.selectors)
        if request.sample:
            self._sampler.want()
        client.reply(True, report.ps_document(self._brain, self._sampler, apps, self._status()))

    def _describe(self, client: Client, request: k.Describe) -> None:
        apps = self._selected_apps(request.selectors)
        self._sampler.want()
        body = {"v": 1, "apps": [report.describe(self._brain, self._sampler, a, reveal=request.reveal) for a in apps]}
        client.reply(True, body)

    def _selected_apps(self, selectors: tuple[str, ...]) -> list[App]:
        if not selectors:
            return [self._brain.apps[n] for n in sorted(self._brain.apps)]
        return [self._brain.apps[n] for n in dict.fromkeys(s.app for s in self._select(selectors))]

    def _follow(self, client: Client, request: k.Follow) -> None:
        wanted = set(self._select(request.selectors)) if request.selectors else None

        def tell(event: Event) -> None:
            of_worker = Selected(event.app, event.worker)
            if wanted is None or Selected(event.app) in wanted or (event.worker is not None and of_worker in wanted):
                client.progress(to_json(event))

        if request.since_seq:
            for event in self._brain.events.recent(since_seq=request.since_seq):
                tell(event)
        client.on_gone(self._brain.events.subscribe(tell))

    def _status(self) -> dict[str, Any]:
        store = self._brain.store
        now = self._brain.loop.clock()
        return {
            "v": 1,
            "running": True,
            "pid": os.getpid(),
            "version": __version__,
            "protocol": k.PROTOCOL,
            "uptime_s": round(now - self._started_at, 1),
            "home": self._home,
            "socket": os.path.join(self._home, "control.sock"),
            "guardian_pid": store.guardian_pid,
            "logger_pid": store.logger_pid,
            "apps": len(self._brain.apps),
        }

    def _shutdown(self, client: Client, request: k.Shutdown) -> None:
        names = self.shut_down(now=request.now)
        self._operations.wait(client, {name: ops.stopped(None) for name in names}, {}, wait=True, since_seq=self._seq)

    def shut_down(self, *, now: bool) -> list[str]:
        """Stop every app, then the daemon; return the apps that have to end first. What was wanted stays wanted."""
        first_time, self.shutting_down = not self.shutting_down, True
        if first_time:
            self._save()
        wanted = {n for n, a in self._brain.apps.items() if a.wanted}
        ending = [name for name, app in self._brain.apps.items() if not app.closed]
        for name in ending:
            self._stop_app(self._brain.apps[name], now=now)
        for name in wanted:
            self._brain.apps[name].wanted = True  # a later daemon brings them back
        if first_time:
            self.on_shutdown()
        return ending

    # ---- small things ---------------------------------------------------------------------------------------
    def _select(self, selectors: tuple[str, ...]) -> list[Selected]:
        names = list(self._brain.apps)
        found, unknown = select(selectors, names)
        if unknown:
            meant = nearest(unknown[0], names)
            user = pwd.getpwuid(os.getuid()).pw_name
            there = ", ".join(sorted(names)) if names else "none"
            message = f"no app matches {unknown[0]!r} in the daemon of {user} ({self._home}); its apps: {there}"
            hint = f"did you mean {meant}?" if meant else "is it in another user's daemon, or another PYWORKER_HOME?"
            raise _Refuse("no_such_app", Exit.NO_SUCH_APP, message, hint)
        return found

    def _check_slot(self, app: App, selected: Selected) -> None:
        if not app.running or selected.slot not in range(1, app.want + 1):
            message = f"{selected.app} has no worker {selected.slot}" + (
                f": they are 1 to {app.want}" if app.running else ""
            )
            raise _Refuse("no_such_app", Exit.NO_SUCH_APP, message, f"pyworker ps -w {selected.app}")

    def _save(self) -> None:
        try:
            self._brain.save()
        except OSError as error:
            for app in self._brain.apps.values():
                self._brain.note(
                    app, f"apps.json cannot be written: {error.strerror}; a boot would restore the state before this"
                )

    # ---- boot -----------------------------------------------------------------------------------------------
    def restore(
        self,
        name: str,
        source: FileSource | InlineSource,
        *,
        running: bool,
        generation: int,
        scale: int | None,
        base: int | str | None,
        stopped_slots: tuple[int, ...],
    ) -> str:
        """Bring back one app that apps.json wants; return "" or why it could not be."""
        app = self._new_app(name, source)
        app.last_generation, app.scale, app.scale_base = generation, scale, base
        app.stopped_slots = set(stopped_slots)
        app.wanted = running
        if not running:
            return ""
        try:
            config, file, mtime = read_config(source, {})
            made = make_generation(generation + 1, config, file, mtime, dict(os.environ))
            self._brain.add_generation(app, made)
        except (ConfigError, ListenFailed) as error:
            message = error.message
            app.failure = Failure(message, "", error.hint, stamp(time.time()))
            app.record = after_refusal(CLEAR, 0.0)
            self._brain.emit(
                app, "app_failed", None, reason=message, traceback="", hint=error.hint, restarts=0, window_s=0.0
            )
            return f"{name}: {message}"
        self._brain.begin(app, made.number)
        return ""


class _Refuse(Exception):
    def __init__(self, code: str, exit_code: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.answer = k.Refused(code, int(exit_code), message, hint)


def _from_shell(plain: AppConfig, shell: AppConfig) -> dict[str, Any]:
    """What $PORT and $WEB_CONCURRENCY of the shell change: kept like options, so that a boot still knows it."""
    changed: dict[str, Any] = {}
    if shell.bind != plain.bind:
        changed["bind"] = list(shell.bind)
    if shell.workers != plain.workers:
        changed["workers"] = shell.workers
    return changed


def _deleted(app: App, now: float) -> ops.Outcome | None:
    return ops.Outcome(True, "deleted") if app.closed else None


def _same_origin(one: FileSource | InlineSource, other: FileSource | InlineSource) -> bool:
    match one, other:
        case FileSource(), FileSource():
            return one.path == other.path
        case InlineSource(), InlineSource():
            same = ("target", "script", "command")
            return all(one.table.get(key) == other.table.get(key) for key in same)
        case _:
            return False


def _origin(source: FileSource | InlineSource) -> str:
    return source.path if isinstance(source, FileSource) else f"the command line in {source.cwd}"

"""Daemon, request Start: new apps, stopped apps, and at boot the wanted ones."""

from __future__ import annotations

import os
import shlex
from typing import Any

from pyworker.config.between import with_dependencies
from pyworker.config.interpolate import literal_env
from pyworker.config.load import apply_overrides, load, load_inline
from pyworker.config.problem import ConfigError
from pyworker.config.schema import KINDS, AppConfig
from pyworker.daemon import operations as ops
from pyworker.daemon.app import App, Generation, Listener
from pyworker.daemon.client import Client
from pyworker.daemon.desired import DesiredApp, FileSource, InlineSource, Source, without_env_values
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.report import changed_files
from pyworker.daemon.requests.apps import begin_anew, env_values, forget, lost_venv, new_app, next_generation, shell_of
from pyworker.daemon.requests.compare import compare
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.daemon.sources import NO_ANSWER, make_generation, read_config
from pyworker.policy.restart import CLEAR, after_refusal
from pyworker.protocol import control as k

# where an app is described, its name, the values that were given with -e
Described = tuple[Source, str, dict[str, str]]


def start(desk: Desk, client: Client, request: k.Start) -> None:
    with desk.brain.store.together():
        goals, decided, still = _begin(desk, request)
    desk.save()
    desk.wait(client, goals, decided, wait=request.wait, since_seq=_before_starts(desk, still))


def _before_starts(desk: Desk, apps: list[App]) -> int:
    """Return what was the last event before these apps began to start: what has happened since is the progress of all who wait."""
    last = {e.app: e.seq for app in apps for e in desk.brain.events.recent(app.name) if e.type == "app_started"}
    return min(desk.seq, *(seq - 1 for seq in last.values())) if last else desk.seq


def _begin(desk: Desk, request: k.Start) -> tuple[dict[str, ops.Goal], dict[str, ops.Outcome], list[App]]:
    """Begin to start what is asked for; return what is to be waited for, what is known already, and what starts since before."""
    decided: dict[str, ops.Outcome] = {}
    goals: dict[str, ops.Goal] = {}
    todo: list[Described] = []
    refilled: list[tuple[App, set[int]]] = []
    still: list[App] = []
    slots = _slots(desk, request)
    found = sources(desk, request)
    for name in _gone_from(desk, request, {name for _, name, _ in found}):
        note = f"{os.path.basename(request.file)} has no such app any more; is it to go? pyworker delete {name}"
        decided[name] = ops.Outcome(True, "unchanged", note=note)
    for source, name, values in found:
        app = desk.brain.apps.get(name)
        if app is not None and app.running and (app.starting or app.is_job or app.has_untouched()):
            if not _same_origin(app.source, source):
                named = f"in {os.path.basename(source.path)}" if isinstance(source, FileSource) else "--name"
                message = f"there is an app named {name} already, from {_origin(app.source)}"
                raise Refuse("failed", message, f"choose another name ({named}), or: pyworker delete {name}")
            not_taken = _not_taken(app, source, values)
            has_no_shell = request.boots and app.restored  # brought back a moment ago
            if has_no_shell and not not_taken and compare(desk, app, request.shell_env)["changes"]:
                todo.append((app.source, name, env_values(app)))
                continue
            again = app.stopped_slots & slots.get(name, app.stopped_slots)
            if again:
                refilled.append((app, again))
            if app.starting:  # by another command, or restored by the daemon that this one has started
                action = "started" if app.restored else "already_running"
                goals[name] = ops.noted(ops.started(action, app.generation), not_taken)
                still.append(app)
            elif again:
                goals[name] = ops.noted(ops.filled(again), not_taken)
            else:
                note, changes = (not_taken, ()) if not_taken else _changed(desk, app, request.shell_env)
                outcome = ops.Outcome(True, "already_running", note=note, changes=changes)
                decided[name] = ops.unless_sick(app, outcome)
            continue
        todo.append((source, name, values))
    prepared = _pin(desk, request, todo)
    for app, again in refilled:
        app.stopped_slots -= again
        desk.brain.poke(app)
    for app, generation in prepared:
        app.stopped_slots.clear()
        lost = lost_venv(app.current, generation)
        begin_anew(desk, app, generation.number)
        if lost:
            what = f"{lost}, whose Python it had, is gone: now it has ours. Again: python3 -m venv {shlex.quote(lost)}"
            desk.brain.note(app, what)
        goals[app.name] = ops.started("started", generation.number)
    for app in still:  # what it waited for in vain may be one of those that begin now
        app.blocked = None
        desk.brain.poke(app)
    return goals, decided, still


def _gone_from(desk: Desk, request: k.Start, names: set[str]) -> list[str]:
    """Return what runs from the file that is started, and is not in it any more: it may have another name by now."""
    whole = request.file if not request.only else ""
    sources = {app.name: app.source for app in desk.brain.apps.values() if app.wanted and app.name not in names}
    return [
        name
        for name, source in sources.items()
        if isinstance(source, FileSource) and (source.path, source.profile) == (whole, request.profile)
    ]


def _pin(desk: Desk, request: k.Start, todo: list[Described]) -> list[tuple[App, Generation]]:
    """Pin a generation of each app, new or known: every mistake of a config is found before anything is started."""
    made: list[tuple[str, Source, Generation]] = []
    for source, name, values in todo:
        config, file, read = read_config(source, values)
        number = next_generation(desk, name)
        known = None if request.file or request.inline else desk.brain.apps[name]
        shell = shell_of(desk, known, request.shell_env)
        made.append((name, source, make_generation(number, config, file, read, shell)))
    fresh: list[App] = []
    try:
        for name, source, _ in made:
            if name not in desk.brain.apps:
                fresh.append(new_app(desk, name, source))
        prepared = [(desk.brain.apps[name], generation) for name, _, generation in made]
        desk.brain.add_generations(prepared)
    except Exception:
        for app in fresh:
            forget(desk, app)
        raise
    for name, source, _ in made:
        desk.brain.apps[name].source = source
    return prepared


def sources(desk: Desk, request: k.Start) -> list[Described]:
    """Return what a request means."""
    overrides, values = without_env_values(request.overrides)
    if request.file:
        every = load(request.file, profile=request.profile).apps if request.only else ()
        only = tuple(sorted(with_dependencies(every, request.only)))  # with what they depend on
        only = only if set(request.only) <= set(only) else request.only  # a wrong name is said below
        plain = load(request.file, only=only, profile=request.profile)
        here = load(request.file, only=only, environ=request.shell_env, profile=request.profile)
        found: list[Described] = []
        for config, shell in zip(plain.apps, here.apps, strict=True):
            is_named = not request.only or config.name in request.only
            if request.overrides and is_named:
                apply_overrides(config, literal_env(request.overrides))  # mistakes are the user's to see now
            own, own_values = (overrides, values) if is_named else ({}, {})
            given = {**_from_shell(config, shell), **own}
            source = FileSource(plain.path, config.name, given, tuple(sorted(own_values)), profile=request.profile)
            found.append((source, config.name, own_values))
        return found
    if request.inline:
        inline = literal_env(request.inline)
        config = load_inline(inline, request.cwd)
        shell = load_inline(inline, request.cwd, environ=request.shell_env)
        table, values = without_env_values(request.inline)
        table |= {**_from_shell(config, shell), "name": config.name}
        return [(InlineSource(table, request.cwd, tuple(sorted(values))), config.name, values)]
    named = [desk.brain.apps[n] for n in dict.fromkeys(s.app for s in desk.select(request.names))]
    return [(app.source, app.name, env_values(app)) for app in named]


def _slots(desk: Desk, request: k.Start) -> dict[str, set[int]]:
    """Return the slots that are asked for of apps of which not all are."""
    whole: set[str] = set()
    slots: dict[str, set[int]] = {}
    for s in desk.select(request.names):
        app = desk.brain.apps[s.app]
        if s.slot is None:
            whole.add(s.app)
            continue
        if app.running:
            desk.check_slot(app, s)
        slots.setdefault(s.app, set()).add(s.slot)
    return {name: asked for name, asked in slots.items() if name not in whole}


def restore(
    desk: Desk, wanted: DesiredApp, values: dict[str, str], listeners: dict[int, Listener] | None = None
) -> str:
    """Bring back one app that is wanted; return "" or why it could not be. `values`: those of its -e.

    `listeners`: those that were found open. OSError (no descriptor is left): it is not there, and may be tried again.
    """
    name = wanted.name
    app = new_app(desk, name, wanted.source)
    app.listeners |= listeners or {}
    app.generation = app.last_generation = wanted.generation
    app.scale, app.scale_base = wanted.scale, wanted.scale_base
    app.stopped_slots = set(wanted.stopped_slots)
    app.wanted = wanted.running
    if not wanted.running:
        return ""
    try:
        config, file, read = read_config(wanted.source, values)
        made = make_generation(wanted.generation + 1, config, file, read, dict(os.environ))
        desk.brain.add_generations([(app, made)])
    except (ConfigError, ListenFailed) as error:
        app.failure = desk.brain.fail(error.message, hint=error.hint)
        app.given_env = values
        # an address may be free later, or be there only then; a disk may answer then
        app.unusable = isinstance(error, ConfigError) and error.problems[0].code != NO_ANSWER
        app.record = after_refusal(CLEAR)
        desk.brain.emit_failed(name, app.failure)
        return f"{name}: {error.message}"
    except OSError:
        forget(desk, app)
        raise
    desk.brain.begin(app, made.number)
    return ""


def _from_shell(plain: AppConfig, shell: AppConfig) -> dict[str, Any]:
    """What $PORT and $WEB_CONCURRENCY of the shell change: kept like options, so that a boot still knows it."""
    changed: dict[str, Any] = {}
    if shell.bind != plain.bind:
        changed["bind"] = list(shell.bind)
    if shell.workers != plain.workers:
        changed["workers"] = shell.workers
    return changed


def _same_origin(one: Source, other: Source) -> bool:
    match one, other:
        case FileSource(), FileSource():
            return one.path == other.path
        case InlineSource(), InlineSource():
            same = all(one.table.get(key) == other.table.get(key) for key in KINDS)
            # a script's path is absolute; what the others run is looked for in their folder
            return same and ("script" in one.table or _folder(one) == _folder(other))
        case _:
            return False


def _not_taken(app: App, asked: Source, values: dict[str, str]) -> str:
    """What to say when a start of what runs already asks for something else; a reload keeps what it was started with."""
    runs, given = app.source, env_values(app)
    match runs, asked:
        case FileSource(), FileSource() if asked.profile and asked.profile != runs.profile:
            what = f"it runs {f'with the profile {runs.profile}' if runs.profile else 'without a profile'}"
        case FileSource(), FileSource() if any(runs.overrides.get(k) != v for k, v in asked.overrides.items()):
            what = "it runs with other options"
        case InlineSource(), InlineSource() if any(runs.table.get(k) != v for k, v in asked.table.items()):
            what = "it runs with other options"
        case _ if any(given.get(k) != v for k, v in values.items()):
            what = "it runs with other values of -e"
        case _:
            return ""
    return f"{what}, and a reload keeps that; to change it: pyworker stop {app.name}, then start it again"


def _changed(desk: Desk, app: App, shell_env: dict[str, str]) -> tuple[str, tuple[dict[str, Any], ...]]:
    """What to say of an app whose files are not what was read, and what a reload would change."""
    files = ", ".join(os.path.basename(path) for path in changed_files(app))
    if not files:
        return "", ()
    changed = f"{files} changed on disk since it was started"
    try:
        changes = tuple(compare(desk, app, shell_env)["changes"])
    except ConfigError:
        return f"{changed}; pyworker diff {app.name} shows what is wrong with it now", ()
    return changed if changes else f"{changed}, but no setting did", changes


def _origin(source: Source) -> str:
    return source.path if isinstance(source, FileSource) else f"the command line in {_folder(source)}"


def _folder(source: InlineSource) -> str:
    return os.path.realpath(os.path.join(source.cwd, source.table.get("cwd", "")))

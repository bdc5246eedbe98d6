"""Daemon, requests Stop, Restart, Reload, Scale: what is asked of apps that exist."""

from __future__ import annotations

from pyworker import failpoint
from pyworker.config.cpus import usable_cpus
from pyworker.daemon import operations as ops
from pyworker.daemon.app import App, Generation
from pyworker.daemon.client import Client
from pyworker.daemon.hooks import OURS
from pyworker.daemon.requests.apps import begin_anew, read_again
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.daemon.sources import check_tls
from pyworker.policy.lifecycle import UNTOUCHED
from pyworker.policy.restart import CLEAR
from pyworker.policy.scale import MAX_WORKERS, scaled
from pyworker.policy.view import can_go_back
from pyworker.protocol import control as k


def stop(desk: Desk, client: Client, request: k.Stop) -> None:
    """Apps or single slots."""
    goals: dict[str, ops.Goal] = {}
    decided: dict[str, ops.Outcome] = {}
    slots: dict[str, set[int]] = {}
    for s in desk.existing(request.selectors):
        app = desk.brain.apps[s.app]
        if s.slot is not None:
            slots.setdefault(s.app, set()).add(s.slot)
            if s.slot not in app.stopped_slots:
                desk.brain.emit(app, "worker_stopping", s.slot)
            app.stopped_slots.add(s.slot)
            desk.brain.poke(app)
        elif app.closed and not app.wanted:
            decided[s.app] = ops.Outcome(True, "unchanged")
        else:
            stop_app(desk, app, now=request.now)
            goals[s.app] = ops.stopped(None)
    for name, numbers in slots.items():
        if name not in goals:
            goals[name] = ops.stopped(frozenset(numbers))
    if not goals and decided.keys() & request.selectors:  # `all` and `w*` mean those that run
        names = ", ".join(decided)
        raise Refuse("not_running", f"{names}: not running", "pyworker ps shows what is")
    desk.save()
    desk.wait(client, goals, decided, wait=request.wait)


def stop_app(desk: Desk, app: App, *, now: bool) -> None:
    """Nothing of it is wanted any more; `now`: no drain."""
    was_running = app.running
    app.wanted = app.running = app.starting = False
    app.restart_to = app.target = app.previous = None
    app.hurry = app.hurry or now
    app.failure = None
    # of the app that ran; a hook that fails is told of the end, too, and would be noted anew
    app.notes = [note for note in app.notes if note.startswith(OURS)]
    app.record = CLEAR
    desk.brain.poke(app)  # one that has failed, too: its memo says that it is wanted
    if was_running and not app.closed:
        desk.brain.emit(app, "app_stopping", None)


def restart(desk: Desk, client: Client, request: k.Restart) -> None:
    """Hard: all stop, then all start; one worker: successor first."""
    selected = desk.existing(request.selectors)
    goals: dict[str, ops.Goal] = {}
    generations: list[tuple[App, Generation]] = []
    for s in selected:
        app = desk.brain.apps[s.app]
        if s.slot is None:
            generation = read_again(desk, app, request.shell_env)
            check_tls(generation)
            generations.append((app, generation))
    desk.brain.add_generations(generations)
    for app, generation in generations:
        app.target = None
        serves = app.running and not app.starting and (app.is_job or app.has_untouched())
        if serves and generation.config.hooks.pre_start:  # they stop when that has succeeded
            app.restart_to = generation.number
            desk.brain.poke(app)
        else:
            app.previous = None
            begin_anew(desk, app, generation.number)
        goals[app.name] = ops.started("restarted", generation.number)
    replaced: dict[str, tuple[set[int], set[int]]] = {}
    for s in selected:
        app = desk.brain.apps[s.app]
        if s.slot is not None and s.app not in goals:
            app.stopped_slots.discard(s.slot)
            app.finished_slots.discard(s.slot)
            app.record = CLEAR
            serials = {w.id.serial for w in app.workers.values() if w.id.slot == s.slot and w.state in UNTOUCHED}
            for serial in serials:
                desk.brain.workers.recycle(
                    app, app.workers[serial], f"restart by {desk.brain.events.by}", can_wait=True, again=True
                )
            desk.brain.poke(app)
            slots, old = replaced.setdefault(s.app, (set(), set()))
            slots.add(s.slot)
            old |= serials
    goals |= {name: ops.replaced(desk.brain, slots, serials) for name, (slots, serials) in replaced.items()}
    desk.save()
    desk.wait(client, goals, {}, wait=request.wait)


def reload(desk: Desk, client: Client, request: k.Reload) -> None:
    """New generations, each read from its source again."""
    apps = desk.apps(request.selectors) if request.selectors else []
    goals: dict[str, ops.Goal] = {}
    generations: list[tuple[App, Generation]] = []
    for app in apps:
        if not app.wanted:  # stopped, or on the way to it
            if len(apps) > 1 or app.name not in request.selectors:
                continue  # `reload all` means all that runs
            raise Refuse("not_running", f"{app.name} is not running", f"pyworker start {app.name}")
        generations.append((app, read_again(desk, app, request.shell_env)))
    desk.brain.add_generations(generations)
    for app, generation in generations:
        goals[app.name] = reload_app(desk, app, generation, soak=request.soak)
    desk.save()
    desk.wait(client, goals, {}, wait=request.wait)


def reload_app(desk: Desk, app: App, generation: Generation, *, soak: bool = False, why: str = "") -> ops.Goal:
    """The new generation becomes the target; return what the client waits for. `why`: nobody has typed it."""
    number = generation.number
    app.reload_base = None
    stays_a_job = app.is_job and generation.config.cron is not None and not app.starting  # its timetable is kept
    if not app.running or not (stays_a_job or app.has_untouched()):  # nothing serves: there is nothing to keep
        begin_anew(desk, app, number)
        return ops.started("reloaded", number)
    app.target, app.target_failure, app.reload_why = number, None, why
    app.restart_to = None
    app.previous = None  # a new reload ends the soak
    failpoint.hit("reload.target")
    app.reload_started_at = desk.brain.loop.clock()
    app.reload_base = app.board.answered() if app.config and app.config.target is not None else None
    desk.brain.emit(app, "reload_started", None, **{"from": app.generation, "to": number})
    if not app.is_job and not app.view().overlaps:
        text = "a command without bind may hold a port of its own: the old workers stop before the new ones start"
        desk.brain.remark(app, text)
    desk.brain.poke(app)
    return ops.reloaded(desk.brain, number, soak=soak)


def abort(desk: Desk, client: Client, request: k.Abort) -> None:
    """What is under way of these: a generation that has not been committed yet, or one in its soak."""
    apps = desk.apps(request.selectors) if request.selectors else []
    goals: dict[str, ops.Goal] = {}
    why = f"it was given up (--abort) by {desk.brain.events.by}"
    for app in apps:
        if app.target is not None:
            app.target_failure = app.target_failure or desk.brain.fail(
                why, hint=f"pyworker reload {app.name}   tries it again"
            )
            goals[app.name] = ops.aborted(desk.brain, app.target)
        elif app.previous is not None and can_go_back(app.view()):
            app.given_up = why
            goals[app.name] = ops.aborted(desk.brain, app.generation)
        else:
            continue
        desk.brain.poke(app)
    if not goals:
        names = ", ".join(app.name for app in apps) or "no app"
        text = f"{names}: no reload is under way, and none can be taken back (that is possible in its soak)"
        raise Refuse("no_reload", text, ops.GO_BACK)
    desk.wait(client, goals, {}, wait=request.wait)


def scale(desk: Desk, client: Client, request: k.Scale) -> None:
    """An override of `workers`, kept in apps.json."""
    changes: list[tuple[App, str, int]] = []
    for app, change in ((a, c) for selector, c in request.changes.items() for a in desk.apps((selector,))):
        name = app.name
        if app.current is None or not (app.running or app.restart_to is not None):
            raise Refuse("not_running", f"{name} is not running", f"pyworker start {name}")
        count = scaled(app.want, change, usable_cpus())
        if count is None:
            raise Refuse("usage", f"cannot scale to {change!r}", 'for example: 8, +2, -1 or "auto"')
        if count > MAX_WORKERS:
            text = f"{name} cannot have {count} workers: {MAX_WORKERS} are the most"
            raise Refuse("usage", text, f"it has {app.want} now")
        changes.append((app, change, count))
    goals: dict[str, ops.Goal] = {}
    for app, change, count in changes:
        before = app.want
        assert app.config is not None
        coming = next((app.generations.get(n) for n in (app.target, app.restart_to) if n is not None), None)
        app.scale, app.scale_base = count, (coming.config if coming else app.config).workers
        app.finished_slots = {s for s in app.finished_slots if s <= count}
        app.stopped_slots = {s for s in app.stopped_slots if s <= count}
        if count < before:
            app.soak_deaths = app.soak_deaths * count // before  # fewer workers are no worse a generation
        if app.is_job:
            app.finished_slots |= set(range(before + 1, count + 1))
        if app.record.failed:
            app.record = CLEAR  # as by `restart`: the operator may have mended what was wrong
        is_relative = change.strip()[0] in "+-"
        if before != count or is_relative:  # `scale api=+0 --save` learns the number by it
            desk.brain.emit(app, "scaled", None, **{"from": before, "to": count})
        goals[app.name] = ops.scaled(desk.brain, range(before + 1, count + 1), None if is_relative else count)
        desk.brain.poke(app)
    desk.save()
    desk.wait(client, goals, {}, wait=request.wait)


def saved(desk: Desk, client: Client, request: k.Saved) -> None:
    """The file is not the one that was read, and says what runs: nobody has to be told that it was changed."""
    for app in desk.brain.apps.values():
        current = app.current
        if current is None or current.resolved.source != request.path:
            continue
        read = current.resolved.mtime_ns
        if request.before == read or (read, request.before) == app.saved:
            app.saved = (read, request.after)
            app.write_memo()
    client.reply(True, {})

"""Daemon: what an operator is told of one app: the one word for its state, and the notes. Reads values, changes none."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pyworker.daemon.app import App, Listener
from pyworker.daemon.listener import actual, is_listening, queue_depth, url
from pyworker.policy import certificate
from pyworker.policy.lifecycle import UNTOUCHED, State
from pyworker.protocol.events import names_in_words

# seconds that a request may take before it is told: what gunicorn gives one
LONG = 30.0


def state_word(app: App) -> str:
    """The roll-up that `ps` shows."""
    if not app.running:
        if app.restart_to is not None:
            return "starting"
        if app.closed or app.is_empty():
            return "failed" if app.failure is not None and app.record.permanent else "stopped"
        return "stopping"
    if app.record.permanent and not app.has_untouched():
        return "failed"
    if app.record.failed:
        return "failed" if app.ready_count() == 0 else "degraded"
    if app.starting:
        return "starting"
    if app.target is not None or app.reload_from is not None:
        return "reloading"
    wanted = app.slots()
    if app.has_ended_badly():
        return "degraded" if wanted else "failed"
    if not wanted:
        return "scheduled" if app.is_job else "stopped"
    if app.is_job and app.has_untouched():
        return "running"  # as soon as its run has begun: it serves nobody that would have to wait
    if app.record.permanent or _lacks_template(app):  # all are there, and the next that dies is not replaced
        return "degraded"
    return "running" if app.ready_count() >= len(wanted) and app.sick() is None else "degraded"


def addresses(app: App) -> dict[str, Listener]:
    """Where it listens, as URLs. A reload that has made a Unix socket anew, whose file was removed, keeps the old one for its soak."""
    secure = app.config is not None and app.config.tls is not None
    return {url(actual(x.address, x.sock), secure): x for x in app.listeners.values() if is_listening(x.sock)}


def _lacks_template(app: App) -> bool:
    """Whether its template was tried again, and has failed: what it needs has gone, and may come back."""
    template = app.templates.get(app.generation)
    is_there = template is not None and template.ready_at is not None
    is_forked = app.config is not None and app.config.target is not None
    return is_forked and not is_there and app.failure is not None and not app.record.is_clear


def all_notes(app: App) -> list[str]:
    """What the operator should know: what was noted, and what is so by now."""
    return [
        *app.notes,
        *_notes_of_template(app),
        *([f"{app.blocked.message}; {app.blocked.hint}"] if app.blocked is not None else []),
        *([stops_after(app.stops_after)] if app.stops_after else []),
        *_note_of_no_workers(app),
        *_note_of_late_check(app),
        *long_request_note(app),
    ]


def _note_of_no_workers(app: App) -> Iterator[str]:
    """The port stays open, as for a moment without workers: somebody may hold requests back that way."""
    waits = "; who connects waits" if app.listeners else ""
    if not app.running or app.is_job:
        return
    if app.scale == 0:
        yield f"it is scaled to 0{waits}: pyworker scale {app.name}=1 starts a worker"
    elif app.want and app.stopped_slots.issuperset(range(1, app.want + 1)):
        yield f"each of its workers was stopped{waits}: pyworker start {app.name}, or pyworker stop {app.name}"


def _note_of_late_check(app: App) -> Iterator[str]:
    """Of one worker: what ails one mostly ails all."""
    for w in app.workers.values():
        health = w.health.health if w.health is not None else None
        if health is not None and health.is_late and w.state in UNTOUCHED - {State.UNHEALTHY}:
            yield not_passed_yet(w.id.slot, health.reason)
            return


def long_request_note(app: App) -> Iterator[str]:
    """Where nothing limits it, a request that never ends takes its worker away, or all of them, and all look ready."""
    board = app.board
    untouched = [w.id for w in app.workers.values() if w.state in UNTOUCHED]
    busy = [(each.slot, board.stats(each.serial)) for each in untouched if board.in_flight(each.serial)]
    if not busy:
        return
    waiting = sum((queue_depth(x.sock) or (0, 0))[0] for x in app.listeners.values() if is_listening(x.sock))
    now = time.monotonic()
    threads = app.config.threads if app.config is not None else 1
    ages = {}
    for slot, stats in busy:
        # where its loop goes on it serves others, too, unless all its threads are taken
        full = waiting and 1 < threads <= stats.in_flight
        since = stats.oldest_at if full else stats.progress_at
        if since and now - since > LONG:
            ages[slot] = now - since
    if ages:
        who = f"worker {next(iter(ages))} has" if len(ages) == 1 else f"{len(ages)} workers have"
        name = f"{app.name}.{next(iter(ages))}" if len(ages) == 1 else app.name
        wait = f", and {waiting} connection{'s wait' if waiting != 1 else ' waits'} to be accepted" if waiting else ""
        yield f"{who} been in a request for {max(ages.values()):.0f} s{wait}: pyworker stack {name} shows where"


def _notes_of_template(app: App) -> Iterator[str]:
    template = app.templates.get(app.generation)
    loaded = template.loaded if template is not None else None
    if loaded is None:
        return
    if loaded.why and (app.current is None or app.current.config.preload):
        yield f"{loaded.why}: each worker imports the app for itself, unless that is left to the lifespan or hooks.post_fork"
    if loaded.cert_until:
        what, step = certificate.trouble(loaded.cert_from, loaded.cert_until, time.time())
        if what:
            yield f"its TLS certificate {what}; {step}"


def stops_after(names: tuple[str, ...]) -> str:
    """Return what is said of an app that serves on until those have gone that depend on it."""
    return f"stops after {names_in_words(names)}"


def not_passed_yet(slot: int, reason: str) -> str:
    """Return what is said of a worker that waits for the first check that it passes."""
    return f"worker {slot} has not passed its health check yet: {reason}"

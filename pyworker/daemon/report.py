"""Daemon: the documents of `ps --json` and `describe --json`. Reads, changes nothing."""

from __future__ import annotations

import os
import shlex
import time
import zlib
from typing import Any

from pyworker import __version__
from pyworker.config.environment import without_passwords
from pyworker.config.schema import AppConfig
from pyworker.config.syntax import MAX_FILE
from pyworker.daemon import disks
from pyworker.daemon.app import App, Failure
from pyworker.daemon.board import WorkerStats
from pyworker.daemon.brain import Brain
from pyworker.daemon.desired import DesiredApp, FileSource
from pyworker.daemon.diagnosis import log_file
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.listener import queue_depth
from pyworker.daemon.listening import why_unreachable
from pyworker.daemon.sample import Sampler, Served
from pyworker.daemon.shown import addresses, all_notes, state_word
from pyworker.daemon.wallclock import next_at
from pyworker.policy.lifecycle import State
from pyworker.policy.view import slots_of
from pyworker.protocol.figures import Totals
from pyworker.protocol.logs import stamp
from pyworker.protocol.scoreboard import AppF
from pyworker.protocol.wire import to_json
from pyworker.unix.files import open_regular

_ENDS = ("worker_exited", "worker_recycled", "worker_unhealthy")  # why workers left, other than by a command
_SHOWN_ENDS = 5
_SHOWN_EVENTS = 20


def ps_document(
    brain: Brain, sampler: Sampler | None, apps: list[App], status: dict[str, Any], *, pss: bool = False
) -> dict[str, Any]:
    """Return the document of `ps --json` (reference: docs/json.md); without a sampler nothing is measured."""
    daemon = {"pid": status["pid"], "version": status["version"], "uptime_s": status["uptime_s"]}
    documents = [app_document(brain, sampler, app) for app in apps]
    if pss and sampler is not None:
        pids = [worker["pid"] for document in documents for worker in document["pool"] if worker["pid"]]
        _add_pss(documents, sampler.pss_lately(pids, brain.loop.clock()))
    return {"v": 1, "daemon": daemon, "apps": documents}


def _add_pss(documents: list[dict[str, Any]], found: dict[int, int | None]) -> None:
    for document in documents:
        for worker in document["pool"]:
            worker["pss_bytes"] = found.get(worker["pid"])
        known = [worker["pss_bytes"] for worker in document["pool"] if worker["pid"]]
        document["pss_bytes"] = _sum(known) if None not in known else None  # half of a sum would be no answer


def narrow(document: dict[str, Any], slots: frozenset[int]) -> dict[str, Any]:
    """Leave these workers in an app's document (none: all); the figures of the app stay its own."""
    if slots:
        document["pool"] = [worker for worker in document["pool"] if worker["worker"] in slots]
    return document


def app_document(brain: Brain, sampler: Sampler | None, app: App) -> dict[str, Any]:
    """Return one app of `ps --json`."""
    now = brain.loop.clock()
    config = app.config
    workers = sorted(app.workers.values(), key=lambda w: (w.id.slot, w.id.serial))
    pool = [_worker_document(app, sampler, w, now) for w in workers]
    listeners = addresses(app)
    started_ms = app.board.app(AppF.STARTED_AT)
    uptime = max((now - w.ready_at for w in workers if w.ready_at is not None), default=None)
    record = app.record
    window = config.restart.window if config else 0.0
    failure = app.failure
    http = None
    if config and config.target is not None:  # others count nothing
        totals = app.board.totals()
        http = _http(totals, sampler.served(app.name, totals, now) if sampler else Served(None, None, None))
    slots, ready = app.slots(), app.ready_count()
    is_known = app.current is not None or app.scale is not None  # else it was stopped before a boot, and not read since
    backoff = None
    waiting = ready < len(slots)  # a record that is only remembered is no backoff
    if waiting and record.tries and not record.failed and not record.permanent and config is not None:
        in_s = max(0.0, round(record.next_at - now, 1))
        backoff = {"try": record.tries, "max": config.restart.max_restarts, "in_s": in_s}
    state = state_word(app)
    cannot_replace = state == "degraded" and not waiting and app.sick() is None
    why = "a worker that dies cannot be replaced: " if cannot_replace else ""
    return {
        "name": app.name,
        "state": state,
        "kind": app.kind,
        "gen": app.generation,
        "target": _what(config),
        "balance": config.balance if config else None,
        "listen": [*listeners],
        "queue": [queue_depth(x.sock) for x in listeners.values()],
        "workers": {"want": len(slots_of(app)) if is_known else None, "ready": ready, "total": len(workers)},
        "cpu_percent": _sum([p["cpu_percent"] for p in pool]),
        "rss_bytes": _sum([p["rss_bytes"] for p in pool]),
        "requests_per_s": _sum([p["requests_per_s"] for p in pool]),
        "requests": app.board.requests(),
        "in_flight": sum(p["in_flight"] for p in pool),
        "open_connections": sum(p["open_connections"] for p in pool),
        "http": http,
        "restarts": {
            "total": app.board.app(AppF.RESTARTS),
            "window": sum(1 for t in record.deaths if t > now - window),
            "max": config.restart.max_restarts if config else None,
            "window_s": config.restart.window if config else None,
        },
        "backoff": backoff,
        "reloads": app.board.app(AppF.RELOADS),
        "started_at": stamp(started_ms / 1000) if app.running else None,
        "uptime_s": round(uptime, 1) if uptime is not None else None,
        "next_run_at": _next(app, config.cron if config else None),
        "next_reload_at": _next(app, config.reload.cron if config else None),
        "config": {
            "file": app.source.path if isinstance(app.source, FileSource) else None,
            "changed": bool(changed := changed_files(app)),
            "changed_files": changed,
        },
        "last_failure": dict(vars(failure)) | {"message": why + failure.message} if failure else None,
        "notes": [*all_notes(app), *_log_trouble(brain, app), *_unreachable(app)],
        "drops": app.drops.lines(now, brain.store.logger_pid),
        "pool": pool,
    }


def _next(app: App, timetable: str | None) -> str | None:
    at = next_at(timetable, time.time()) if timetable is not None and app.running else None
    return stamp(at) if at is not None else None


def waiting_document(app: DesiredApp, failure: Failure) -> dict[str, Any]:
    """Return one app of `ps --json` that is wanted, and that there is no descriptor for: nothing of it is there."""
    file = app.source.path if isinstance(app.source, FileSource) else None
    none = (
        "balance", "cpu_percent", "rss_bytes", "pss_bytes", "requests_per_s", "http", "backoff", "started_at", "uptime_s",
        "next_run_at", "next_reload_at",
    )  # fmt: skip
    zero = ("requests", "in_flight", "open_connections", "reloads", "drops")
    return dict.fromkeys(none) | dict.fromkeys(zero, 0) | {
        "name": app.name, "state": "failed", "kind": "unknown", "gen": app.generation, "target": "",
        "listen": [], "queue": [], "workers": {"want": None, "ready": 0, "total": 0},
        "restarts": {"total": 0, "window": 0, "max": None, "window_s": None},
        "config": {"file": file, "changed": False, "changed_files": []}, "last_failure": dict(vars(failure)), "notes": [], "pool": [],
    }  # fmt: skip


def _log_trouble(brain: Brain, app: App) -> list[str]:
    trouble = app.drops.trouble(brain.store.logger_pid)
    return [f"log: {trouble}"] if trouble else []


def _unreachable(app: App) -> list[str]:
    named = app.current.listeners if app.current is not None else ()
    today = [x for x in app.listeners.values() if x.index in named or app.generation in x.asked]
    return [why for x in today if (why := why_unreachable(app, x))]


def _http(totals: Totals, served: Served) -> dict[str, Any]:
    """What asgi and wsgi apps answered: lately (since somebody asked last), and all since the start."""
    return {
        "p50_s": served.p50_s,
        "p99_s": served.p99_s,
        "error_share": round(served.error_share, 6) if served.error_share is not None else None,
        "status": {f"{i + 1}xx": count for i, count in enumerate(totals.status)},
        "latency_sum_s": totals.latency_sum_us / 1e6,
        "latency_buckets": list(totals.latency),
    }


def _worker_document(app: App, sampler: Sampler | None, w: WorkerHandle, now: float) -> dict[str, Any]:
    stats: WorkerStats = app.board.stats(w.id.serial)
    figures = sampler.figures(w.pid, stats.requests, now) if sampler and w.pid else None
    generation = app.generations.get(w.id.generation)
    counts = generation is not None and generation.config.target is not None  # others count nothing
    return {
        "worker": w.id.slot,
        "pid": w.pid or None,
        "state": w.state.value,
        "health": "failing" if w.state is State.UNHEALTHY else "ok",
        "gen": w.id.generation,
        "cpu_percent": figures.cpu_percent if figures else None,
        "cpu_s": figures.cpu_s if figures else None,
        "rss_bytes": figures.rss if figures else None,
        "open_connections": stats.open,
        "in_flight": stats.in_flight,
        "requests": stats.requests,
        "requests_per_s": figures.requests_per_s if figures and counts else None,
        "restarts": app.slot_restarts.get(w.id.slot, 0),
        "started_at": stamp(w.started_at),
        "uptime_s": round(now - (w.ready_at if w.ready_at is not None else w.born_at), 1),
        "last_exit": app.last_exits.get(w.id.slot),
        "reason": (w.health.health.reason if w.health else "") or w.recycle or w.leaving_because,
    }


def describe(brain: Brain, sampler: Sampler, app: App, slots: frozenset[int], *, reveal: bool) -> dict[str, Any]:
    """Return one app of `describe --json`; with `slots` the workers, exits and events of these only."""
    config, current = app.config, app.current
    template = app.templates.get(app.generation)
    loaded = template.loaded if template else None
    env = []
    if current is not None:
        for name, value in sorted(current.resolved.env.items()):
            secret = name in current.resolved.secrets
            shown = value if reveal else "***" if secret else without_passwords(value)
            env.append({"name": name, "value": shown, "origin": current.resolved.env_origins.get(name, "")})
    document = app_document(brain, sampler, app)
    _add_pss([document], {w["pid"]: sampler.pss(w["pid"]) for w in document["pool"] if w["pid"]})
    known = brain.events.recent(app.name)
    deleted = max((e.seq for e in known if e.type == "app_deleted"), default=0)  # another one had this name before
    ends = [e for e in known if e.type in _ENDS and e.seq > deleted and (not slots or e.worker in slots)]
    document |= {
        "limits": to_json(config.limits) if config else None,
        "health": to_json(config.health) if config and config.health else None,
        "env": env,
        "exits": [to_json(e) for e in ends[-_SHOWN_ENDS:]],
        "events": [to_json(e) for e in known if not slots or e.worker in slots][-_SHOWN_EVENTS:],
        "command": list(config.command) if config else [],
        "script": config.script if config else None,
        "cwd": config.cwd if config else None,
        "python": current.resolved.python if current else None,
        "user": config.user if config else None,
        "log_file": log_file(app, brain.home),
        "log_bytes": _size(log_file(app, brain.home)),
        "dispatcher": {"pid": app.dispatcher.pid, "state": app.dispatcher.state} if app.dispatcher else None,
        "template": {
            "state": template.state,
            "preload": loaded.preload if loaded else None,
            "why": loaded.why if loaded else "",
            "engine": loaded.engine if loaded else "",
            "loop": loaded.loop if loaded else "",
            "python": loaded.python if loaded else "",
            "pid": template.pid,
        }
        if template
        else None,
        "runtime": sorted({w.version for w in app.workers.values() if w.version}),
        "daemon_version": __version__,
        "restart": to_json(config.restart) if config else None,
        "stop": to_json(config.stop) if config else None,
        "reload": to_json(config.reload) if config else None,
        "cron": config.cron if config else None,
    }
    return narrow(document, slots)


def _what(config: AppConfig | None) -> str:
    if config is None:
        return ""
    if config.target is not None:
        return config.target
    return config.script if config.script is not None else shlex.join(config.command)


def changed_files(app: App) -> list[str]:
    """Return its config, env and certificate files that are not what was read, but for a number of workers that runs already."""
    current = app.current
    if current is None:
        return []
    pinned = current.resolved
    read = dict(pinned.env_files)
    if (tls := pinned.config.tls) is not None:
        contents = {tls.cert: current.tls[0], tls.ca: current.tls[2]}  # a key is no other without its certificate
        read |= {path: zlib.crc32(content) for path, content in contents.items() if path is not None}
    found = [path for path, crc in read.items() if not _is_as_read(app, path, crc)]
    if pinned.mtime_ns and not _is_as_read(app, pinned.source, pinned.crc, pinned.mtime_ns):
        found.insert(0, pinned.source)
    return found


def _is_as_read(app: App, path: str, crc: int, read: int = 0) -> bool:
    """Whether a file says what was read then. `read`: its mtime then, of a config file, whose CRC may be unknown (0)."""
    try:
        now = os.stat(path).st_mtime_ns
    except OSError:
        return not read and not crc
    if read and (now == read or (read, now) == app.saved):
        return True
    if app.compared.get(path, (0, 0, False))[:2] != (app.generation, now):
        app.compared[path] = (app.generation, now, _crc(path) == crc and (crc != 0 or not read))
    return app.compared[path][2]


def _crc(path: str) -> int:
    try:
        with open_regular(path) as file:
            return zlib.crc32(file.read(MAX_FILE + 1))
    except OSError:
        return 0


def _size(path: str) -> int | None:
    try:
        return disks.ask(path, lambda: os.stat(path)).st_size
    except OSError:  # nothing was printed yet, the logs go elsewhere, or their disk does not answer
        return None


def _sum(values: list[Any]) -> Any:
    known = [v for v in values if v is not None]
    return round(sum(known), 1) if known else None

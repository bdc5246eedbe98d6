"""The document of `ps --json` as Prometheus text (exposition format 0.0.4). Pure: no socket, no clock.

One renderer for `pyworker metrics`, the dashboard's /metrics and the probe endpoint of `pyworker run`. Names and units
follow Prometheus' conventions: seconds, bytes, `_total` for what only grows. A figure that is not known is left out; it
is never written as 0. Two workers of one slot (during a reload) are added up: a series is a slot, not a process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any, get_args

from pyworker.protocol.control import AppState
from pyworker.protocol.figures import bound, by_slot, totals_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = get_args(AppState)
_UNWANTED = frozenset({"stopped", "stopping"})  # a stopped app keeps the number that it is to have when it is started
_SAYS_WHY = frozenset({"failed", "degraded", "scheduled"})  # in others, unless a try is due, a failure is over
# the bounds that are written, of the 31 that are counted: 64 us to 67 s
_FIRST, _LAST = 6, 26

# name -> (type, help); also the order in which they are written
METRICS: dict[str, tuple[str, str]] = {
    "pyworker_up": ("gauge", "1 if the pyworker daemon answers."),
    "pyworker_build_info": ("gauge", "The version of the daemon; always 1."),
    "pyworker_daemon_uptime_seconds": ("gauge", "How long this daemon runs; workers outlive it."),
    "pyworker_app_info": ("gauge", "What an app is; always 1."),
    "pyworker_app_state": ("gauge", "1 for the state that the app is in, 0 for the others."),
    "pyworker_app_generation": ("gauge", "The generation that serves."),
    "pyworker_app_config_changed": ("gauge", "1 if the config file or an env file was changed since it was read."),
    "pyworker_app_notes": (
        "gauge",
        "Notes that ps shows of it: a failure, a refused reload, a certificate that expires.",
    ),
    "pyworker_app_workers_wanted": ("gauge", "Workers that should run."),
    "pyworker_app_workers_ready": ("gauge", "Slots with a worker that accepts."),
    "pyworker_app_workers": ("gauge", "Worker processes, those that start or drain too."),
    "pyworker_app_start_time_seconds": ("gauge", "When the app was started, since the epoch."),
    "pyworker_app_restarts_total": ("counter", "Workers replaced after they ended by themselves."),
    "pyworker_app_reloads_total": ("counter", "Reloads that were committed."),
    "pyworker_app_log_lines_dropped_total": ("counter", "Lines of output that could not be written."),
    "pyworker_http_requests_total": ("counter", "Requests answered, by class of status."),
    "pyworker_http_request_duration_seconds": ("histogram", "From a request's head to the end of its answer."),
    "pyworker_listen_queue_connections": ("gauge", "Connections that wait to be accepted."),
    "pyworker_listen_queue_limit_connections": ("gauge", "How many may wait."),
    "pyworker_worker_up": ("gauge", "1 if the slot's worker accepts; a slot without one has no series."),
    "pyworker_worker_requests_in_flight": ("gauge", "Requests being answered."),
    "pyworker_worker_connections": ("gauge", "Open connections."),
    "pyworker_worker_cpu_seconds_total": ("counter", "CPU time of the worker and what it started."),
    "pyworker_worker_memory_rss_bytes": ("gauge", "Resident memory of the worker and what it started."),
    "pyworker_worker_memory_pss_bytes": ("gauge", "The same, each page divided among the processes that share it."),
    "pyworker_worker_start_time_seconds": ("gauge", "When the slot's worker was started, since the epoch."),
    "pyworker_worker_restarts_total": ("counter", "Workers of this slot that ended by themselves."),
}

_Sample = tuple[str, dict[str, str], float]  # suffix of the name, labels, value


def render(document: dict[str, Any]) -> str:
    """Return the metrics of all apps in a document of `ps --json`."""
    found: dict[str, list[_Sample]] = {name: [] for name in METRICS}

    def add(name: str, value: Any, suffix: str = "", **labels: Any) -> None:
        if isinstance(value, (int, float)) and math.isfinite(value):
            found[name].append((suffix, {k: str(v) for k, v in labels.items()}, value))

    daemon = document.get("daemon") or {}
    add("pyworker_up", 1)
    add("pyworker_build_info", 1, version=daemon.get("version") or "")
    add("pyworker_daemon_uptime_seconds", daemon.get("uptime_s"))
    for app in document.get("apps") or ():
        _app(app, add)
    return _text(found)


def down() -> str:
    """Return the metrics of a daemon that does not answer."""
    return _text({**{name: [] for name in METRICS}, "pyworker_up": [("", {}, 0)]})


def _app(app: dict[str, Any], add: Any) -> None:
    name = app["name"]
    add(
        "pyworker_app_info", 1, app=name, kind=app.get("kind") or "", target=app.get("target") or "",
        balance=app.get("balance") or "",
    )  # fmt: skip
    for state in STATES:
        add("pyworker_app_state", int(app.get("state") == state), app=name, state=state)
    add("pyworker_app_generation", app.get("gen"), app=name)
    changed = (app.get("config") or {}).get("changed")
    add("pyworker_app_config_changed", None if changed is None else int(changed), app=name)
    workers = app.get("workers") or {}
    says_why = app.get("state") in _SAYS_WHY or bool(app.get("backoff"))
    has_failed = says_why and bool(app.get("last_failure"))
    add("pyworker_app_notes", len(app.get("notes") or ()) + has_failed, app=name)
    add("pyworker_app_workers_wanted", 0 if app.get("state") in _UNWANTED else workers.get("want"), app=name)
    add("pyworker_app_workers_ready", workers.get("ready"), app=name)
    add("pyworker_app_workers", workers.get("total"), app=name)
    add("pyworker_app_start_time_seconds", _epoch(app.get("started_at")), app=name)
    add("pyworker_app_restarts_total", (app.get("restarts") or {}).get("total"), app=name)
    add("pyworker_app_reloads_total", app.get("reloads"), app=name)
    add("pyworker_app_log_lines_dropped_total", app.get("drops"), app=name)
    _http(app, add)
    for address, queue in zip(app.get("listen") or (), app.get("queue") or (), strict=False):
        if queue is not None:
            add("pyworker_listen_queue_connections", queue[0], app=name, listener=address)
            add("pyworker_listen_queue_limit_connections", queue[1], app=name, listener=address)
    for slot, pool in sorted(by_slot(app).items()):
        _slot(name, slot, pool, counts=app.get("http") is not None, add=add)


def _http(app: dict[str, Any], add: Any) -> None:
    totals = totals_of(app)
    if totals is None:
        return
    for i, count in enumerate(totals.status[1:], 2):  # 1xx are no answers
        add("pyworker_http_requests_total", count, app=app["name"], code=f"{i}xx")
    seen = 0
    for i, count in enumerate(totals.latency):
        seen += count
        if _FIRST <= i <= _LAST:
            le = f"{bound(i):g}"
            add("pyworker_http_request_duration_seconds", seen, "_bucket", app=app["name"], le=le)
    add("pyworker_http_request_duration_seconds", seen, "_bucket", app=app["name"], le="+Inf")
    add("pyworker_http_request_duration_seconds", totals.latency_sum_us / 1e6, "_sum", app=app["name"])
    add("pyworker_http_request_duration_seconds", seen, "_count", app=app["name"])


def _slot(app: str, slot: int, pool: list[dict[str, Any]], *, counts: bool, add: Any) -> None:
    add("pyworker_worker_up", int(any(w.get("state") == "ready" for w in pool)), app=app, worker=slot)
    if counts:  # commands and scripts count nothing
        add("pyworker_worker_requests_in_flight", _sum(w.get("in_flight") for w in pool), app=app, worker=slot)
        add("pyworker_worker_connections", _sum(w.get("open_connections") for w in pool), app=app, worker=slot)
    add("pyworker_worker_cpu_seconds_total", _sum(w.get("cpu_s") for w in pool), app=app, worker=slot)
    add("pyworker_worker_memory_rss_bytes", _sum(w.get("rss_bytes") for w in pool), app=app, worker=slot)
    add("pyworker_worker_memory_pss_bytes", _sum(w.get("pss_bytes") for w in pool), app=app, worker=slot)
    started = [at for w in pool if (at := _epoch(w.get("started_at"))) is not None]
    add("pyworker_worker_start_time_seconds", max(started, default=None), app=app, worker=slot)
    add("pyworker_worker_restarts_total", pool[-1].get("restarts"), app=app, worker=slot)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _epoch(stamp: str | None) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp() if stamp else None
    except ValueError:
        return None


def _text(found: dict[str, list[_Sample]]) -> str:
    lines = []
    for name, samples in found.items():
        if not samples:
            continue
        kind, words = METRICS[name]
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        for suffix, labels, value in samples:
            inner = ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items())
            lines.append(f"{name}{suffix}{{{inner}}} {_number(value)}" if inner else f"{name}{suffix} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(value)

"""Settings of pm2's, those of one app -> options of app.toml; what has none here, and why."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from pyworker.config.check import clean_name
from pyworker.config.schema import MB
from pyworker.config.units import size_text
from pyworker.importers.jsvalues import Computed, EnvironmentText, computed_in
from pyworker.importers.result import Apply, Imported, seconds

_MEMORY = re.compile(r"\s*(\d{1,15}(?:\.\d+)?)\s*([KMG]?)B?\s*\Z", re.IGNORECASE)
_TIME = re.compile(r"\s*(\d{1,15}(?:\.\d+)?)\s*(ms|s|m|h|)\s*\Z")
_READY_TIMEOUT = 60.0  # reload.ready_timeout, where nothing is said
_UNITS = {"ms": 0.001, "": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DROPPED = {
    "vizion": "no version control is looked at", "post_update": "pyworker does not deploy", "io": "pyworker metrics",
    "pmx": "pyworker metrics", "automation": "pyworker metrics", "trace": "not here", "disable_trace": "not here", "v8": "for Node",
    "event_loop_inspector": "for Node", "deep_monitoring": "pyworker metrics", "source_map_support": "for Node",
    "disable_source_map_support": "for Node", "instance_var": "a worker knows its number as $PYWORKER_WORKER",
    "increment_var": "workers share one address", "pid_file": "pyworker ps knows the pids",
    "log_date_format": "every line has a time; pyworker logs shows it", "time": "every line has a time; pyworker logs shows it",
    "log_type": "logs.format = \"json\" writes JSON lines", "merge_logs": "all workers write to one log, each line marked",
    "restart_delay": "the wait before a restart grows by itself, from 0.1 s to 30 s",
    "exp_backoff_restart_delay": "the wait before a restart grows by itself, from 0.1 s to 30 s",
    "kill_retry_time": "ends are noticed, not polled", "force": "names are what counts here", "treekill": "the whole process group is ended",
    "windows_hide": "Linux only", "write": "not here", "execute_command": "not here", "username": "set user", "install_url": "not here",
    "append_env_to_name": "names are what the file says", "watch_delay": "watch.debounce",
    "watch_options": "the kernel says what has changed; watch.debounce",
    "shutdown_with_message": "a stop is a signal (stop.signal); Node apps get it too", "source_map": "for Node",
    "disable_logs": "logs are always kept, and rotated", "namespace": "name apps alike and use globs: pyworker restart 'shop-*'",
}  # fmt: skip


def int_of(value: Any) -> int | None:
    """Return a whole number that may be written as text, else None."""
    try:
        return int(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):  # the last: JSON may say 1e400
        return None


def _time_of(value: Any) -> float | None:
    found = _TIME.match(str(value))
    return float(found[1]) * _UNITS[found[2]] if found else None


def _time(key: str) -> Apply:
    def apply(app: Imported, value: Any, source: str) -> None:
        number = _time_of(value)
        if number is None:
            app.look(source, f"{value!r} is no time: set {key}")
        else:
            app.set(key, seconds(number), source)

    return apply


def _memory(app: Imported, value: Any, source: str) -> None:
    found = _MEMORY.match(str(value))
    if found is None:
        app.look(source, f"{value!r} is no size: set limits.memory")
        return
    size = float(found[1]) * {"": 1 / 2**20, "K": 1 / 1024, "M": 1, "G": 1024}[found[2].upper()]
    app.set("limits.memory", size_text(max(1, round(size)) * MB), source)


def _instances(app: Imported, value: Any, source: str) -> None:
    number = int_of(value)
    if value == "max" or number == 0:
        app.set("workers", "auto", source)
    elif isinstance(value, Computed) and "cpus()" not in value.text:
        app.look(source, f"{value}: set workers")
    elif number is None or number < 0:
        app.set("workers", "auto", source)
        app.look(
            source, f"{value.text if isinstance(value, Computed) else value}: auto is one worker for each usable CPU"
        )
    else:
        app.copies(number, source)


def as_profile(app: Imported, value: Any, source: str) -> None:
    """env_production is what `--env production` adds: a profile."""
    name = clean_name(source.removeprefix("env_"))
    other = Imported(app.name)
    environment(other, value, source)
    app.review += other.review
    if other.table:
        app.profiles[name] = other.table
        app.done(source)
        app.look(source, f"is the profile {name}: pyworker start --profile {name}")


def environment(app: Imported, value: Any, source: str) -> None:
    if not isinstance(value, dict):
        app.look(source, "is no object")
        return
    for name, text in value.items():
        if computed_in(text) is not None:
            app.look(f"env.{name}", f"{computed_in(text)}: set it yourself")
            continue
        if isinstance(text, dict | list):
            text = json.dumps(text)
        plain = "" if text is None else ("true" if text else "false") if isinstance(text, bool) else str(text)
        app.set(f"env.{name}", plain if isinstance(text, EnvironmentText) else plain.replace("$", "$$"), source)
    app.done(source)


def _watch(app: Imported, value: Any, source: str) -> None:
    value = value == "true" if value in ("true", "false") else value
    if not value:
        app.done(source)
    else:
        paths = [value] if isinstance(value, str) else value
        if isinstance(paths, list) and paths:
            files = [str(p) for p in paths if os.path.splitext(str(p))[1]]
            folders = [os.path.dirname(p) or "." if p in files else p for p in map(str, paths)]
            app.table["watch"] = {"paths": list(dict.fromkeys(folders)), **(app.table.get("watch") or {})}
            if files:
                app.look(
                    source, f"{', '.join(files)}: folders are watched; watch.include names the files in them that count"
                )
            app.done(source)
        elif "watch" not in app.table:
            app.set("watch", True, source)
        app.look(source, "reloads (no gap) instead of restarting; for development")


def _ignore(app: Imported, value: Any, source: str) -> None:
    paths = [str(v).rstrip("/") for v in (value if isinstance(value, list) else [value])]
    old = app.table.get("watch")
    app.table["watch"] = {**(old if isinstance(old, dict) else {}), "exclude": paths}
    app.done(source)


def _cron(app: Imported, value: Any, source: str) -> None:
    if not value or value == "0":
        app.done(source)
        return
    app.set("reload.cron", str(value), source)
    app.look(source, "a reload without a gap, where pm2 restarted; for a job that runs and ends: cron")


def _autorestart(app: Imported, value: Any, source: str) -> None:
    if value is False:
        app.set("restart.policy", "never", source)
    else:
        app.done(source)


def _autostart(app: Imported, value: Any, source: str) -> None:
    app.done(source)
    if value is False:
        app.look(source, "pyworker start FILE starts all of it; leave this one out with --only")


def _log(app: Imported, value: Any, source: str) -> None:
    path = str(value or "")
    app.log("" if path in ("/dev/null", "NULL") or "/.pm2/logs/" in path else path, source)


def _codes(app: Imported, value: Any, source: str) -> None:
    codes = value if isinstance(value, list) else [value]
    if [str(c) for c in codes] == ["0"]:
        app.set("restart.policy", "on-failure", source)
    else:
        app.look(
            source, f'{value}: only 0 is a clean end (restart.policy = "on-failure"), and 78 asks not to be restarted'
        )


def _count(app: Imported, value: Any, source: str) -> None:
    number = int_of(value)
    if number is None or number < 1:
        app.look(source, f"{value!r}: set restart.max_restarts")
    else:
        app.set("restart.max_restarts", min(number, 1000), source)


def _wait_ready(app: Imported, value: Any, source: str) -> None:
    command = app.table.get("command", [""])
    if value and os.path.basename(command[0]) == "node":
        app.set("ready", "notify", source)
        app.look(
            source,
            'process.send("ready") counts, and READY=1 on $NOTIFY_SOCKET; pm2 went on without it, here the start fails',
        )
    elif value and "command" in app.table:
        app.drop(source, 'pm2 went on when nothing said "ready"; what says READY=1 on $NOTIFY_SOCKET: ready = "notify"')
    else:
        app.done(source)


def _listen_timeout(app: Imported, value: Any, source: str) -> None:
    """After which pm2 goes on as if it were ready; here it is a limit, and most that are written would be too short."""
    number = _time_of(value)
    if number is not None and number > _READY_TIMEOUT:
        app.set("reload.ready_timeout", seconds(number), source)
    else:
        app.drop(source, "pm2 went on after it; here a start that is not ready within reload.ready_timeout (60s) fails")


def _env_file(app: Imported, value: Any, source: str) -> None:
    files = [f"{str(file).removesuffix('?')}?" for file in (value if isinstance(value, list) else [value])]
    app.set("env_file", files[0] if len(files) == 1 else files, source)
    app.look(source, "pm2 ignored it; here its variables are in [env]; the ? says that it need not be there")


SETTINGS: dict[str, Apply] = {
    "cwd": lambda app, value, source: app.enter(str(value), source),
    "instances": _instances,
    "env": environment,
    "env_file": _env_file,
    "filter_env": lambda app, value, source: app.done(source),  # nothing of the shell's is taken over
    "port": lambda app, value, source: app.set("env.PORT", str(value), source),
    "max_memory_restart": _memory,
    "min_uptime": _time("restart.min_uptime"),
    "max_restarts": _count,
    "kill_timeout": _time("stop.kill_timeout"),
    "wait_ready": _wait_ready,
    "listen_timeout": _listen_timeout,
    "cron_restart": _cron,
    "watch": _watch,
    "ignore_watch": _ignore,
    "autorestart": _autorestart,
    "autostart": _autostart,
    "stop_exit_codes": _codes,
    "out_file": _log,
    "error_file": _log,
    "log_file": _log,
    "uid": lambda app, value, source: app.set("user", str(value), source),
    "gid": lambda app, value, source: app.set("group", str(value), source),
}

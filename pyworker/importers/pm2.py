"""pm2's ecosystem.config.js/.json/.yaml and dump.pm2 -> apps. Takes the parsed value; jsliteral.py parses the .js."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from pyworker.config.check import clean_name
from pyworker.importers.commandline import understand
from pyworker.importers.jsliteral import Computed, EnvironmentText, computed_in
from pyworker.importers.result import CannotImport, Imported, Note, Result, needs_shell, seconds, separate, unique

_MEMORY = re.compile(r"\s*(\d{1,15}(?:\.\d+)?)\s*([KMG]?)B?\s*\Z", re.IGNORECASE)
_DEFAULTED = re.compile(r"\$\{\w+:-([^}]*)\}")
_TIME = re.compile(r"\s*(\d{1,15}(?:\.\d+)?)\s*(ms|s|m|h|)\s*\Z")
_UNITS = {"ms": 0.001, "": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_INTERPRETERS = {
    **dict.fromkeys((".js", ".mjs", ".cjs", ".ts"), "node"), ".sh": "bash", ".rb": "ruby", ".php": "php", ".pl": "perl"
}  # fmt: skip
_WITH_VARIABLES = ("script", "args", "interpreter", "interpreter_args", "port")  # the last is one itself
_RUN = "let Node read it: pyworker import --run FILE (this executes the file)"
_MOST = 1_000_000  # values; a file has 4 MB at most
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")
_ALIASES = {
    "exec": "script", "cmd": "script", "command": "script", "exec_interpreter": "interpreter", "node_args": "interpreter_args",
    "out": "out_file", "output": "out_file", "out_log": "out_file", "error": "error_file", "err": "error_file",
    "err_file": "error_file", "err_log": "error_file", "log": "log_file", "combine_logs": "merge_logs", "cron": "cron_restart",
    "user": "uid", "pm_exec_path": "script", "pm_cwd": "cwd", "pm_out_log_path": "out_file", "pm_err_log_path": "error_file",
    "pm_pid_path": "pid_file", "log_date": "log_date_format",
}  # fmt: skip
_DROPPED = {
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
    "shutdown_with_message": "a stop is a signal (stop.signal); Node apps get it too", "wait_ready": "", "source_map": "for Node",
    "disable_logs": "logs are always kept, and rotated", "namespace": "name apps alike and use globs: pyworker restart 'shop-*'",
}  # fmt: skip
# settings that pm2 fills in by itself: in a dump they say nothing
_DUMPED = {
    "kill_retry_time": 100, "windowsHide": True, "treekill": True, "automation": True, "pmx": True, "vizion": True,
    "instance_var": "NODE_APP_INSTANCE", "namespace": "default", "autostart": True, "autorestart": True, "watch": False,
    "merge_logs": True, "node_args": [], "filter_env": [],
}  # fmt: skip
# what a dump has beside the settings
_STATE = {
    "pm_id", "pm_uptime", "unique_id", "status", "restart_time", "unstable_restarts", "created_at", "axm_actions", "axm_monitor",
    "axm_options", "axm_dynamic", "exit_code", "prev_restart_delay", "versioning", "node_version", "version", "km_link",
    "vizion_running", "started_inside", "NODE_APP_INSTANCE", "instance_id", "started_at", "PM2_HOME", "command", "filter_env",
    "watch_options", "current_conf", "name_prefix", "_pm2_version", "exec_mode", "env", "error_file_path", "pm_pid_path",
}  # fmt: skip


def read(value: Any, profile: str = "", passed: Sequence[Computed] = ()) -> Result:
    """Return the apps; `profile` picks env_PROFILE as pm2's --env does; `passed`: what the reader of a .js left out."""
    _bounded(value)
    result = Result("pm2", [])
    result.dropped = [Note(f"line {found.line}", _passed(found.text)) for found in passed]
    if isinstance(value, dict):
        apps = value.get("apps", value.get("pm2", [value] if "script" in value or "exec" in value else []))
        if isinstance(apps, dict):
            apps = [apps]
        for key in value:
            if key in ("deploy", "static"):
                reason = "pyworker does not deploy" if key == "deploy" else "files are served by nginx or by the app"
                result.dropped.append(Note(key, reason))
            elif key not in ("apps", "pm2") and "apps" in value:
                result.dropped.append(Note(key, "pm2 does not know it either"))
    else:
        apps = _merged(value) if isinstance(value, list) else []
    computed = next((a for a in (apps if isinstance(apps, list) else [apps]) if isinstance(a, Computed)), None)
    if computed is not None:
        raise CannotImport(str(computed), _RUN, computed.line)
    if not isinstance(apps, list) or not all(isinstance(a, dict) for a in apps) or not apps:
        raise CannotImport("there are no apps in it", "pm2's files have: { apps: [ { script: … } ] }")
    result.apps = [_app(app, profile) for app in apps]
    unique(result.apps)
    separate(result.apps)
    return result


def _bounded(value: Any) -> None:
    """Refuse what is short as text and endless as a value: lists of lists by names (*a, [b, b]), each of them the same one."""
    left = [value]
    for _ in range(_MOST):
        if not left:
            return
        inner = left.pop()
        left += inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
    raise CannotImport(f"it has more than {_MOST} values, with all that its names stand for")


def _passed(text: str) -> str:
    if "process.env" in text:
        return f"{text}: the shell's environment is not taken over; inherit_env names what is wanted of it"
    if "dotenv" in text:
        return f'{text}: env_file = ".env" reads such a file'
    return f"{text}: is not carried over"


def _merged(entries: list[Any]) -> list[dict[str, Any]]:
    """dump.pm2 has an entry for each process: those of one app become one, with their number."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        name = str(entry.get("name", len(found)))
        if name in found:
            found[name]["instances"] = int(found[name].get("instances", 1)) + 1
        else:
            env = entry.get("env")
            shell = {k for k in env if k not in _SETTINGS} if isinstance(env, dict) else set()  # it stands beside, too
            plain = {
                k: v
                for k, v in entry.items()
                if k in ("env", "exec_mode") or (k not in _STATE | shell | {"username"} and _DUMPED.get(k, ...) != v)
            }
            if isinstance(env, dict):  # the whole shell went into it: nobody can tell what was meant
                inside = {k: v for k, v in env.items() if k in ("PORT", "NODE_ENV")}
                plain["env"] = inside
                plain["_dumped_env"] = len(env.keys() - {name}) - len(inside)  # the one called as the app is pm2's own
            for key in ("pm_out_log_path", "pm_err_log_path"):
                if str(plain.get(key)).startswith(f"{entry.get('PM2_HOME')}/logs/"):
                    plain[key] = ""  # where pm2 itself puts them
            plain["instances"] = 1
            found[name] = plain
    return list(found.values())


def _app(raw: dict[str, Any], profile: str) -> Imported:
    settings: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in raw.items()):
        plain = key if key.startswith("env_") else _CAMEL.sub(lambda m: "_" + m[1].lower(), key)
        if value is not None:
            settings[_ALIASES.get(plain, plain)] = value
    review: list[Note] = []
    for key, value in list(settings.items()):
        if isinstance(value, EnvironmentText) and key not in _WITH_VARIABLES:
            plain = _DEFAULTED.sub(r"\1", value)
            settings[key] = plain == "true" if plain in ("true", "false") else plain
            is_known = "${" not in plain
            review.append(Note(key, f"was {value}: " + (f"{plain} by default" if is_known else "write what that is")))
            if not is_known:
                del settings[key]
    script = settings.pop("script", "") or ""
    if isinstance(script, Computed):
        raise CannotImport(str(script), _RUN, script.line)
    script = str(script)
    default = os.path.splitext(os.path.basename(script.split()[0]))[0] if script.strip() else "app"
    name = settings.pop("name", "") or default
    app = Imported(clean_name(default if isinstance(name, Computed) else str(name)))
    if isinstance(name, Computed):
        app.look("name", f"{name}: is {app.name} now")
    app.review += review
    _runs(app, script, settings)
    for key, value in sorted(settings.items(), key=lambda setting: setting[0] == "error_file"):  # out_file counts
        if key == "_dumped_env":
            if value:
                app.look("env", f"{value} variables of the shell were in the dump and are left out: set what is needed")
        elif key in _SETTINGS and key not in ("env", "instances") and (found := computed_in(value)) is not None:
            app.look(key, f"{found}: set it yourself")
        elif key.startswith("env_"):
            if key == f"env_{profile}":
                _environment(app, value, key)
            else:
                _profile(app, value, key)
        elif key in _SETTINGS:
            _SETTINGS[key](app, value, key)
        elif key in _DROPPED:
            if _DROPPED[key]:
                app.drop(key, _DROPPED[key])
            elif value:
                app.set("ready", "notify", key) if "command" in app.table else app.done(key)
                if "command" in app.table:
                    app.look(key, 'process.send("ready") counts, and READY=1 on $NOTIFY_SOCKET')
        else:
            app.drop(key, "pm2 does not know it either: it was ignored")
    if settings.get("autorestart") is False and "cron" in app.table.get("reload", {}) and "target" not in app.table:
        app.table["cron"] = app.table["reload"].pop("cron")
        app.table = {name: value for name, value in app.table.items() if value != {} and name != "restart"}
        app.review = [note for note in app.review if note.key != "cron_restart"]
        app.look("cron_restart", "a job: runs at these times; pm2 ran it when it was started, too")
    if not settings.get("watch") and "ignore_watch" in settings:
        app.table.pop("watch", None)
        app.drop("ignore_watch", "watch is off")
    if app.table.get("workers", 1) != 1 and "command" in app.table and "bind" not in app.table:
        if app.table["command"][0] == "node":
            _cluster(app)
        else:
            app.look(
                "instances",
                "several workers of a command cannot bind one port; set bind, and take the socket (LISTEN_FDS)",
            )
    return app


def _cluster(app: Imported) -> None:
    """Several processes of a Node program: pm2's cluster mode, where they share the port that each listens on."""
    app.table["balance"] = "round-robin"
    for profile in app.profiles.values():
        if (other := _port_of(profile)) is not None:
            profile["bind"] = f":{other}"
    port = _port_of(app.table)
    if port is not None:
        app.table["bind"] = f":{port}"
        app.look(
            "bind",
            f"is PORT, on every address of the machine: the workers share what they listen on, if that is {port}",
        )
    else:
        app.table["bind"] = ":3000"
        app.look("bind", "is made up: write the port that it listens on, which its workers share")


def _port_of(table: dict[str, Any]) -> int | None:
    port = int_of(table.get("env", {}).get("PORT"))
    return port if port is not None and 0 < port < 65536 else None


def int_of(value: Any) -> int | None:
    """Return a whole number that may be written as text, else None."""
    try:
        return int(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):  # the last: JSON may say 1e400
        return None


def _runs(app: Imported, script: str, settings: dict[str, Any]) -> None:
    raw_args = _known(app, settings.pop("args", []), "args")
    args = [str(a) for a in raw_args] if isinstance(raw_args, list) else _split(str(raw_args or ""))
    interpreter = str(_known(app, settings.pop("interpreter", "") or "", "interpreter"))
    before = _known(app, settings.pop("interpreter_args", []) or [], "interpreter_args")
    before = [str(b) for b in before] if isinstance(before, list) else _split(str(before))
    is_cluster = str(settings.pop("exec_mode", "")).startswith("cluster")  # which only Node has
    ending = "" if " " in script else os.path.splitext(script)[1]  # with a space it is a command line: bash runs it
    own = _INTERPRETERS.get(ending, "node" if is_cluster and "node_modules/" in script and " " not in script else "")
    if not script:
        app.look("script", "says nothing to run")
        return
    if script == "serve" and "PM2_SERVE_" in str(settings.get("env")):
        app.look("script", "pm2's own server of files is not here: nginx, or python3 -m http.server")
    base = os.path.basename(interpreter)
    if ending == ".py" and not interpreter:
        understand(app, ["python3", script, *args], "script")
    elif base.startswith("python"):
        understand(app, [interpreter, *before, script, *args], "script")
    elif interpreter and interpreter != "none":
        app.set("command", [interpreter, *before, script, *args], "script")
    elif own and not interpreter:
        app.set("command", [own, *before, script, *args], "script")
    elif " " in script and not args:
        understand(app, script, "script")
    elif needs_shell(script):
        understand(app, " ".join([script, *args]), "script")
    else:
        understand(app, [*_split(script), *args], "script")
    if before and "command" in app.table and app.table["command"][1 : 1 + len(before)] != before:
        app.look("interpreter_args", f"{' '.join(before)}: left out, there is no interpreter before {script} here")
    for key, given in (("args", raw_args), ("interpreter", interpreter)):
        if given:
            app.done(key)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quote that is not closed
        return text.split()


def _known(app: Imported, value: Any, key: str) -> Any:
    """Return the value with CHANGE.ME in the place of what is computed."""
    if isinstance(value, Computed):
        app.look(key, f"{value}: write it in the place of CHANGE.ME")
        return "CHANGE.ME"
    return [_known(app, v, key) for v in value] if isinstance(value, list) else value


def _time_of(value: Any) -> float | None:
    found = _TIME.match(str(value))
    return float(found[1]) * _UNITS[found[2]] if found else None


def _time(key: str) -> Callable[[Imported, Any, str], None]:
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
    app.set("limits.memory", f"{max(1, round(size))}MB", source)


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


def _profile(app: Imported, value: Any, source: str) -> None:
    """env_production is what `--env production` adds: a profile."""
    name = clean_name(source.removeprefix("env_"))
    other = Imported(app.name)
    _environment(other, value, source)
    app.review += other.review
    if other.table:
        app.profiles[name] = other.table
        app.done(source)
        app.look(source, f"is the profile {name}: pyworker start --profile {name}")


def _environment(app: Imported, value: Any, source: str) -> None:
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
    if path in ("", "/dev/null", "NULL") or "/.pm2/logs/" in path:
        app.drop(source, "logs are files of pyworker's own: pyworker logs")
    elif "file" in app.table.get("logs", {}):
        app.look(source, f"one log for both streams: {app.table['logs']['file']}, not also {path}")
    else:
        app.set("logs.file", path, source)


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


def _port(app: Imported, value: Any, source: str) -> None:
    app.set("env.PORT", str(value), source)


_SETTINGS: dict[str, Callable[[Imported, Any, str], None]] = {
    "cwd": lambda app, value, source: app.enter(str(value), source),
    "instances": _instances,
    "env": _environment,
    "filter_env": lambda app, value, source: app.done(source),  # nothing of the shell's is taken over
    "port": _port,
    "max_memory_restart": _memory,
    "min_uptime": _time("restart.min_uptime"),
    "max_restarts": _count,
    "kill_timeout": _time("stop.kill_timeout"),
    "listen_timeout": _time("reload.ready_timeout"),
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

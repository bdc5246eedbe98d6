"""pm2's ecosystem.config.js/.json/.yaml and dump.pm2 -> apps. Takes the parsed value; jsliteral.py parses the .js.

What a single setting becomes is in pm2settings.py.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Sequence
from typing import Any

from pyworker.config.check import clean_name
from pyworker.importers.commandline import RUNNERS, understand
from pyworker.importers.jsvalues import HERE, RUN, Computed, EnvironmentText, computed_in
from pyworker.importers.pm2settings import DROPPED, SETTINGS, as_profile, environment, int_of
from pyworker.importers.result import DOLLAR, CannotImport, Imported, Note, Result, at_home, needs_shell, settle

_PLAIN_DOLLAR = re.compile(r"\$(?!\{)")  # beside what came from process.env, which has braces
_DEFAULTED = re.compile(r"\$\{\w+:-([^}]*)\}")
_INTERPRETERS = {
    **dict.fromkeys((".js", ".mjs", ".cjs", ".ts"), "node"), ".sh": "bash", ".rb": "ruby", ".php": "php", ".pl": "perl"
}  # fmt: skip
_PORT_OPTION = re.compile(r"\s(-p|--port)[ =]?(\d{1,5})(?!\S)")
_PROGRAM = re.compile(r"\w[\w-]*\Z")
_NODE_PROGRAMS = ("npm", "npx", "yarn", "pnpm")
_WITH_VARIABLES = ("script", "args", "interpreter", "interpreter_args", "port")  # the last is one itself
_PATHS = ("cwd", "out_file", "error_file", "log_file", "env_file")
_MOST = 1_000_000  # values; a file has 4 MB at most
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")
_ALIASES = {
    "exec": "script", "cmd": "script", "command": "script", "exec_interpreter": "interpreter", "node_args": "interpreter_args",
    "out": "out_file", "output": "out_file", "out_log": "out_file", "error": "error_file", "err": "error_file",
    "err_file": "error_file", "err_log": "error_file", "log": "log_file", "combine_logs": "merge_logs", "cron": "cron_restart",
    "user": "uid", "pm_exec_path": "script", "pm_cwd": "cwd", "pm_out_log_path": "out_file", "pm_err_log_path": "error_file",
    "pm_pid_path": "pid_file", "log_date": "log_date_format",
}  # fmt: skip
# settings that pm2 fills in by itself: in a dump they say nothing
_DUMPED = {
    "kill_retry_time": 100, "windowsHide": True, "treekill": True, "automation": True, "pmx": True, "vizion": True,
    "instance_var": "NODE_APP_INSTANCE", "namespace": "default", "autostart": True, "autorestart": True, "watch": False,
    "merge_logs": True, "node_args": [], "filter_env": [],
}  # fmt: skip
# what a dump has of an app; all else in it is pm2's own state, or the shell's
_KEPT_IN_DUMP = {
    *SETTINGS, *DROPPED, *_ALIASES, "name", "script", "args", "interpreter", "interpreter_args", "exec_mode",
} - {"filter_env", "watch_options", "command", "username", "pm_pid_path"}  # fmt: skip


def read(value: Any, profile: str = "", passed: Sequence[Computed] = (), folder: str = ".") -> Result:
    """Return the apps; `profile` picks env_PROFILE as pm2's --env does; `passed`: what the reader of a .js left out;
    `folder`: what its __dirname means.
    """
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
    entries = apps if isinstance(apps, list) else [apps]
    computed = [found for found in map(_computed, entries) if found is not None]
    apps = [entry for entry in entries if _computed(entry) is None]
    if computed and not apps:
        raise CannotImport(str(computed[0]), RUN, computed[0].line)
    if not apps or not all(isinstance(a, dict) for a in apps):
        raise CannotImport("there are no apps in it", "pm2's files have: { apps: [ { script: … } ] }")
    result.dropped += [
        Note(f"line {found.line}", f"{found.text}: only running the file tells which app that is; {RUN}")
        for found in computed
    ]
    result.apps = [_app(_placed(app, folder), profile) for app in apps]
    settle(result.apps)
    return result


def _computed(entry: Any) -> Computed | None:
    """Return why nobody can tell what an entry of apps runs."""
    found = entry.get("script") if isinstance(entry, dict) else entry
    return found if isinstance(found, Computed) else None


def _placed(raw: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the settings with the folder of the file in the place of __dirname, as it is seen from the app's own."""
    own = _from_here(raw.get("cwd", "."), folder)
    if isinstance(own, str) and not folder.startswith("/"):
        seen = os.path.abspath(folder) if own.startswith(("/", "~", "$")) else os.path.relpath(folder, own)
    else:
        seen = folder
    return {key: own if key == "cwd" else _from_here(value, seen) for key, value in raw.items()}


def _from_here(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {key: _from_here(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [_from_here(inner, folder) for inner in value]
    if not isinstance(value, str) or HERE not in value:
        return value
    text = value.replace(HERE, folder)
    is_path = value.startswith(HERE) and "$" not in value
    return type(value)(posixpath.normpath(text) if is_path else text)


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
            plain = {
                k: v
                for k, v in entry.items()
                if (k in _KEPT_IN_DUMP or k.startswith("env_")) and (k == "env" or _DUMPED.get(k, ...) != v)
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
    settings, review = _settings_of(raw)
    has_variables = any(map(_is_made_of_a_variable, map(settings.get, _WITH_VARIABLES)))
    script = str(settings.pop("script", "") or "")
    default = os.path.splitext(os.path.basename(script.split()[0]))[0] if script.strip() else "app"
    name = settings.pop("name", "") or default
    app = Imported(clean_name(default if isinstance(name, Computed) else str(name)))
    if isinstance(name, Computed):
        app.look("name", f"{name}: is {app.name} now")
    app.review += review
    _runs(app, script, settings, has_variables=has_variables)
    for key, value in sorted(settings.items(), key=lambda setting: setting[0] == "error_file"):  # out_file counts
        _translate(app, key, value, profile)
    _see_together(app, settings)
    return app


def _settings_of(raw: dict[str, Any]) -> tuple[dict[str, Any], list[Note]]:
    """Return the settings of an app by pm2's own names, and what is to be said of variables that they were taken from."""
    settings: dict[str, Any] = {}
    review: list[Note] = []
    for key, value in ((str(key), value) for key, value in raw.items()):
        plain = key if key.startswith("env_") else _CAMEL.sub(lambda m: "_" + m[1].lower(), key)
        if value is not None:
            settings[_ALIASES.get(plain, plain)] = value
    for key, value in list(settings.items()):
        if isinstance(value, EnvironmentText) and key in _PATHS and "$" not in at_home(value):
            settings[key] = at_home(value)
        elif isinstance(value, EnvironmentText) and key not in _WITH_VARIABLES:
            plain = _DEFAULTED.sub(r"\1", value)
            settings[key] = plain == "true" if plain in ("true", "false") else plain
            is_known = "${" not in plain
            review.append(Note(key, f"was {value}: " + (f"{plain} by default" if is_known else "write what that is")))
            if not is_known:
                del settings[key]
    return settings, review


def _translate(app: Imported, key: str, value: Any, profile: str) -> None:
    if key == "_dumped_env":
        if value:
            app.look("env", f"{value} variables of the shell were in the dump and are left out: set what is needed")
    elif key in SETTINGS and key not in ("env", "instances") and (found := computed_in(value)) is not None:
        app.look(key, f"{found}: set it yourself")
    elif key == f"env_{profile}":
        environment(app, value, key)
    elif key in SETTINGS:
        SETTINGS[key](app, value, key)
    elif key.startswith("env_"):
        as_profile(app, value, key)
    elif key in DROPPED:
        app.drop(key, DROPPED[key])
    else:
        app.drop(key, "pm2 does not know it either: it was ignored")


def _see_together(app: Imported, settings: dict[str, Any]) -> None:
    """What several settings mean only together."""
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


def _cluster(app: Imported) -> None:
    """Several processes of a Node program: pm2's cluster mode, where they share the port that each listens on."""
    app.table["balance"] = "round-robin"
    told = _PORT_OPTION.search(" ".join(app.table["command"]))  # next start -p 3001: whatever PORT says
    for profile in app.profiles.values():
        if told is None and (other := _port_of(profile)) is not None:
            profile["bind"] = f":{other}"
    port = _port_of(app.table) if told is None else _port(told[2])
    if port is not None:
        app.table["bind"] = f":{port}"
        what = "PORT" if told is None else told[1]
        app.look(
            "bind",
            f"is {what}, on every address of the machine: the workers share what they listen on, if that is {port}",
        )
    else:
        app.table["bind"] = ":3000"
        app.look("bind", "is made up: write the port that it listens on, which its workers share")


def _port_of(table: dict[str, Any]) -> int | None:
    return _port(_DEFAULTED.sub(r"\1", str(table.get("env", {}).get("PORT"))))


def _port(value: Any) -> int | None:
    port = int_of(value)
    return port if port is not None and 0 < port < 65536 else None


def _is_made_of_a_variable(value: Any) -> bool:
    return isinstance(value, EnvironmentText) or (isinstance(value, list) and any(map(_is_made_of_a_variable, value)))


def _runs(app: Imported, script: str, settings: dict[str, Any], *, has_variables: bool) -> None:
    raw_args = _known(app, settings.pop("args", []), "args")
    args = [str(a) for a in raw_args] if isinstance(raw_args, list) else _split(str(raw_args or ""))
    interpreter = str(_known(app, settings.pop("interpreter", "") or "", "interpreter"))
    before = _known(app, settings.pop("interpreter_args", []) or [], "interpreter_args")
    before = [str(b) for b in before] if isinstance(before, list) else _split(str(before))
    mode = settings.pop("exec_mode", "")
    if isinstance(mode, Computed):
        app.look("exec_mode", f"{mode}: several workers share their port here, as in its cluster mode")
    is_cluster = str(mode).startswith("cluster")  # which only Node has
    ending = "" if " " in script else os.path.splitext(script)[1]  # with a space it is a command line: bash runs it
    own = _INTERPRETERS.get(ending, "node" if is_cluster and "node_modules/" in script and " " not in script else "")
    by = own if not interpreter else interpreter if interpreter != "none" else ""
    # behind a shell it is not known for Node, and so for what can share its port
    is_plain_node = by == "node" and settings.get("instances", 1) not in (1, "1")

    def execute(words: list[str]) -> None:
        """As pm2 does, which has no shell: a $ is a sign, but for what came from process.env."""
        own = [_PLAIN_DOLLAR.sub(DOLLAR, word) for word in words]
        understand(app, own, "script", variables=has_variables and any("${" in word for word in words))

    if not script:
        app.look("script", "says nothing to run")
        return
    if script == "serve" and "PM2_SERVE_" in str(settings.get("env")):
        app.look("script", "pm2's own server of files is not here: nginx, or python3 -m http.server")
    folder, base = os.path.split(interpreter)
    is_python = base.startswith("python")
    known = _NODE_PROGRAMS if base == "node" else RUNNERS if base in ("bash", "sh") else ()
    is_program = script in known or (is_python and _PROGRAM.match(script))
    if is_program and not before and not os.path.exists(os.path.join(str(settings.get("cwd") or ""), script)):
        # no file, and so a program, which pm2 looks for in PATH; its own first line has its interpreter
        beside = is_python and not folder.startswith("/usr")
        execute([os.path.join(folder, script) if beside else script, *args])
    elif ending == ".py" and not interpreter:
        execute(["python3", script, *args])
    elif is_python:
        execute([interpreter, *before, script, *args])
    elif interpreter and by and before[:1] == ["-c"]:
        understand(app, [interpreter, *before, script][:3], "script")  # what follows are its $0 and $1
    elif by:
        words = [by, *before, script, *args]
        if has_variables and is_plain_node and words != (plain := [_DEFAULTED.sub(r"\1", word) for word in words]):
            app.look("script", f"was {shlex.join(words)}: its variables are at their defaults")
            words = plain
        execute(words)
    elif " " in script and not args:
        understand(app, script, "script")
    elif needs_shell(script):
        understand(app, " ".join([script, *args]), "script")
    else:
        execute([*_split(script), *args])
    if before and not by and "command" in app.table and app.table["command"][1 : 1 + len(before)] != before:
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

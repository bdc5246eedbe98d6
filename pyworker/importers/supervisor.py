"""supervisord.conf -> apps: [program:x] and [fcgi-program:x]; [group:x] and [eventlistener:x] are only named."""

from __future__ import annotations

import configparser
import os
import re
import shlex
from collections.abc import Sequence

from pyworker.config.check import clean_name
from pyworker.config.report import shown
from pyworker.importers.commandline import understand
from pyworker.importers.result import (
    ENVIRONMENT,
    MAX_TEXT,
    Apply,
    CannotImport,
    Imported,
    Note,
    Result,
    at_home,
    settle,
    whole,
)
from pyworker.importers.servers import stop_signal, time
from pyworker.record import record

_MOST = 4 * MAX_TEXT
_ENV = re.compile(r"%\(ENV_([A-Za-z0-9_]+)\)s")
_VARIABLE = re.compile(r"%\((ENV_\w+|process_num|host_node_name)\)")  # what becomes a $NAME
_OTHER = re.compile(r"%\((\w+)\)(0?\d*d|s)")
_SIZE = re.compile(r"(\d{1,18})\s*([KMG]?B?)\Z", re.IGNORECASE)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_POLICIES = {**dict.fromkeys(_TRUE, "always"), **dict.fromkeys(_FALSE, "never"), "unexpected": "on-failure"}
_NO_SETTING = re.compile(r"^[^\s#;\[=:][^=:\n]*$", re.MULTILINE)
_LOGS = ("stdout_logfile", "stderr_logfile")
_NO_FILE = ("", "auto", "none", "off", "syslog")
_FIXED = ("/", "~", "%(here)s", "%(ENV_")
_DROPPED = {
    "priority": "apps start together; depends_on says what must be ready first",
    "process_name": "workers are NAME.1, NAME.2 …",
    "numprocs_start": "workers are counted from 1",
    **dict.fromkeys(("stopasgroup", "killasgroup"), "the whole process group is ended always"),
    **dict.fromkeys(("stdout_capture_maxbytes", "stderr_capture_maxbytes"), "no such mode here"),
    **dict.fromkeys(("stdout_events_enabled", "stderr_events_enabled"), "pyworker events -f follows what happens"),
    **dict.fromkeys(("stdout_syslog", "stderr_syslog"), "logs are files; pyworker logs reads them"),
    "serverurl": "there is no such server here",
    "socket_owner": "set user and group",
    "socket_mode": "a socket has the rights that `umask` leaves it",
    "redirect_stderr": "both go to one log, each line marked",
}


@record
class _Common:
    """What supervisord gives to all programs."""

    environment: str
    directory: str  # where it runs, "" where the file does not say it
    groups: dict[str, str]  # of a program, by its name


def included(text: str, folder: str) -> list[str]:
    """Return the patterns (globs) of files that [include] names; they may have any number of programs."""
    files = _parsed(text, "it").get("include", "files", fallback="").replace("%(here)s", folder)
    return [os.path.join(folder, pattern) for pattern in files.split()]


def read(text: str, folder: str = ".", more: Sequence[tuple[str, str]] = ()) -> Result:
    """Return the programs of a supervisord.conf; `folder` is what %(here)s means, `more`: included files and texts."""
    result = Result("supervisor", [])
    main = _parsed(text, "it")
    files = [(main, folder), *((_parsed(inner, path), os.path.dirname(path) or ".") for path, inner in more)]
    daemon = dict(main["supervisord"]) if "supervisord" in main else {}
    in_foreground = daemon.get("nodaemon", "").lower() in _TRUE  # it changes to no folder then
    directory = "" if in_foreground else daemon.get("directory", "").strip()
    common = _Common(daemon.get("environment", ""), directory, _groups([parser for parser, _ in files]))
    _bounded(files, common)
    for parser, here in files:
        _read(parser, here, common, result, is_included=bool(more))
    if not result.apps:
        raise CannotImport("there is no [program:…] in it", "name the file that has the programs")
    result.dropped.append(ENVIRONMENT)
    settle(result.apps)
    return result


def _parsed(text: str, what: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";", "#"))
    if wrong := _NO_SETTING.search(text):  # the parser collects all such lines, which takes the square of the time
        line = text.count("\n", 0, wrong.start()) + 1
        raise CannotImport(f"{what} is no supervisord.conf: line {line}, {shown(wrong[0])}, is no NAME = VALUE")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise CannotImport(f"{what} is no supervisord.conf: {str(error).splitlines()[0]}") from None
    return parser


def _bounded(files: list[tuple[configparser.RawConfigParser, str]], common: _Common) -> None:
    """Refuse what is short as text and endless with all that it stands for: long names, and what all programs share."""
    size = 0
    for parser, here in files:
        shared = len(common.environment) + sum(map(len, parser.defaults().values()))
        for section in (s for s in parser.sections() if s.startswith(("program:", "fcgi-program:"))):
            name = section.partition(":")[2].strip()
            longest = max(map(len, (name, common.groups.get(name, ""), here, parser[section].get("numprocs", ""))))
            size += shared + longest * sum(text.count("%(") for text in parser[section].values())
            if size > _MOST:
                raise CannotImport(f"what its variables and shared settings stand for is more than {_MOST} characters")


def _groups(parsers: list[configparser.RawConfigParser]) -> dict[str, str]:
    return {
        program.strip(): section.partition(":")[2].strip()
        for parser in parsers
        for section in parser.sections()
        if section.startswith("group:")
        for program in parser[section].get("programs", "").split(",")
    }


def _read(
    parser: configparser.RawConfigParser, folder: str, common: _Common, result: Result, *, is_included: bool
) -> None:
    """Add the programs of one file."""
    for section in parser.sections():
        kind, _, name = section.partition(":")
        if kind in ("program", "fcgi-program") and name:
            result.apps.append(_program(name.strip(), dict(parser[section]), folder, common))
        elif kind == "include":
            if not is_included:
                files = " ".join(parser[section].get("files", "").split())
                result.dropped.append(Note("[include]", f"{files}: no such file is there"))
        elif kind == "group":
            result.dropped.append(
                Note(f"[{section}]", "pyworker takes several names, and globs: pyworker restart 'shop-*'")
            )
        elif kind == "eventlistener":
            result.dropped.append(Note(f"[{section}]", "hooks.on_event runs a command at each event"))
        elif kind == "supervisord":
            settings = dict(parser[section])
            kept = "pyworker's daemon needs no settings"
            if common.directory:
                kept += "; its directory is cwd of every app that has none"
            if "environment" in settings:
                kept += "; its environment is in [env] of every app"
            if user := settings.get("user"):
                kept += f"; for what ran as {user}: user"
            result.dropped.append(Note(f"[{section}]", kept))
        else:
            result.dropped.append(Note(f"[{section}]", "pyworker's daemon needs no settings"))


def _program(name: str, options: dict[str, str], folder: str, common: _Common) -> Imported:
    app = Imported(clean_name(name))
    directory = _seen_from(common.directory, options.get("directory", "").strip())
    # a relative path is another one there
    is_elsewhere = directory != "" and (directory != "%(here)s" or folder != ".")
    if directory:
        options["directory"] = directory
    known = {
        "here": os.path.abspath(folder) if is_elsewhere else folder,
        "program_name": name, "group_name": common.groups.get(name, name), "host_node_name": "${HOSTNAME}",
        "numprocs": options.get("numprocs", "1"),
    }  # fmt: skip
    first = whole(options.get("numprocs_start", "0")) or 0

    def plain(text: str) -> str:
        return _filled_in(app, text, known, first)

    command = plain(options.get("command", ""))
    if not command:
        app.look("command", "says nothing to run")
    # first: the command may look variables up, or set them anew
    _environment(app, plain(common.environment), "[supervisord] environment")
    _environment(app, plain(options.get("environment", "").strip()), "environment")
    _command(app, command, variables=_VARIABLE.search(options.get("command", "")) is not None)
    for key, raw in sorted(options.items(), key=lambda option: option[0].startswith("stderr")):  # stdout's count
        if key in ("command", "environment"):
            continue
        if key in _DROPPED:
            app.drop(key, _DROPPED[key])
            continue
        log = options.get(key.removesuffix("_maxbytes"), "/").strip() if key.endswith("_maxbytes") else "/"
        if raw.strip() == "0" and _is_no_file(log):
            app.done(key)  # of /dev/stdout it has to be
            continue
        if key in _LOGS and "%(process_num)" in raw:
            app.drop(key, "all workers write to one log, each line marked")
            continue
        if key in _LOGS and raw.strip().lower() not in _NO_FILE:
            raw = _seen_from(common.directory, raw.strip())
            if is_elsewhere and not raw.startswith(_FIXED):
                app.look(key, "supervisor takes a relative path from where supervisord runs; here it is from cwd")
        value = plain(raw.strip())
        value = at_home(value) if key in ("directory", *_LOGS) else value
        if key in _PROGRAM and ("${" in value or "$PYWORKER_WORKER" in value):
            app.look(key, f"was {raw.strip()}: write what that is")
        elif key in _PROGRAM:
            _PROGRAM[key](app, value, key)
        else:
            app.drop(key, "not known to be a setting of supervisor's")
    _restarts(app, options)
    return app


def _filled_in(app: Imported, text: str, known: dict[str, str], first: int) -> str:
    """Return a text with what supervisord puts into it; its processes are counted from `first` on."""

    def one(match: re.Match[str]) -> str:
        if match[1] != "process_num":
            return known.get(match[1], match[0])
        number = "$PYWORKER_WORKER" if first == 1 else f"$((PYWORKER_WORKER {first - 1:+}))"
        number = number if match[2] in ("d", "s") else f"$(printf %{match[2]} {number})"
        same = f": for the same numbers write {number} in a command that a shell runs"
        was = f"was {match[0]}, from {first} on; a worker knows its number as $PYWORKER_WORKER, 1, 2, 3 …"
        app.look("process_num", was + ("" if number == "$PYWORKER_WORKER" else same))
        return "$PYWORKER_WORKER"

    return _OTHER.sub(one, _ENV.sub(r"${\1}", text)).replace("%%", "%")


def _restarts(app: Imported, options: dict[str, str]) -> None:
    """What supervisor does where the file does not say it, or says it in several settings."""
    if "autorestart" not in options:  # its default: unexpected
        app.table.setdefault("restart", {})["policy"] = "on-failure"
    restart = app.table.get("restart", {})
    codes = options.get("exitcodes", "0").replace(" ", "")
    if codes != "0" and restart.get("policy") == "on-failure":
        app.look("exitcodes", f"{codes}: only exit code 0 is a clean end here, and 78 asks not to be restarted")
    if restart.get("max_restarts", 0) and "window" not in restart:
        app.look("startretries", "counted within restart.window (60s) here, and probed again later")


def _seen_from(folder: str, path: str) -> str:
    if path.startswith(_FIXED) or not folder:
        return path
    return os.path.join(folder, path) if path else folder


def _command(app: Imported, command: str, *, variables: bool) -> None:
    """supervisord splits the line and executes it: no shell, and a $ or | is a character like any other."""
    try:
        words = shlex.split(command)
    except ValueError:
        understand(app, command, "command")  # which says so
    else:
        understand(app, words, "command", variables=variables)


def _environment(app: Imported, value: str, source: str) -> None:
    lexer = shlex.shlex(value, posix=True)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = ",", True, ""
    try:
        pairs = list(lexer)
    except ValueError as error:
        app.look(source, f"could not be split ({error}): write [env] yourself")
        return
    for pair in pairs:
        name, _, text = pair.strip().partition("=")
        if "$PYWORKER_WORKER" in text:
            app.look(source, f"{name.strip()} was another for each process: all workers of an app have the same [env]")
        elif name:
            app.variable(name.strip(), text.strip(), source)


def _number(key: str, zero: str = "") -> Apply:
    """`zero`: what is to be said of 0, where it does not mean what it means here."""

    def apply(app: Imported, value: str, source: str) -> None:
        number = whole(value)
        if number is None:
            app.look(source, f"{value!r} is not a number: set {key}")
        elif number == 0 and zero:
            app.look(source, zero)
        else:
            app.set(key, number, source)

    return apply


def _of_stderr(apply: Apply, key: str) -> Apply:
    """Both streams go to one log, and what is said of stdout's counts."""

    def unless(app: Imported, value: str, source: str) -> None:
        if key in app.table.get("logs", {}):
            app.drop(source, "one log for both streams")
        else:
            apply(app, value, source)

    return unless


def _numprocs(app: Imported, value: str, source: str) -> None:
    if number := whole(value):
        app.copies(number, source)
    else:
        app.look(source, f"{value!r} is not a number: set workers")


def _autorestart(app: Imported, value: str, source: str) -> None:
    policy = _POLICIES.get(value.lower())
    if policy is None:
        app.look(source, f"{value!r}: set restart.policy")
    else:
        app.set("restart.policy", policy, source)


def _autostart(app: Imported, value: str, source: str) -> None:
    if value.lower() in _TRUE:
        app.done(source)
    else:
        app.look(source, "pyworker start FILE starts all of it; leave this one out with --only, or stop it once")


def _is_no_file(value: str) -> bool:
    return value.lower() in _NO_FILE or value.startswith(("/dev/", "/proc/"))


def _log(app: Imported, value: str, source: str) -> None:
    app.log("" if _is_no_file(value) else value, source)


def _size(app: Imported, value: str, source: str) -> None:
    found = _SIZE.match(value)
    if found is None or int(found[1]) == 0:
        app.look(source, "logs are always rotated here: logs.max_size")
        return
    unit = found[2].upper().removesuffix("B")
    text = f"{found[1]}{unit}B"
    app.set("logs.max_size", text if unit else f"{max(4, int(found[1]) // 1024)}KB", source)


def _user(app: Imported, value: str, source: str) -> None:
    user, _, group = value.partition(":")
    app.set("user", user, source)
    if group:
        app.set("group", group, source)


def _socket(app: Imported, value: str, source: str) -> None:
    address = value.removeprefix("tcp://").replace("unix://", "unix:")
    app.set("bind", address, source)
    if "command" in app.table:
        app.look(source, "the command gets the socket as LISTEN_FDS, not as its stdin")


_PROGRAM: dict[str, Apply] = {
    "directory": Imported.enter,
    "user": _user,
    "numprocs": _numprocs,
    "autostart": _autostart,
    "autorestart": _autorestart,
    "startsecs": time("restart.min_uptime"),
    "startretries": _number(
        "restart.max_restarts", zero='no try after a start that failed: the nearest here is restart.policy = "never"'
    ),
    "exitcodes": lambda app, value, source: app.done(source),  # they count where autorestart = unexpected
    "stopsignal": stop_signal,
    "stopwaitsecs": time("stop.kill_timeout"),
    "umask": lambda app, value, source: app.set("umask", value, source),
    "stdout_logfile": _log,
    "stderr_logfile": _log,
    "stdout_logfile_maxbytes": _size,
    "stderr_logfile_maxbytes": _of_stderr(_size, "max_size"),
    "stdout_logfile_backups": _number("logs.max_files"),
    "stderr_logfile_backups": _of_stderr(_number("logs.max_files"), "max_files"),
    "socket": _socket,
    "socket_backlog": _number("backlog"),
}

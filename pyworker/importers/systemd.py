"""A unit of systemd (NAME.service) -> one app: its ExecStart=, with the settings of [Service] that mean something here."""

from __future__ import annotations

import re
import shlex

from pyworker.config.check import clean_name
from pyworker.importers.commandline import FROM_THE_SHELL, for_shell, hook, is_for_shell, understand
from pyworker.importers.result import DOLLAR, Apply, CannotImport, Imported, Note, Result, seconds, whole
from pyworker.importers.servers import stop_signal

_SETTING = re.compile(r"([A-Za-z0-9]+)\s*=\s*(.*)", re.DOTALL)
_CONTINUED = re.compile(r"\\\n([#;].*\n)*")
_SPAN = re.compile(
    r"(\d{1,9})\s*(ms(?:ec)?|s(?:ec|econds?)?|m(?:in|inutes?)?|h(?:r|ours?)?|d(?:ays?)?|w(?:eeks?)?)?(?:\s+|(?=\d)|\Z)"
)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+)\b)")
_SOCKET = re.compile(r"[\w@.-]+\.socket\b")
_POLICIES = {
    "no": "never", "always": "always", "on-failure": "on-failure",
    **dict.fromkeys(("on-abnormal", "on-abort", "on-watchdog"), "on-failure"),
}  # fmt: skip
_DROPPED = {
    "ExecReload": "pyworker reload",
    "ExecStop": "pyworker stop; stop.signal is what it sends",
    **dict.fromkeys(("ExecStartPost", "ExecStopPost"), "hooks.on_event runs a command at each event"),
    "KillMode": "a worker gets the signal, and what is left of its process group is killed",
    "PIDFile": "pyworker ps shows the pids",
    "RestartSec": "restarts are spaced by themselves, longer with each failure",
    "SyslogIdentifier": "pyworker logs; logs.file names another file",
}
_READ = ("ExecStart", "Environment", "WorkingDirectory")


def read(text: str, name: str) -> Result:
    """Return the app of a unit; `name`: what its file is called, without the ending."""
    settings, result = _settings(text), Result("systemd", [])
    app = Imported(clean_name(name.partition("@")[0]))
    result.apps.append(app)
    commands = [value for key, value in settings if key == "ExecStart"]
    if not commands:
        raise CannotImport("there is no ExecStart= in it", "name the .service that has it")
    variables: dict[str, str] = {}
    for pairs in (value for key, value in settings if key == "Environment"):
        variables |= dict(word.partition("=")[::2] for word in _words(app, pairs, "Environment") if "=" in word)
    for variable, value in variables.items():
        app.variable(variable, value, "Environment")
    _start(app, commands[-1], variables)
    folders = [value.removeprefix("-") for key, value in settings if key == "WorkingDirectory"]
    app.enter(folders[-1] if folders else "/", "WorkingDirectory")
    if folders[-1:] == ["~"]:
        app.look("WorkingDirectory", "was the home of User=: write which folder that is")
    for command in commands[:-1]:
        app.look("ExecStart", f"{command} runs before it: hooks.pre_start, or an app of its own")
    if any(key == "EnvironmentFile" for key, _ in settings):  # what $NAMEs are in the command is in it
        app.table.pop("inherit_env", None)
        app.review = [note for note in app.review if note.reason != FROM_THE_SHELL]
    for key, value in settings:
        if key in _SERVICE:
            _SERVICE[key](app, value, key)
        elif key in _DROPPED:
            app.drop(key, _DROPPED[key])
    others = {key: None for key, _ in settings if key not in (*_SERVICE, *_DROPPED, *_READ)}
    if others:
        app.drop(
            ", ".join(others), "no app has these here; the unit that pyworker startup makes can have them, for all"
        )
    if "target" not in app.table and all(key != "Restart" for key, _ in settings):
        app.set("restart.policy", "never", "Restart")
    if "target" in app.table and "bind" not in app.table and (socket := _SOCKET.search(text)) is not None:
        app.look("bind", f"write what ListenStream= of {socket[0]} says")
    if "env" in app.table and "env_file" in app.table:
        app.look("EnvironmentFile", "what Environment= says of the same variable wins here, in systemd the file")
    if any(re.search(r"%[A-Za-z]", value.replace("%%", "")) for _, value in settings):
        app.look("%", "systemd puts something in the place of %i, %h and their like: write what that is")
    result.dropped.append(
        Note("[Unit], [Install]", "pyworker startup starts all at boot; depends_on waits for other apps")
    )
    return result


def _settings(text: str) -> list[tuple[str, str]]:
    """Return what [Service] says, in its order. An empty value takes back what was said before."""
    found: list[tuple[str, str]] = []
    section = ""
    for line in _CONTINUED.sub(" ", text).splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        elif section == "[Service]" and (setting := _SETTING.match(line)) is not None:
            if not setting[2]:
                found = [pair for pair in found if pair[0] != setting[1]]
            else:
                found.append((setting[1], setting[2]))
    return found


def _words(app: Imported, text: str, source: str) -> list[str]:
    try:
        return [word.replace("%%", "%") for word in shlex.split(text)]
    except ValueError as error:
        app.look(source, f"could not be split ({error}): write it yourself")
        return []


def _start(app: Imported, command: str, variables: dict[str, str]) -> None:
    """systemd splits the line and executes it: no shell, but $NAME and ${NAME} are filled in."""
    prefixes, words, has_variables = _split(app, command, "ExecStart", variables)
    if "+" in prefixes or "!" in prefixes:
        app.look("ExecStart", "ran with root's rights in spite of User=: leave user out")
    understand(app, words, "ExecStart", variables=has_variables)


def _split(app: Imported, command: str, source: str, variables: dict[str, str]) -> tuple[str, list[str], bool]:
    """Return the signs before a command, its words with the variables that are known, and whether others are left.

    Beside these a $ that is none is a DOLLAR, unless the words are a shell's, whose own it is.
    """
    line = command.lstrip("@-:+!|")
    prefixes = command[: len(command) - len(line)]
    words = _words(app, line, source)
    if "@" in prefixes:  # the second word is what ps shows
        del words[1:2]

    if ":" in prefixes:
        return prefixes, words, False
    has_unknown = False

    def meaning(found: re.Match[str]) -> str:
        nonlocal has_unknown
        if found[0] == "$$":
            return DOLLAR
        value = variables.get(found[1] or found[2])
        has_unknown |= value is None
        return found[0] if value is None else value.replace("$", DOLLAR)

    words = [_VARIABLE.sub(meaning, word) for word in words]
    if not has_unknown or is_for_shell(words):
        words = [word.replace(DOLLAR, "$") for word in words]
    return prefixes, words, has_unknown


def _time(key: str) -> Apply:
    def apply(app: Imported, value: str, source: str) -> None:
        parts = _SPAN.findall(value)
        total = sum(int(number) * _UNITS["ms" if unit[:2] == "ms" else (unit or "s")[0]] for number, unit in parts)
        if total and not _SPAN.sub("", value):
            app.set(key, seconds(total), source)
        else:
            app.look(source, f"{value} is no time that ends: set {key}")

    return apply


def _restart(app: Imported, value: str, source: str) -> None:
    if "target" in app.table:  # a server's master replaces its workers, whatever systemd does for itself
        app.done(source)
    elif value in _POLICIES:
        app.set("restart.policy", _POLICIES[value], source)
    else:
        app.look(source, f"{value}: set restart.policy")


def _type(app: Imported, value: str, source: str) -> None:
    if value == "forking":
        app.look(source, "forking: the program must stay in the foreground here, find the option of it that says so")
    elif value == "oneshot":
        app.look(source, "oneshot: a job that ends; cron says when it runs, hooks.pre_start runs it before another app")
    elif value.startswith("notify") and "command" in app.table:
        app.set("ready", "notify", source)
    elif value.startswith("notify") and "script" in app.table:
        how = 'that of command = ["python3", …] with ready = "notify" is'
        app.look(source, f"{value}: READY=1 of a script is not waited for, {how}")
    else:
        app.done(source)


def _file(app: Imported, value: str, source: str) -> None:
    path = value.removeprefix("-")
    app.set("env_file", [*app.table.get("env_file", ()), path + "?" * (path != value)], source)


def _inherited(app: Imported, value: str, source: str) -> None:
    app.set("inherit_env", [*app.table.get("inherit_env", ()), *value.split()], source)


def _output(app: Imported, value: str, source: str) -> None:
    kind, _, path = value.partition(":")
    app.log(path if kind in ("append", "file", "truncate") else "", source)


def _both_times(app: Imported, value: str, source: str) -> None:
    for key in ("reload.ready_timeout", "stop.kill_timeout"):
        _time(key)(app, value, source)


def _max_age(app: Imported, value: str, source: str) -> None:
    if value == "infinity":
        app.done(source)
    else:
        _time("limits.max_age")(app, value, source)


def _memory(app: Imported, value: str, source: str) -> None:
    if value == "infinity":
        app.done(source)
    else:
        app.look(source, f"{value} for all of it: limits.memory is a worker's share, over which it is replaced")


def _nofile(app: Imported, value: str, source: str) -> None:
    number = whole(value.rpartition(":")[2])
    if number is None:
        app.look(source, f"{value}: set limits.nofile")
    else:
        app.set("limits.nofile", max(16, number), source)


def _before(app: Imported, value: str, source: str) -> None:
    prefixes, words, has_variables = _split(app, value, source, {})  # of a hook they are in its environment
    if not words:
        return
    is_plain = not has_variables or is_for_shell(words)  # a $ in it is not for a shell around it
    line = shlex.join(words) if is_plain else for_shell(words)
    if "hooks" in app.table:
        app.look(source, f"{line} runs then, too: write all of it into hooks.pre_start")
        return
    if "-" in prefixes:  # how it ends is nothing to a start
        command: str | list[str] = ["sh", "-c", f"{line} || true"]
    elif not is_plain:
        command = ["sh", "-c", line]
    else:
        command = line if hook(line) == line else words
    app.set("hooks.pre_start", command, source)
    app.look(source, "runs before a start and a reload (hooks.pre_start), and has a minute (hooks.timeout)")
    if "+" in prefixes or "!" in prefixes:
        app.look(source, f"{line} ran with root's rights; a hook has those of user")


_SERVICE: dict[str, Apply] = {
    "Type": _type,
    "User": lambda app, value, source: app.set("user", value, source),
    "Group": lambda app, value, source: app.set("group", value, source),
    "UMask": lambda app, value, source: app.set("umask", value, source),
    "EnvironmentFile": _file,
    "ExecStartPre": _before,
    "Restart": _restart,
    "TimeoutStartSec": _time("reload.ready_timeout"),
    "TimeoutStopSec": _time("stop.kill_timeout"),
    "TimeoutSec": _both_times,
    "RuntimeMaxSec": _max_age,
    "PassEnvironment": _inherited,
    **dict.fromkeys(("StandardOutput", "StandardError"), _output),
    **dict.fromkeys(("MemoryMax", "MemoryHigh", "MemoryLimit"), _memory),
    "KillSignal": stop_signal,
    "LimitNOFILE": _nofile,
    "RuntimeDirectory": lambda app, value, source: app.look(
        source, f"/run/{value} must be there: systemd-tmpfiles makes it"
    ),
}

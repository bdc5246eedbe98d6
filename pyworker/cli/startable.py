"""CLI: what `pyworker start` or `run` was given: a config file, an app without one, or names the daemon knows.

Reads and validates config files; sends nothing, starts nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

from pyworker.cli.files import no_file
from pyworker.cli.here import absolute, here
from pyworker.config.activated import activated
from pyworker.errors import PyworkerError
from pyworker.protocol.events import workers_in_words

if TYPE_CHECKING:
    from pyworker.config.schema import AppConfig

_TARGET = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_][\w.]*(?:\(.*\))?\Z")
_TARGET_IN_FOLDER = re.compile(r"(?P<folder>.*/)(?P<module>\w+)(?:\.py)?:(?P<attribute>[A-Za-z_].*)\Z")
_NAMES = re.compile(r"[a-z0-9*?\[][a-z0-9_.*?\[\]-]*\Z")
_FILE = re.compile(r"\.[A-Za-z]\w*\Z")  # no name of an app ends so
_DOTTED = re.compile(r"\.[a-z_]")  # a dot in a name is followed by the number of a worker
_RUN_BY = {  # what is no program itself, and by what it is run
    ".js": "node", ".mjs": "node", ".cjs": "node", ".jar": "java -jar", ".java": "java", ".pyz": "python3",
    ".rb": "ruby", ".php": "php", ".pl": "perl",
}  # fmt: skip
_SETTINGS = (".json", ".yaml", ".yml", ".ini", ".conf", ".cfg")
NO_TOML = "a config file is TOML, and its name ends in .toml: pyworker init writes one"
_LOOKED_AT = 64 * 1024  # characters of a file that may be another process manager's


class Words(NamedTuple):
    """What was typed. `after`: the words behind `--`, None without one."""

    what: tuple[str, ...]
    after: tuple[str, ...] | None
    only: tuple[str, ...]
    name: str | None
    overrides: dict[str, Any]
    profile: str = ""
    verb: str = "start"


class Startable(NamedTuple):
    """The part of a Start request that says what, and the checked configs (none for names)."""

    request: dict[str, Any]
    apps: tuple[AppConfig, ...]

    def kind_and_balance(self, name: str) -> tuple[str, str] | None:
        """Return what an app runs, as typed, and how its connections are spread."""
        for app in self.apps:
            if app.name == name:
                return app.target or app.script or shlex.join(app.command), app.balance
        return None

    def describe(self, name: str) -> str:
        """Return an app in one line, for --dry-run."""
        app = next(app for app in self.apps if app.name == name)
        what, balance = self.kind_and_balance(name) or ("", "")
        where = f", {balance} on {', '.join(app.bind)}" if app.bind else ""
        return f"{what}, {workers_in_words(app.workers)}{where}"


def find_startable(words: Words) -> Startable:
    """Return what to start. Raises PyworkerError for a wrong command line, and what config.load raises for a wrong file."""
    what, after = words.what, words.after
    first = what[0] if what else ""
    if after is not None and not what:
        if not after:
            raise _usage("there is no command after --", f"pyworker {words.verb} -- sleep 60")
        return _inline({"command": list(after)}, words)
    if first.endswith(".toml") or os.path.isdir(first):
        return _file(_config_of(first, words.verb), words._replace(only=(*words.only, *what[1:])))
    if first.endswith(".py") or is_target(first):
        if len(what) > 1:
            message = f"{words.verb} takes one app at a time, and {what[1]!r} is one more"
            typed = shlex.join((first, "--", *what[1:]))
            raise _usage(message, f"arguments of a program stand behind --: pyworker {words.verb} {typed}")
        if first.endswith(".py"):
            if not os.path.isfile(first):
                raise no_file(first, _a_command(first, words.verb))
            if hint := hint_to_import(first):
                raise _usage(f"{first!r} is no app", hint)
            return _inline({"script": absolute(first), "args": list(after or ())}, words)
        if after is not None:
            hint = f"an app gets no arguments: pyworker {words.verb} {shlex.quote(first)}"
            raise _usage("words after -- go with a script or stand alone as a command", hint)
        if first.endswith("()"):
            message = f"{first} is a call, and an app is named"
            raise _usage(message, f"a function that returns it: {first[:-2]} --factory")
        return _inline({"target": first}, words)
    if not what:
        return _file(_config_here(words.verb), words)
    return _names(words)


def _inline(table: dict[str, Any], words: Words) -> Startable:
    from pyworker.config import load
    from pyworker.config.environment import variable_of
    from pyworker.config.interpolate import literal_env
    from pyworker.config.resolve import DEFAULT_VENV

    if words.only:
        raise _usage("--only goes with a config file that has several apps", "leave it out")
    # here the shell is the config: its whole environment goes along, and the Python that it has activated
    name = {"name": words.name} if words.name else {}
    table = {**name, **table, "inherit_env": ["*"], "cwd": here(), **words.overrides}
    if not variable_of(os.path.join(table["cwd"], DEFAULT_VENV)) and (prefix := activated()):
        table.setdefault("python", prefix)
    app = load.load_inline(literal_env(table), table["cwd"], os.environ)
    return Startable({"inline": {**table, "name": app.name}}, (app,))


def _file(path: str, words: Words) -> Startable:
    from pyworker.config import load
    from pyworker.config.interpolate import literal_env

    if words.name:
        raise _usage("--name is for an app without a file", "the name of an app stands in its file: [apps.NAME]")
    if words.after is not None:
        raise _usage("words after -- do not go with a config file", _takes(words.verb))
    apps = load.load(absolute(path), only=words.only, environ=os.environ, profile=words.profile).apps
    if words.overrides:
        if len(apps) > 1:
            names = ", ".join(app.name for app in apps)
            raise _usage(f"{path} has {len(apps)} apps ({names}), and options are for one", "name it with --only NAME")
        apps = (load.apply_overrides(apps[0], literal_env(words.overrides)),)
    request = {"file": absolute(path), "only": list(words.only), "overrides": words.overrides, "profile": words.profile}
    return Startable(request, tuple(apps))


def _names(words: Words) -> Startable:
    what, after = words.what, words.after
    for word in what:
        if (_FILE.search(word) and os.path.isfile(word)) or not _NAMES.match(word):
            if at := _TARGET_IN_FOLDER.match(word):
                hint = f"pyworker {words.verb} --cwd {shlex.join((at['folder'], at['module'] + ':' + at['attribute']))}"
                raise _usage(f"{word!r} is no target: that is a module and what is in it", hint)
            if word != what[0] and (hint := hint_to_program(what, words.verb)):
                raise _usage(f"{what[0]!r} is a program", hint)
            if is_target(word):
                message = f"{words.verb} takes one app at a time, and {word!r} is one more"
                raise _usage(message, f"pyworker {words.verb} {shlex.quote(word)}")
            if os.sep in word or os.path.exists(word):
                program = f"any program: pyworker {words.verb} -- {_typed(word)}"
                hint = hint_to_import(word) or (NO_TOML if word.endswith(_SETTINGS) else program)
                raise _usage(f"{word!r} is no config file and no Python script", hint)
            hint = _a_command(word, words.verb) or _takes(words.verb)
            raise _usage(f"{word!r} is nothing that can be started", hint)
        if _DOTTED.search(word):
            hint = f"an app in a module stands behind a colon, like shop.wsgi:application\n{_takes(words.verb)}"
            raise _usage(f"{word!r} is no file that is here, and no name of an app", hint)
    if after is not None:
        hint = f"a program stands behind it, too: pyworker {words.verb} -- {shlex.join((*what, *after))}"
        raise _usage(f"words after -- do not go with {what[0]!r}, the name of an app", hint)
    if words.name or words.only or words.overrides:
        hint = hint_to_app(what[0], words.verb) or hint_to_program(what, words.verb) or _takes(words.verb)
        raise _usage("options do not go with the names of apps that the daemon knows", hint)
    return Startable({"names": list(what)}, ())


def is_target(word: str) -> bool:
    """Return whether this is written as an app in a module is."""
    return _TARGET.match(word) is not None


def hint_to_file(word: str, verb: str = "start") -> str:
    """Return how an app is started that the config file of this folder has; "" for another word."""
    from pyworker.config import load

    try:
        path = load.find(here(), os.environ)
        names = [app.name for app in load.load(path, environ=os.environ).apps] if path else []
    except PyworkerError:  # it is not about that file
        return ""
    return f"{os.path.basename(path)} has it: pyworker {verb} --only {word}" if path and word in names else ""


def hint_to_app(word: str, verb: str = "start") -> str:
    """Return what may have been meant by the name of an app that the file or a module of this folder has; else ""."""
    if (hint := hint_to_file(word, verb)) or not os.path.isfile(f"{word}.py"):
        return hint
    return f"{word}.py is here: pyworker {verb} {word}:app (or whatever the app in it is called), or {word}.py if that serves by itself"


def hint_to_program(words: tuple[str, ...], verb: str = "start") -> str:
    """Return how a program is started, when that is what these words begin with; else ""."""
    import shutil  # and with it bz2, lzma and zlib: a 20th of the imports of a reload

    if not shutil.which(words[0]):
        return ""
    hint = f"a command stands behind --: pyworker {verb} -- {shlex.join(words)}"
    app = next(filter(is_target, words), "")
    return f"{hint}\nan app needs no server: pyworker {verb} {shlex.quote(app)}" if app else hint


def hint_to_import(path: str) -> str:
    """Return the next step for a file of another process manager, "" for any other file."""
    from pyworker.importers.kinds import surely

    if not os.path.isfile(path):
        return ""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            kind = surely(path, file.read(_LOOKED_AT))
    except OSError:
        return ""
    what = "a Procfile" if kind == "procfile" else f"a file of {kind}"
    return kind and f"it is {what}: pyworker import {shlex.quote(path)} makes an app.toml of it"


def _typed(program: str) -> str:
    """Return a program of this folder as a shell takes it."""
    by = _RUN_BY.get(os.path.splitext(program)[1])
    if by is not None and (by == "node" or not os.access(program, os.X_OK)):
        return f"{by} {program}"
    return program if os.sep in program else f"./{program}"


def _config_of(path: str, verb: str) -> str:
    if os.path.isdir(path):
        from pyworker.config import load

        found = load.find(path, {})
        if found is None:
            main = os.path.join(path, "__main__.py")
            what = shlex.quote(main) if os.path.isfile(main) else "MODULE:APP"
            raise _usage(f"there is no app.toml in {path}", f"pyworker {verb} {what} needs no file")
        return found
    if not os.path.exists(path):
        raise no_file(path)
    return path


def _config_here(verb: str) -> str:
    from pyworker.config import load

    found = load.find(here(), os.environ)
    if found is None:
        message = f"nothing to start: there is no app.toml in this folder ({os.getcwd()})"
        raise _usage(message, f"{load.elsewhere(os.getcwd())}{_takes(verb)}\npyworker init writes an app.toml")
    return found


def split_environment(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return "K=V" words as a dict; a bare K takes the value that this shell has."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals and key in os.environ:
            value = os.environ[key]
        elif not equals or not key:
            raise _usage(f"-e {pair}: no such variable here", "-e NAME=VALUE, or -e NAME for the value of this shell")
        found[key] = value
    return found


def _takes(verb: str) -> str:
    names = "the NAME of an app, " if verb == "start" else ""
    return f"{verb} takes FILE.toml, MODULE:APP, SCRIPT.py, {names}or -- COMMAND"


def _a_command(words: str, verb: str) -> str:
    return f"a command: pyworker {verb} -- {words}" if " " in words else ""


def _usage(message: str, hint: str) -> PyworkerError:
    return PyworkerError(message, hint=hint, code="usage")

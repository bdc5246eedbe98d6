"""CLI: answers a shell's completion. Imports no command of its own, and click not at all unless options are asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyworker.cli.names import ALIASES, COMMANDS

# what a command's words are
_NAMES = {
    "stop", "restart", "reload", "delete", "ps", "describe", "logs", "events", "wait", "diff", "top", "stack", "send",
    "metrics",
}  # fmt: skip
_FILES = {"start", "run", "check", "import", "init"}
_WORDS = {
    "completion": ("bash", "zsh", "fish"),
    "daemon": ("status", "start", "stop", "run", "upgrade"),
    "export": ("systemd", "compose", "kubernetes", "nomad", "docker", "procfile"),
    "help": ("config", "reload", "states", "signals", "environment", "exit-codes", "files"),
}
_SHARED_VALUES = {"--home", "--timeout", "--color"}
_CHOICES = {"--for": ("ready", "stopped", "gen="), "--level": ("debug", "info", "warning", "error", "critical")}
_CONFIG_CHOICES = {"--balance", "--interface", "--restart"}
_FILE_VALUES = {"FILE", "FILE.toml", "DIR", "PATH"}
_ANSWER = 0.25  # seconds: a shell that waits longer than this feels broken


def main(words: list[str]) -> int:
    """Print a candidate a line, "word<TAB>what it is"; the last of `words` is what is being typed."""
    typed = words[-1] if words else ""
    if "=" in words[-2:]:  # bash makes three words of `api=4`, and nothing is offered behind the =
        return 0
    before, home = _split(words[:-1])
    option = words[-2] if len(words) > 1 and words[-2].startswith("-") else ""
    found = _values(before, option, typed) if option else None
    if found is None:
        found = candidates(before, typed, home)
    sys.stdout.write("".join(f"{word}\t{about}\n" if about else f"{word}\n" for word, about in found))
    return 0


def _split(words: list[str]) -> tuple[list[str], str]:
    """Return the words that are no options of every command and no values of these, and the home if it is among them."""
    found: list[str] = []
    home = ""
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in _SHARED_VALUES:
            value = value if equals else next(rest, "")
            value = next(rest, "") if value == "=" else value  # bash makes three words of --home=DIR
            home = value if name == "--home" else home
        elif not word.startswith("-"):
            found.append(word)
    return found, home


def candidates(before: list[str], typed: str, home: str = "") -> list[tuple[str, str]]:
    """Return what may stand here. `before`: the words in front of it that are no options."""
    if not before:
        if typed.startswith("-"):
            return _options([], typed)
        return [(name, short) for name, (_, short) in COMMANDS.items() if name.startswith(typed)]
    command = ALIASES.get(before[0], before[0])
    if typed.startswith("-"):
        return _options([command, *before[1:2]], typed)
    if command in _WORDS and len(before) == 1:
        words = [(w, "") for w in _WORDS[command]]
        words += [(c, s) for c, (_, s) in COMMANDS.items()] if command == "help" else []
        return [w for w in words if w[0].startswith(typed)]
    if command == "scale":
        return [(f"{name}=", about) for name, about in _apps(home) if name.startswith(typed)]
    if command in _NAMES or (command == "config" and (before[1:2] == ["env"] or typed)):
        names = [
            *_apps(home, workers="." in typed),
            *([("all", "every app")] if command in ("stop", "restart", "reload", "delete") else []),
        ]
        found = [(n, about) for n, about in names if n.startswith(typed) and n not in before]
        if found or command != "config":
            return found
    if command == "config":
        words = [("env", "the environment of an app"), *_apps(home)]
        return [w for w in words if w[0].startswith(typed)] or [("__files__", "")]
    if command in _FILES:
        if command == "start" and os.sep not in typed and "." not in typed:
            stopped = [(n, about) for n, about in _apps(home) if n.startswith(typed) and typed]
            if stopped:
                return stopped
        return [("__files__", "")]
    return []


def _apps(home: str = "", *, workers: bool = False) -> list[tuple[str, str]]:
    """Return the names that the daemon knows (of workers: api.2), with states; none when it does not answer at once."""
    from pyworker.cli.client import apps_now
    from pyworker.cli.homes import default_home
    from pyworker.errors import PyworkerError

    try:
        home = os.path.abspath(os.path.expanduser(home or default_home()))
        apps = apps_now(home, _ANSWER)
    except (PyworkerError, OSError):
        return []
    if workers:
        return [(f"{a['name']}.{w['worker']}", str(w["state"])) for a in apps for w in a["pool"]]
    return [(str(app["name"]), str(app["state"])) for app in apps]


def _values(before: list[str], option: str, typed: str) -> list[tuple[str, str]] | None:
    """Return what may follow an option, None when it takes no value."""
    import click

    from pyworker.cli.main import command_of

    command = command_of(before[0]) if before else command_of("")
    for param in command.params if command is not None else ():
        if isinstance(param, click.Option) and option in param.opts and not param.is_flag and not param.count:
            choices = (
                param.type.choices if isinstance(param.type, click.Choice) else _choices_of_text(param.opts[-1], typed)
            )
            if choices:
                return [(str(c), "") for c in choices if str(c).startswith(typed)]
            return [("__files__", "")] if (param.metavar or "") in _FILE_VALUES else []
    return None


def _choices_of_text(option: str, typed: str) -> Sequence[str]:
    """Return the values of an option that click takes for any text; of one of the config file's, such as --balance, too."""
    if option == "--type":
        from pyworker.protocol.events import TYPES

        given = typed[: typed.rfind(",") + 1]
        return [given + name for name in TYPES]
    if option in _CHOICES:
        return _CHOICES[option]
    import typing

    from pyworker.config.convert import hints_of
    from pyworker.config.schema import AppConfig, RestartConfig

    table, name = (RestartConfig, "policy") if option == "--restart" else (AppConfig, option.removeprefix("--"))
    return typing.get_args(hints_of(table).get(name)) if option in _CONFIG_CHOICES else ()


def _options(path: list[str], typed: str) -> list[tuple[str, str]]:
    import click

    from pyworker.cli.main import command_of

    found = command_of(path[0]) if path else None
    if path and found is None:
        return []
    if isinstance(found, click.Group) and path[1:]:
        found = found.commands.get(path[1], found)
    parameters = found.params if found is not None else command_of("").params  # type: ignore[union-attr]
    names = {
        name: option.help or ""
        for option in parameters
        if isinstance(option, click.Option) and not option.hidden
        for name in [*option.opts, *option.secondary_opts]
        if name.startswith("--")
    }
    names["--help"] = "Show the options."
    return [(n, about) for n, about in names.items() if n.startswith(typed)]

"""CLI: answers a shell's completion. Imports no command of its own, and click not at all unless options are asked for."""

from __future__ import annotations

import os
import sys

from pyworker.cli.names import ALIASES, COMMANDS

# what a command's words are
_NAMES = {
    "stop",
    "restart",
    "reload",
    "delete",
    "ps",
    "describe",
    "logs",
    "events",
    "wait",
    "diff",
    "top",
    "stack",
    "send",
}
_FILES = {"start", "run", "check", "import", "init", "export"}
_WORDS = {
    "completion": ("bash", "zsh", "fish"),
    "daemon": ("status", "start", "stop", "run", "upgrade"),
    "help": ("config", "reload", "states", "signals", "environment", "exit-codes", "files"),
}
_ANSWER = 0.25  # seconds: a shell that waits longer than this feels broken


def main(words: list[str]) -> int:
    """Print a candidate a line, "word<TAB>what it is"; the last of `words` is what is being typed."""
    typed = words[-1] if words else ""
    before = [w for w in words[:-1] if not w.startswith("-")]
    found = candidates(before, typed)
    sys.stdout.write("".join(f"{word}\t{about}\n" if about else f"{word}\n" for word, about in found))
    return 0


def candidates(before: list[str], typed: str) -> list[tuple[str, str]]:
    """Return what may stand here. `before`: the words in front of it that are no options."""
    if not before:
        if typed.startswith("-"):
            return _options([], typed)
        return [(name, short) for name, (_, short) in COMMANDS.items() if name.startswith(typed)]
    command = ALIASES.get(before[0], before[0])
    if typed.startswith("-"):
        return _options([command], typed)
    if command in _WORDS and len(before) == 1:
        words = [(w, "") for w in _WORDS[command]]
        words += [(c, s) for c, (_, s) in COMMANDS.items()] if command == "help" else []
        return [w for w in words if w[0].startswith(typed)]
    if command == "scale":
        return [(f"{name}=", about) for name, about in _apps() if f"{name}=".startswith(typed)]
    if command in _NAMES or (command == "config" and (before[1:2] == ["env"] or typed)):
        names = [*_apps(), *([("all", "every app")] if command in ("stop", "restart", "reload", "delete") else [])]
        found = [(n, about) for n, about in names if n.startswith(typed) and n not in before]
        if found or command != "config":
            return found
    if command == "config":
        words = [("env", "the environment of an app"), *_apps()]
        return [w for w in words if w[0].startswith(typed)] or [("__files__", "")]
    if command in _FILES:
        if command == "start" and os.sep not in typed and "." not in typed:
            stopped = [(n, about) for n, about in _apps() if n.startswith(typed) and typed]
            if stopped:
                return stopped
        return [("__files__", "")]
    return []


def _apps() -> list[tuple[str, str]]:
    """Return the names that the daemon knows, with their states; none when it does not answer at once."""
    from pyworker.cli.client import ask
    from pyworker.cli.homes import default_home
    from pyworker.errors import PyworkerError

    home = os.path.abspath(os.path.expanduser(default_home()))
    try:
        body = ask(home, {"type": "ps", "selectors": [], "sample": False}, _ANSWER)
    except (PyworkerError, OSError):
        return []
    return [(str(app["name"]), str(app["state"])) for app in body.get("apps") or ()]


def _options(path: list[str], typed: str) -> list[tuple[str, str]]:
    import click

    from pyworker.cli.main import command_of

    found = command_of(path[0]) if path else None
    if path and found is None:
        return []
    parameters = found.params if found is not None else command_of("").params  # type: ignore[union-attr]
    names = [
        (name, option.help or "")
        for option in parameters
        if isinstance(option, click.Option) and not option.hidden
        for name in [*option.opts, *option.secondary_opts]
        if name.startswith("--")
    ]
    return [(n, about) for n, about in [*names, ("--help", "Show the options.")] if n.startswith(typed)]

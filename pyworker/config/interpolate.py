"""${VAR} ${VAR:-default} ${VAR:?message} and $$ in the values of [env]. Pure; names are looked up by the caller.

A variable that is set nowhere is an error unless it has a default: an empty DATABASE_URL is found late.
A $ before anything else stays what it is ($HOME is not expanded).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from pyworker.errors import Hinted

MAX_STRING = 32 * os.sysconf("SC_PAGE_SIZE")  # NAME=value with the byte that ends it: MAX_ARG_STRLEN, execve(2)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOTENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:\}|:-)")
_BRACES, _DEEPER = re.compile(r"\$\$|\$\{|\}"), {"$$": 0, "${": 1, "}": -1}
_MAX_DEPTH = 20

Lookup = Callable[[str], str | None]


class InterpolationError(Hinted):
    """Malformed, or a variable that is not set."""


def interpolate(text: str, lookup: Lookup) -> str:
    return _expand(text, lookup, 0)


def check_syntax(text: str) -> None:
    """Raise InterpolationError when the text is malformed, whatever is set."""
    _expand(text, None, 0)


def literal(text: str) -> str:
    """Return the text that `interpolate` turns into this one: for values that are meant as they are."""
    return text.replace("$", "$$")


def literal_env(table: dict[str, Any]) -> dict[str, Any]:
    """Return an [app] table, or overrides, whose `env` (of -e) are values and no templates for them, so that it says so."""
    env = table.get("env")
    if not isinstance(env, dict):
        return table
    return {**table, "env": {name: literal(value) if isinstance(value, str) else value for name, value in env.items()}}


def expand_dotenv(text: str, lookup: Lookup) -> str:
    """Return a value of a dotenv file filled in as such files have it: ${VAR} and ${VAR:-default}, unset = empty."""

    def parts() -> Iterator[str]:
        at = 0
        # by no expression for all of it, which would look for the end of each that has none
        while (match := _DOTENV.search(text, at)) and (end := text.find("}", match.end() - 1)) >= 0:
            yield text[at : match.start()]
            yield lookup(match[1]) or text[match.end() : end]
            at = end + 1
        yield text[at:]

    return _join(parts())


def _expand(text: str, lookup: Lookup | None, depth: int) -> str:
    """Fill in the variables; without a lookup only look at the form, every default and message included."""
    if depth > _MAX_DEPTH:
        raise InterpolationError("is nested too deeply")
    return _join(_parts(text, lookup, depth))


def _parts(text: str, lookup: Lookup | None, depth: int) -> Iterator[str]:
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        yield text[at:dollar]
        if text.startswith("$$", dollar):
            yield "$"
            at = dollar + 2
        elif text.startswith("${", dollar):
            end = _closing(text, dollar + 2)
            yield _variable(text[dollar + 2 : end], lookup, depth)
            at = end + 1
        else:
            yield "$"
            at = dollar + 1
    yield text[at:]


def _join(parts: Iterator[str]) -> str:
    """Put together what a variable may be; one that is made of long ones may be any length: a few lines fill the memory."""
    taken, size = [], 0
    for part in parts:
        size += len(part)
        if size >= MAX_STRING:
            message = f"is more than {MAX_STRING - 1} characters with its variables filled in, which the kernel takes"
            raise InterpolationError(message, "put the value into a file, and the name of the file into the variable")
        taken.append(part)
    return "".join(taken)


def _closing(text: str, at: int) -> int:
    depth = 1
    for found in _BRACES.finditer(text, at):
        depth += _DEEPER[found[0]]
        if depth == 0:
            return found.start()
    raise InterpolationError("has a ${ without its }", "a plain dollar sign is written $$")


def _variable(inside: str, lookup: Lookup | None, depth: int) -> str:
    match = _NAME.match(inside)
    if match is None:
        raise InterpolationError(f"has ${{{inside[:40]}}}: that is not a variable", "a plain dollar sign is written $$")
    name, rest = match[0], inside[match.end() :]
    value = lookup(name) if lookup is not None else None
    if rest.startswith(":-"):
        return value or _expand(rest[2:], lookup, depth + 1)
    if rest.startswith(":?"):
        if not value:
            if lookup is None:
                return _expand(rest[2:], None, depth + 1)
            message = _expand(rest[2:], lookup, depth + 1) or "it must be set"
            raise InterpolationError(f"needs {name}: {message}", f"set {name} in env_file, or list it in inherit_env")
        return value or ""
    if rest:
        message = f"has ${{{inside[:40]}}}, which is none of ${{{name}}} ${{{name}:-default}} ${{{name}:?message}}"
        raise InterpolationError(message)
    if value is None and lookup is not None:
        hint = f"set {name} in env_file or the shell, or give a default: ${{{name}:-}}"
        raise InterpolationError(f"needs {name}, which is not set", hint)
    return value or ""

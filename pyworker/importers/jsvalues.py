"""What JavaScript's words come to: texts, numbers and paths as Node makes them; what only running the file could tell."""

from __future__ import annotations

import math
import posixpath
import re
from typing import Any

from pyworker.importers.result import MAX_TEXT
from pyworker.record import record

_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]+)\}|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}
# the folder of the file: what that is to an app depends on the app's own folder
HERE = "\0here"
FILE = f"{HERE}/ecosystem.config.js"
RUN = "let Node read it: pyworker import --run FILE (this executes the file)"


class NotPlain(Exception):
    """What stands here is computed; whoever holds the value may go on behind it."""


class EnvironmentText(str):
    """A text with ${VAR} in it that came from process.env."""


@record
class Computed:
    """A value, or a statement, that only running the file could tell: its text and where it stands."""

    text: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.text} is computed when the file runs"


def computed_in(value: Any) -> Computed | None:
    """Return the first computed value in it."""
    if isinstance(value, Computed):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for v in inner if (found := computed_in(v)) is not None), None)


# ---- operators -----------------------------------------------------------------------------------------
def added(left: Any, right: Any) -> Any:
    if _is_number(left) and _is_number(right):
        return number(left + right)
    return _put_together(_text(left) + _text(right), [left, right])


def multiplied(left: Any, right: Any) -> float:
    if not _is_number(left) or not _is_number(right):
        raise NotPlain
    return number(left * right)


def is_same(left: Any, right: Any) -> bool:
    """Return left === right, or left == right."""
    if not (type(left) is str and type(right) is str):
        raise NotPlain
    return left == right


def either(left: Any, right: Any, nothing: tuple[Any, ...]) -> Any:
    """Return left || right, or left ?? right: `right` instead of `nothing`; a variable has it as its default."""
    if isinstance(left, EnvironmentText) and left.startswith("${") and ":-" not in left:
        return EnvironmentText(f"{left[:-1]}:-{_text(right)}}}")
    return left if left not in nothing else right


# ---- functions -----------------------------------------------------------------------------------------
def joined(values: list[Any], separator: Any) -> str:
    """Return values.join(separator)."""
    if computed_in(values) is not None:
        raise NotPlain
    text = _text(separator).join("" if v is None else _text(v) for v in values)
    return _put_together(text, values)


def path_of(function: str, values: list[Any]) -> str:
    """Return what join, resolve or dirname of the module path make of these, or homedir of os."""
    parts = [_text(v) for v in values if v != ""]
    match function:
        case "homedir":
            return EnvironmentText("${HOME}")
        case "dirname":
            path = "/".join(parts)
            path = posixpath.join(path, "..") if path.endswith((".", HERE)) else posixpath.dirname(path)
        case "resolve":
            path = posixpath.join(*parts) if parts else "."
        case _:
            path = "/".join(p.strip("/") if i else p for i, p in enumerate(parts))
    path = _put_together(path, values)
    return path if isinstance(path, EnvironmentText) or HERE in path else posixpath.normpath(path)


# ---- literals ------------------------------------------------------------------------------------------
def number(value: float) -> float:
    """Return a number as JavaScript has it, a double, which may be infinite; a whole one as an int."""
    try:
        double = float(value)
    except OverflowError:
        return math.inf
    return int(double) if double.is_integer() else double


def unescaped(text: str) -> str:
    """Return what is between quotation marks without its backslashes."""

    def one(match: re.Match[str]) -> str:
        digits = match[1] or match[2] or match[3]
        if not digits:
            return _SIMPLE.get(match[4], match[4])
        code = int(digits, 16)
        return chr(code) if code < 0x110000 else "\ufffd"

    found = _ESCAPE.sub(one, text)
    return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs of \\u make one character


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise NotPlain  # null and undefined, which are one here; an array, an object


def _put_together(text: str, parts: list[Any]) -> str:
    """Return a text that was made of these: with a variable in one of them there is one in it."""
    if len(text) > MAX_TEXT:
        raise NotPlain
    return EnvironmentText(text) if any(isinstance(part, EnvironmentText) for part in parts) else text

"""AppConfig -> the table that would make it: units as text, in the schema's order; and tables -> TOML text. Pure.

`pyworker config` shows it, `diff` compares it, `init` and `import` write it. What is read back from the text is the
AppConfig again (a test says so for every key).
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from pyworker.config.check import FOR_KINDS, kind_of
from pyworker.config.convert import SHORT_FORMS, hints_of, table_class
from pyworker.config.option import option_of
from pyworker.config.schema import AppConfig, HealthConfig
from pyworker.config.suggest import elsewhere
from pyworker.config.units import duration_text, size_text
from pyworker.record import MISSING, Field, fields, is_record, replace

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_STEERS = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")  # a terminal, and JSON leaves it as it is


def table(app: Any, *, everything: bool = False) -> dict[str, Any]:
    """Return an app (or one of its tables) as a TOML table; without `everything` only what is not the default."""
    found: dict[str, Any] = {}
    skipped = _not_for(app)
    for field in fields(app):
        value = getattr(app, field.name)
        if field.name in skipped:
            continue
        if is_record(value):
            inner = table(value, everything=everything)
            if inner or field.default is None:
                found[field.name] = inner
            continue
        is_default = field.default is not MISSING and value == field.default
        if value is None or (is_default and value in ((), {}, "")) or value == {}:
            continue
        if everything or not is_default:
            found[field.name] = plain(value, option_of(field).unit)
    return found


def _not_for(table: Any) -> set[str]:
    """Return the options that this kind of app, or of health check, does not have: naming them would be a mistake."""
    if isinstance(table, AppConfig):
        kind = kind_of(table)
        return {name for name, kinds in FOR_KINDS.items() if kind not in kinds}
    if isinstance(table, HealthConfig):
        return {"path", "host", "expect"} if table.type != "http" else {"command"}
    return set()


def flat(app: AppConfig) -> dict[str, Any]:
    """Return every option of an app by its dotted key; absent ones are not there. [env] is left out."""
    return flatten(table(replace(app, env={}), everything=True))


def flatten(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            found |= flatten(item, f"{before}{name}.")
        else:
            found[before + name] = item
    return found


def plain(value: Any, unit: str) -> Any:
    """Return a value as TOML has it, one with a unit as text."""
    if isinstance(value, str):
        return value
    match unit:
        case "duration":
            return duration_text(value)
        case "size":
            return size_text(value)
        case _:
            return list(value) if isinstance(value, tuple) else value


def toml(values: Mapping[str, Any], path: tuple[str, ...], comments: Mapping[str, str] | None = None) -> str:
    """Return a table as TOML text under its [header]; `comments`: dotted key -> what to say behind that line."""
    comments = comments or {}
    lines = [f"[{'.'.join(map(_key, path))}]"]
    rows = [(_key(k), k, v) for k, v in values.items() if not isinstance(v, dict)]
    small = {k: v for k, v in values.items() if isinstance(v, dict) and k != "env" and len(v) == 1}
    small = {k: v for k, v in small.items() if not any(isinstance(inner, dict) for inner in v.values())}
    rows += [(f"{_key(n)}.{_key(k)}", f"{n}.{k}", v) for n, inner in small.items() for k, v in inner.items()]
    width = max((len(shown) for shown, _, _ in rows), default=0)
    for shown, key, value in rows:
        comment = f"  # {comments[key]}" if comments.get(key) else ""
        lines.append(f"{shown:<{width}} = {literal(value)}{comment}")
    text = "\n".join(lines) + "\n"
    for name, inner in values.items():
        if isinstance(inner, dict) and name not in small:
            below = {k.removeprefix(name + "."): v for k, v in comments.items() if k.startswith(name + ".")}
            text += "\n" + toml(inner, (*path, name), below)
    return text


def line_of(option: str) -> str:
    """Return the line of [app] that says what an option of a command line would, ours or another program's; "" for any other."""
    word = option.strip("-").replace("-", "_")
    word = elsewhere(word) or word
    word = f"{word}.{SHORT_FORMS[word]}" if word in SHORT_FORMS else word
    known: dict[str, tuple[Any, Field[Any]]] = {}
    inner: dict[str, tuple[Any, Field[Any]]] = {}
    for field in fields(AppConfig):
        hint = hints_of(AppConfig)[field.name]
        if (cls := table_class(hint)) is None:
            known[field.name] = hint, field
        else:
            inner |= {f"{field.name}.{each.name}": (hints_of(cls)[each.name], each) for each in fields(cls)}
    known |= inner
    key = next((key for key in known if key == word or key.endswith(f".{word}")), "")
    return f"{key} = {_example(*known[key])}" if key else ""


def _example(hint: Any, field: Field[Any]) -> str:
    option, default = option_of(field), field.default
    if option.example:
        return literal(option.example)
    if typing.get_origin(hint) is typing.Literal or hint is bool:
        others = typing.get_args(hint) or (False, True)
        return literal(next(value for value in reversed(others) if value != default))
    if default and default is not MISSING:
        return literal(plain(default, option.unit))
    if typing.get_origin(hint) is dict:
        return '{ NAME = "…" }'
    if option.unit:
        return '"60s"' if option.unit == "duration" else '"512MB"'
    return "1000" if int in (hint, *typing.get_args(hint)) else '"…"'


def literal(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(literal(v) for v in value) + "]"
    return str(value)


def _text(value: str) -> str:
    if "'" not in value and ("\\" in value or '"' in value) and value.isprintable():
        return f"'{value}'"
    return _STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _key(name: str) -> str:
    return name if _BARE.match(name) else _text(name)

"""TOML tables -> values of the schema, field by field, so that every mistake of a file is reported at once.

Everything comes from the declarations in schema.py: types, units, choices, limits. A *partial* is a dict of
what a table says, converted: field -> value, nested tables -> nested partials. Partials are merged
([defaults] below [apps.NAME]) before `build` fills in the rest. Rules between options are in check.py.
"""

from __future__ import annotations

import functools
import re
import shlex
import types
import typing
from typing import Any

from pyworker.config import units
from pyworker.config.address import is_port
from pyworker.config.option import Option, option_of
from pyworker.config.report import Report, dotted, shown
from pyworker.config.schema import INHERIT, KINDS, AppConfig, HealthConfig
from pyworker.config.spans import Path
from pyworker.config.suggest import elsewhere, nearest
from pyworker.record import MISSING, fields, is_record

Partial = dict[str, Any]

_LEAST, _MOST = -(2**63), 2**63 - 1  # what travels as a number, in every format that it travels in
_LONGEST_LINE = 64 * 1024  # characters that are split: of a longer word shlex takes the square of the time
_SPLIT_LIKE_A_SHELL = {"args", "command", "pre_start", "post_reload", "on_event"}
_QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
# what a shell would act on, where it is no plain part of a word; $PORT is put in by pyworker
_FOR_A_SHELL = re.compile(
    r"(?:^|(?<=\s))(?:&&|\|\|?|[0-9&]?>>?(?!=)|<(?=\s|[\w./]+(?:\s|$))|`|~(?=/|\s|$)|&(?=\s|$))"
    r"|(?<![\s{}]);(?=\s|$)"
    r"|(?:^|(?<=[\s=:/,]))\$(?:\(|\{?(?!PORT\b)[A-Za-z_]\w*\}?)"
)
SHORT_FORMS = {"health": "path", "restart": "policy", "logs": "file"}  # health = "/healthz", restart = "never"
SHORT_WORDS = {"logs": (INHERIT,)}  # the only text that the short form takes: logs = "inherit"
SWITCHES = {"watch"}  # true = the table with all its defaults


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def table_class(hint: Any) -> type | None:
    """Return the schema class of a field that is a table (HealthConfig | None -> HealthConfig), else None."""
    for option in (hint, *typing.get_args(hint)):
        if isinstance(option, type) and is_record(option):
            return option
    return None


def partial(cls: type, table: dict[str, Any], path: Path, report: Report) -> Partial:
    """Return what is right in a table, converted; report the rest."""
    known = {f.name: f for f in fields(cls)}
    result: Partial = {}
    for name, value in table.items():
        here = (*path, name)
        report.attempted.add(here)
        if name not in known:
            _unknown(cls, name, value, path, report)
            continue
        hint = hints_of(cls)[name]
        nested = table_class(hint)
        if nested is not None:
            _table(nested, name, value, here, report, result, optional=hint is not nested)
            continue
        try:
            result[name] = _value(name, hint, option_of(known[name]), value)
        except _Wrong as wrong:
            _report(wrong, here, report)
        except _WrongItems as several:
            result[name] = several.rest  # the rules between options are checked on what is right
            for item in several.items:
                _report(item, here, report)
    return result


def merge(base: Partial, over: Partial) -> Partial:
    """Return `over` laid on `base`. One kind of app, or of health check, replaces another whole."""
    result = dict(base)
    if any(kind in over for kind in KINDS):
        for kind in KINDS:
            result.pop(kind, None)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(value, dict) and isinstance(below, dict) and not (name == "health" and _is_other(value, below)):
            result[name] = {**below, **value}
        else:
            result[name] = value
    return result


def _is_other(health: Partial, below: Partial) -> bool:
    """Whether it is another kind of check than the one below it; one that does not say is http, or what that one is."""
    said = below.get("type", HealthConfig.type)
    return bool(health.get("type", said) != said)


def build(cls: Any, values: Partial, path: Path, report: Report) -> Any:
    """Return the schema object; report required options that are absent (None is returned then)."""
    arguments: dict[str, Any] = {}
    complete = True
    for field in fields(cls):
        nested = table_class(hints_of(cls)[field.name])
        if field.name in values:
            value = values[field.name]
            if nested is not None and isinstance(value, dict):
                value = build(nested, value, (*path, field.name), report)
            arguments[field.name] = value
        elif field.default is MISSING and field.default_factory is MISSING:
            complete = False
            here = (*path, field.name)
            if here not in report.attempted:
                example = option_of(field).example
                report.add(here, f"`{dotted(here)}` is missing", f'add: {field.name} = "{example}"', code="missing_key")
    return cls(**arguments) if complete else None


def given(values: Partial) -> set[tuple[str, ...]]:
    """Return the keys that a partial states: {("bind",), ("health", "path")…}."""
    found: set[tuple[str, ...]] = set()
    for name, value in values.items():
        found.add((name,))
        if isinstance(value, dict):
            found |= {(name, *rest) for rest in given(value)}
    return found


class _Wrong(Exception):
    def __init__(
        self, message: str, hint: str = "", below: Path = (), at: typing.Literal["key", "value"] = "value"
    ) -> None:
        super().__init__(message)
        self.message = message  # continues "`app.workers` "
        self.hint = hint
        self.below = below  # where in the value
        self.at = at


class _WrongItems(Exception):
    """Some items of a list or table are wrong; `rest` is the value without them (a list keeps empty places)."""

    def __init__(self, items: list[_Wrong], rest: Any) -> None:
        super().__init__(items[0].message)
        self.items = items
        self.rest = rest


def _report(wrong: _Wrong, path: Path, report: Report) -> None:
    whole = (*path, *wrong.below)
    report.add(whole, f"`{dotted(whole)}` {wrong.message}", wrong.hint, at=wrong.at)


def _table(cls: type, name: str, value: Any, path: Path, report: Report, result: Partial, *, optional: bool) -> None:
    if isinstance(value, dict):
        result[name] = partial(cls, value, path, report)
    elif isinstance(value, str) and name in SHORT_FORMS and value in SHORT_WORDS.get(name, (value,)):
        key = SHORT_FORMS[name]
        option = next(option_of(f) for f in fields(cls) if f.name == key)
        try:
            result[name] = {key: _value(key, hints_of(cls)[key], option, value)}
        except _Wrong as wrong:
            _report(wrong, path, report)
    elif value is False and optional:
        result[name] = None  # takes back what [defaults] says
    elif value is True and name in SWITCHES:
        result[name] = {}
    else:
        form = f"[{dotted(path)}]"
        if name in SHORT_FORMS:
            form += f', or {name} = "{SHORT_WORDS.get(name, ("…",))[0]}" for its {SHORT_FORMS[name]}'
        hint = 'did you mean "never"?' if name == "restart" and value is False else f"write {form}"
        if name == "reload" and value is True:  # uvicorn's
            hint = "for a reload when files change: watch = true"
        if name == "logs" and isinstance(value, str):
            hint = f'a file: logs.file = {shown(value)}; the stdout of `pyworker run`: logs = "{INHERIT}"'
            if value == "journald":
                hint = "write logs.journald = true"
        report.add(path, f"`{dotted(path)}` must be a table, not {shown(value)}", hint)


def _unknown(cls: type, name: str, value: Any, path: Path, report: Report) -> None:
    here = (*path, name)
    names = [f.name for f in fields(cls)]
    hint = ""
    other = "" if cls is AppConfig else _of_another_table(name, path)
    if cls is AppConfig and path[-1:] == ("app",) and isinstance(value, dict) and not value.keys().isdisjoint(KINDS):
        report.attempted |= {(*path, key) for key in KINDS}
        hint = f"several apps are [apps.NAME]: write [{dotted((*path[:-1], 'apps', name))}]"
    elif cls is AppConfig and (found := _in_a_table(name, 1.0)):
        hint = f"did you mean `{found}`?"
    elif (meant := nearest(name, names, 1.0 if other else 0.6)) is not None:
        report.attempted.add((*path, meant))
        hint = f"did you mean `{meant}`?"
        if meant == "bind" and name == "port" and is_port(str(value)):
            hint = f'did you mean bind = "127.0.0.1:{value}"?'
    elif cls is AppConfig and (found := _in_a_table(name, 0.8)):
        hint = f"did you mean `{found}`?"
    elif other:
        hint = other
    else:
        hint = "known keys: " + ", ".join(names)
    report.add(here, f"unknown key `{dotted((name,))}` in [{dotted(path)}]", hint, at="key", code="unknown_key")


def _of_another_table(name: str, path: Path) -> str:
    """Return where an option belongs that stands in a wrong one of the app's tables; in TOML those end only at the next."""
    app, table = path[:-1], path[-1]
    if table not in hints_of(AppConfig):
        return ""
    if name in hints_of(AppConfig):
        return f"it belongs to [{dotted(app)}], above its tables"
    own, _, key = _in_a_table(name, 1.0).partition(".")
    where = f"[{dotted((*app, own))}]"
    if key != name:  # a word of another tool
        return key and f"did you mean `{key}` in {where}?"
    return f"it belongs to {where}"


def _in_a_table(name: str, alike: float) -> str:
    """Return the full key of an option that stands in one of the app's tables: drain_timeout -> stop.drain_timeout."""
    if key := elsewhere(name):
        return key if "." in key else ""
    inner: dict[str, str] = {}
    for field, hint in hints_of(AppConfig).items():
        if (nested := table_class(hint)) is not None:
            inner |= {f.name: f"{field}.{f.name}" for f in fields(nested)}
    return inner.get(nearest(name, inner, alike) or "", "")


def _value(name: str, hint: Any, option: Option, value: Any) -> Any:
    if isinstance(value, str) and (unfit := _unfit(value)):
        raise _Wrong(unfit)
    origin = typing.get_origin(hint)
    if option.unit:
        return value if value in literals(hint) else _with_unit(option, hint, value)
    if origin is dict:
        return _environment(value)
    if origin is tuple:
        return _texts(name, value)
    if not _fits(hint, value):
        raise _Wrong(f"must be {expected(hint, option)}, not {shown(value)}", _hint_for(name, hint, option, value))
    _limits(option, value, shown)
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type: a plain one, one of some words, or one of several types."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return any(value == word and type(value) is type(word) for word in parts)
    return any(_fits(part, value) for part in parts) if parts else type(value) is hint


def literals(hint: Any) -> tuple[Any, ...]:
    """Return the words that a field takes beside its numbers: ("auto",) of int | Literal["auto"] | None."""
    parts = [typing.get_args(h) for h in typing.get_args(hint) if typing.get_origin(h) is typing.Literal]
    return tuple(word for words in parts for word in words)


def _unfit(text: str) -> str:
    """Return why a text can be no path, word or variable; "" when it can be. Options may hold any bytes, a file may not."""
    if "\0" in text:
        return "must not contain a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must be UTF-8"
    return ""


def _with_unit(option: Option, hint: Any, value: Any) -> float | int:
    duration = option.unit == "duration"
    what = 'a time span such as "30s"' if duration else 'a size such as "512MB"'
    what += "".join(f' or "{word}"' for word in literals(hint))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        meant = units.bare_number_hint(value, option.unit)
        raise _Wrong(f"must be {what}, with a unit, not {shown(value)}", meant)
    if not isinstance(value, str):
        raise _Wrong(f"must be {what}, not {shown(value)}")
    try:
        number = units.parse_duration(value) if duration else units.parse_size(value)
    except units.UnitError as error:
        raise _Wrong(f"{error}, not {shown(value)}", error.hint) from None
    _limits(option, number, lambda n: f'"{units.duration_text(n) if duration else units.size_text(int(n))}"')
    return number


def _limits(option: Option, value: Any, words: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    minimum = _LEAST if option.minimum is None else option.minimum
    maximum = _MOST if option.maximum is None else option.maximum
    if value < minimum:
        raise _Wrong(f"must be at least {words(minimum)}, not {words(value)}")
    if value > maximum:
        raise _Wrong(f"must be at most {words(maximum)}, not {words(value)}")


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or one text: split like a shell does where it is a command, else a list of one."""
    if isinstance(value, str):
        if name not in _SPLIT_LIKE_A_SHELL:
            return (value,)
        if len(value) > _LONGEST_LINE:
            raise _Wrong(
                f"is too long to be split: at most {_LONGEST_LINE} characters", "write a list, each word for itself"
            )
        try:
            words = tuple(shlex.split(value))
        except ValueError as error:
            raise _Wrong(f"cannot be split: {str(error).lower()}", "close the quotes, or write a list") from None
        if found := _FOR_A_SHELL.search(_QUOTED.sub("_", value)):
            its = found.group()
            run = "sh -c '…'"
            if name == "command":
                run = "sh -c '… exec the last program …', so that this one gets the stop signal"
            message = f"has {its} in it, and no shell runs it: the program would get it as an argument"
            raise _Wrong(message, f"for a shell: {run}; as an argument: in quotes, '{its}'")
        return words
    if not isinstance(value, list):
        hint = f'text needs quotes: "{shown(value)}"' if _is_plain(value) else ""
        if name == "bind":
            hint = f'did you mean ":{value}"?' if is_port(str(value)) else 'an address, for example: bind = ":8000"'
        if name == "inherit_env" and value is True:
            hint = 'everything: inherit_env = ["*"]'
        raise _Wrong(f"must be text or a list of texts, not {shown(value)}", hint)
    wrong = [no_text for index, item in enumerate(value) if (no_text := _no_text(item, index))]
    if wrong:
        bad = {w.below[0] for w in wrong}
        raise _WrongItems(wrong, tuple("" if i in bad else item for i, item in enumerate(value)))
    return tuple(value)


def _no_text(item: Any, at: str | int, before: str = "") -> _Wrong | None:
    """Return what is wrong with what is to be a text."""
    if not isinstance(item, str):
        hint = f'text needs quotes: {before}"{shown(item)}"' if _is_plain(item) else ""
        return _Wrong(f"must be text, not {shown(item)}", hint, (at,))
    unfit = _unfit(item)
    return _Wrong(unfit, "", (at,)) if unfit else None


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _Wrong(f'must be a table of NAME = "text", not {shown(value)}')
    wrong: list[_Wrong] = []
    for name, item in value.items():
        if not name or "=" in name or _unfit(name):
            wrong.append(_Wrong("cannot be the name of a variable", "letters, digits and _", (name,), "key"))
        elif no_text := _no_text(item, name, f"{dotted((name,))} = "):
            wrong.append(no_text)
    if wrong:
        bad = {w.below[0] for w in wrong}
        raise _WrongItems(wrong, {k: v for k, v in value.items() if k not in bad})
    return dict(value)


def _is_plain(value: Any) -> bool:
    """True for numbers and booleans: what one easily writes without the quotes that text needs."""
    return isinstance(value, (int, float))


def expected(hint: Any, option: Option) -> str:
    """Return in words what a value may be."""
    origin = typing.get_origin(hint)
    if hint is bool:
        return "true or false"
    if hint is int:
        return "a whole number"
    if hint is str:
        return "text"
    if origin is typing.Literal:
        choices = [shown(c) for c in typing.get_args(hint)]
        return " or ".join(choices) if len(choices) <= 2 else "one of " + ", ".join(choices)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(expected(o, option) for o in typing.get_args(hint) if o is not type(None))
    return option.help


def _hint_for(name: str, hint: Any, option: Option, value: Any) -> str:
    choices = [c for c in typing.get_args(hint) if isinstance(c, str)]
    if name == "workers":
        if not (isinstance(value, str) and value.strip().isdecimal()):
            return '"auto" means one worker per usable CPU'
        return f"a number has no quotes: workers = {value.strip()}"
    if name == "umask":  # not the number: 0o22 in the file is 18 here
        return 'octal digits in quotes, for example: umask = "0022"'
    if name == "policy" and value in ("no", "off", "none", False):
        return 'did you mean "never"?'
    if name == "policy" and value in ("yes", "on", "unless-stopped", True):
        return 'did you mean "always"?'
    if name == "preload" and value in (True, "true"):
        return 'did you mean "auto"?'
    if value in ("true", "false") and (hint is bool or name == "preload"):
        return f"without quotes: {value}"
    if choices and isinstance(value, str) and (meant := nearest(value, choices)) is not None:
        return f'did you mean "{meant}"?'
    if hint is not bool and isinstance(value, str) and value.strip().isdecimal():
        return f"a number has no quotes: {name} = {value.strip()}"
    if _is_plain(value) and not choices and "text" in expected(hint, option):
        if name == "signal":
            return 'its name, for example: signal = "TERM"'
        return f'text needs quotes: {name} = "{shown(value)}"'
    return ""

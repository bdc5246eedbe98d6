"""The JSON Schema (draft-07) of a config file, made from the declarations in schema.py, for editors. Pure.

Draft-07 because that is what the TOML editors understand. It knows names, types, units, choices and limits; the rules
between options stay check.py's, so a file that this schema accepts may still be refused by `pyworker check`, and a
file that `check` accepts is always accepted here.
"""

from __future__ import annotations

import types
import typing
from typing import Any

from pyworker.config.canonical import plain
from pyworker.config.convert import SHORT_FORMS, SHORT_WORDS, SWITCHES, hints_of, table_class
from pyworker.config.option import Option, option_of
from pyworker.config.schema import AppConfig, RunConfig
from pyworker.record import MISSING, Field, fields

_DURATION = r"^\s*\d{1,15}(\.\d{1,9})?\s*(ms|s|m|h|d)\s*$"
_SIZE = r"^\s*\d{1,15}(\.\d{1,9})?\s*(B|KB|MB|GB|TB)\s*$"
_NAME = "^[a-z0-9][a-z0-9_-]{0,63}$"

Schema = dict[str, Any]


def schema() -> Schema:
    """Return the whole schema, ready for json.dumps."""
    definitions: Schema = {"app": _table(AppConfig), "run": _table(RunConfig)}
    for field in fields(AppConfig):
        if (nested := table_class(hints_of(AppConfig)[field.name])) is not None:
            definitions[field.name] = _table(nested)
    tables: Schema = {
        "app": {"$ref": "#/definitions/app"},
        "apps": {
            "type": "object",
            "description": "several apps: [apps.NAME]",
            "propertyNames": {"pattern": _NAME},
            "additionalProperties": {"$ref": "#/definitions/app"},
        },
        "defaults": {"$ref": "#/definitions/app"},
    }
    properties = {
        **tables,
        "run": {"$ref": "#/definitions/run"},
        "profiles": {
            "type": "object",
            "description": "what is different with --profile NAME: [profiles.NAME.app], [profiles.NAME.apps.APP]",
            "additionalProperties": {"type": "object", "additionalProperties": False, "properties": tables},
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pyworker app.toml",
        "description": "One app ([app]) or several ([apps.NAME], on top of [defaults])",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "definitions": definitions,
    }


def _table(cls: type) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {f.name: _property(cls, f) for f in fields(cls)},
    }


def _property(cls: type, field: Field[Any]) -> Schema:
    hint = hints_of(cls)[field.name]
    option = option_of(field)
    nested = table_class(hint)
    if nested is not None:
        return _nested(field, nested, option)
    found = _value(hint, option)
    found["description"] = option.help + f" (takes effect: {option.apply})"
    if field.default is not MISSING and field.default is not None:
        found["default"] = plain(field.default, option.unit)
    if option.example:
        found["examples"] = [option.example]
    return found


def _nested(field: Field[Any], nested: type, option: Option) -> Schema:
    forms: list[Schema] = [{"$ref": f"#/definitions/{field.name}"}]
    key = SHORT_FORMS.get(field.name)
    if field.name in SHORT_WORDS:
        forms.append({"enum": list(SHORT_WORDS[field.name])})
    elif key is not None:
        inner = next(f for f in fields(nested) if f.name == key)
        forms.append(_value(hints_of(nested)[key], option_of(inner)))
    if field.default is None:
        forms.append({"const": False})
        if field.name in SWITCHES:
            forms.append({"const": True})
    return {"description": option.help, "anyOf": forms}


def _value(hint: Any, option: Option) -> Schema:
    if option.unit:
        pattern, example = (_DURATION, "30s") if option.unit == "duration" else (_SIZE, "512MB")
        measure: Schema = {"type": "string", "pattern": pattern, "examples": [example]}
        words = [_kind(h, option) for h in _members(hint) if typing.get_origin(h) is typing.Literal]
        return {"anyOf": [measure, *words]} if words else measure
    origin = typing.get_origin(hint)
    if origin is dict:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if origin is tuple:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    kinds = [_kind(h, option) for h in _members(hint)]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _members(hint: Any) -> list[Any]:
    """Return the alternatives of a union, None left out (TOML has none): literals of different types apart."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [m for h in typing.get_args(hint) if h is not type(None) for m in _members(h)]
    return [hint]


def _kind(hint: Any, option: Option) -> Schema:
    if typing.get_origin(hint) is typing.Literal:
        return {"enum": list(typing.get_args(hint))}
    if hint is bool:
        return {"type": "boolean"}
    if hint is int:
        found: Schema = {"type": "integer"}
        if option.minimum is not None:
            found["minimum"] = int(option.minimum)
        if option.maximum is not None:
            found["maximum"] = int(option.maximum)
        return found
    return {"type": "string"}

"""Messages <-> bytes: one JSON object with a "type", fields refused by name when unknown, missing or mistyped.

Bytes from a peer are never trusted: everything wrong with them is a WireError (also what json.loads
reports as RecursionError, NaN and infinities, and lone surrogates, which would blow up when printed).
"""

from __future__ import annotations

import enum
import functools
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pyworker.record import MISSING, compile_init, fields, is_record

MAX_MESSAGE = 64 * 1024  # a packet between our own processes
MAX_REQUEST = 1024 * 1024  # a line from the CLI (a shell's environment may be in it)

T = TypeVar("T")


class WireError(ValueError):
    """The peer sent something that is not a message of the set expected here."""


@functools.cache
def tag(cls: type) -> str:
    """Return the name a message class has on the wire: class WorkerReady -> "worker_ready"."""
    return "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")


@functools.cache
def _fields(cls: Any) -> tuple[tuple[str, Any], ...]:
    """Return the names of a message's fields, and their defaults (MISSING: it has none, or makes one each time)."""
    return tuple((field.name, field.default) for field in fields(cls))


def encode(message: Any) -> bytes:
    """Return the JSON bytes of a message (no newline at the end).

    A field at its default is left out, also deep inside: a peer of an older version knows every field that it is sent,
    unless what is new is really used.
    """
    return _encoder.encode({"type": tag(message.__class__), **_without_defaults(message)}).encode()


def shallow_json(value: Any) -> Any:
    """The `default` of json.dumps: `to_json` of one level, the rest of which is left to json's own, faster code."""
    kind = value.__class__
    if is_record(kind):
        return {name: getattr(value, name) for name, _ in _fields(kind)}
    return to_json(value)


def _without_defaults(value: Any) -> Any:
    """The same, without the fields of a record that are at their default."""
    kind = value.__class__
    if not is_record(kind):
        return to_json(value)
    found = {name: (getattr(value, name), default) for name, default in _fields(kind)}
    return {name: v for name, (v, default) in found.items() if default is MISSING or v != default}


_encoder = json.JSONEncoder(separators=(",", ":"), default=_without_defaults)  # each call of json.dumps makes one


def to_json(value: Any) -> Any:
    """Return the JSON value of a record, enum, tuple, dict or scalar."""
    kind = value.__class__
    if is_record(kind):
        return {name: to_json(getattr(value, name)) for name, _ in _fields(kind)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    return value


def decode(union: Any, data: bytes | bytearray | memoryview, *, limit: int = MAX_MESSAGE) -> Any:
    """Decode one message of a closed union of records; raise WireError for anything else."""
    return decode_value(union, parse_json(data, limit=limit))


def decode_value(union: Any, raw: Any) -> Any:
    """Like `decode`, for JSON that is parsed already (a message inside a message). `raw` is left as it was."""
    if not isinstance(raw, dict):
        raise WireError(f"message: expected an object, got {_kind(raw)}")
    name = raw.get("type")
    for cls in typing.get_args(union) or (union,):
        if tag(cls) == name:
            return from_json(cls, {k: v for k, v in raw.items() if k != "type"}, "message")
    raise WireError(f"message: unknown type {_shown(name)}")


def parse_json(data: bytes | bytearray | memoryview, *, limit: int = MAX_REQUEST) -> Any:
    """json.loads for untrusted bytes: every way to fail is a WireError."""
    if len(data) > limit:
        raise WireError(f"message of {len(data)} bytes, at most {limit} are taken")
    try:
        return _decoder.decode(bytes(data).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {str(error)[:100]}") from None


def from_json(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a type and return it converted; `where` names it in the error."""
    return _reader(hint)(value, where)


def prepare(cls: type) -> None:
    """Look at a record and all that it holds, so that processes forked from here need not."""
    _fields_read(cls)


_Reader = Callable[[Any, str], Any]


def _reader(hint: Any) -> _Reader:
    """Return what reads values of a type. Made once for each field of a message: to look at types costs more than to read."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return lambda value, where: value
    if isinstance(hint, type) and is_record(hint):
        _fields_read(hint)
        return functools.partial(_record_from_json, hint)
    if origin in (typing.Union, types.UnionType):
        options = [_reader(option) for option in arguments if option is not type(None)]
        return functools.partial(_one_of, options, type(None) in arguments)
    if origin is typing.Literal:
        return functools.partial(_literal, arguments)
    if origin is tuple:
        return functools.partial(_items, _reader(arguments[0]))
    if origin is dict:
        return functools.partial(_entries, _reader(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return functools.partial(_member, hint)
    return functools.partial(_scalar, hint)


def _one_of(options: list[_Reader], or_none: bool, value: Any, where: str) -> Any:
    if value is None and or_none:
        return None
    failures: list[str] = []
    for read in options:
        try:
            return read(value, where)
        except WireError as error:
            failures.append(str(error))
    raise WireError(failures[0])


def _literal(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    raise WireError(f"{where}: expected one of {choices}, got {_shown(value)}")


def _items(read: _Reader, value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise WireError(f"{where}: expected a list, got {_kind(value)}")
    return tuple(read(v, f"{where}[{i}]") for i, v in enumerate(value))


def _entries(read: _Reader, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where}: expected an object, got {_kind(value)}")
    return {_text(k, where): read(v, f"{where}[{k!r:.40}]") for k, v in value.items()}


def _member(kind: type[enum.Enum], value: Any, where: str) -> Any:
    for member in kind:
        if member.value == value:
            return member
    raise WireError(f"{where}: {_shown(value)} is not a {kind.__name__}")


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise WireError(f"{where}: number out of range") from None
    if type(value) is not hint:
        raise WireError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {_kind(value)}")
    if hint is int and not -(2**63) <= value < 2**64:
        raise WireError(f"{where}: number out of range")
    return _text(value, where) if hint is str else value


@functools.cache
def _fields_read(cls: Any) -> dict[str, tuple[_Reader, bool]]:
    """Return what reads each field of a record, and whether it must be there."""
    compile_init(cls)
    hints = typing.get_type_hints(cls)
    return {
        f.name: (_reader(hints[f.name]), f.default is MISSING and f.default_factory is MISSING) for f in fields(cls)
    }


def _record_from_json(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where}: expected an object, got {_kind(value)}")
    fields = _fields_read(cls)
    for name in value:
        if name not in fields:
            raise WireError(f"{where}: unknown field {name!r:.60}")
    arguments = {}
    for name, (read, required) in fields.items():
        if name in value:
            arguments[name] = read(value[name], f"{where}.{name}")
        elif required:
            raise WireError(f"{where}: missing field {name!r}")
    return cls(**arguments)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WireError(f"{where}: text with a lone surrogate") from None
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    """Return what is said of a wrong value. Of a list or object only that it is one: where JSON may be as deep as it is,
    what is printed of it may not.
    """
    return _kind(value) if isinstance(value, (list, dict)) else f"{value!r:.60}"


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # "NaN", "Infinity", "1e999"
        raise ValueError(f"{text[:20]} is not a number here")
    return number


_decoder = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)

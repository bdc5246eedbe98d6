"""Bytes that are nearly right: samples of every message, and what a random hand makes of them."""

from __future__ import annotations

import json
import random
import types
import typing
from typing import Any, Literal, Union

from pyworker.protocol.wire import encode
from pyworker.record import fields, is_record

# what has hurt JSON readers before: depth, numbers without end, NaN, lone surrogates, doubled keys, NULs, BOMs
TRAPS = (
    b"", b"\0", b"[" * 4000, b"{" * 4000, b'{"a":' * 3000, b"1" * 5000, b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"\xff\xfe",
    b'{"type":"ps","type":"shutdown"}', b"\xef\xbb\xbf{}", b"null", b"[]", b'{"type":null}', b'{"type":["ps"]}', b'{"type":{}}',
    b'{"type":"' + b"a" * 70_000 + b'"}', b'"' + b"\\u0000" * 500 + b'"', b'{"type":"ps","selectors":[[[[]]]]}', b"\xf0\x28\x8c\x28",
)  # fmt: skip
_TOKENS = (
    b"null",
    b"-1",
    b"1e308",
    b"99999999999999999999",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b'"\\udfff"',
    b"0.5",
    b"\x1b[2J",
)


def sample(hint: Any, chance: random.Random, depth: int = 0) -> Any:
    """Return a value of this type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return chance.choice(args)
    if origin in (Union, types.UnionType):
        return sample(chance.choice(args), chance, depth)
    if origin is tuple:
        if args and args[-1] is not Ellipsis:
            return tuple(sample(a, chance, depth) for a in args)
        return tuple(sample(args[0], chance, depth + 1) for _ in range(chance.choice((0, 1, 3))))
    if origin is dict:
        return {
            chance.choice(("a", "B", "é", "")): sample(args[1], chance, depth + 1) for _ in range(chance.choice((0, 2)))
        }
    if is_record(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{f.name: sample(hints[f.name], chance, depth + 1) for f in fields(hint)})  # type: ignore[operator]
    if hint is bool:
        return chance.random() < 0.5
    if hint is int:
        return chance.choice((0, 1, -1, 2**31, 2**63, chance.randrange(100_000)))
    if hint is float:
        return chance.choice((0.0, 0.5, -1.0, 1e300))
    if hint is type(None):
        return None
    return chance.choice(("api", "api.1", "", "x" * 300, "é\n\x1b[31m", "../../etc/passwd", "all", "*"))


def messages(unions: typing.Sequence[Any], seed: int, each: int = 4) -> list[bytes]:
    """Return encoded messages of every type of some unions."""
    chance = random.Random(seed)
    kinds = sorted({kind for union in unions for kind in typing.get_args(union)}, key=lambda kind: kind.__name__)
    return [encode(sample(kind, chance)) for kind in kinds for _ in range(each)]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Return something near to it."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not out:
            return chance.choice(TRAPS)
        at = chance.randrange(len(out))
        match chance.randrange(8):
            case 0:
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                del out[at : at + chance.choice((1, 1, 3, 20))]
            case 2:
                out[at:at] = chance.choice(_TOKENS)
            case 3:
                end = min(len(out), at + chance.randrange(1, 20))
                out[at:at] = out[at:end] * chance.choice((1, 2, 50))
            case 4:
                out[at] = chance.randrange(256)
            case 5:
                out[at:] = b""
            case 6:
                out = bytearray(_retyped(bytes(out), chance))
            case 7:
                return chance.choice(TRAPS)
    return bytes(out)


def _retyped(data: bytes, chance: random.Random) -> bytes:
    """A field gets a value of another type, a new name, or goes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(value, dict) or not value:
        return data
    key = chance.choice(list(value))
    match chance.randrange(3):
        case 0:
            value[key] = chance.choice((None, -1, [], {}, "x", 1e9, True, ["a", 1], {"type": "ps"}))
        case 1:
            value[key + "x"] = value.pop(key)
        case 2:
            del value[key]
    return json.dumps(value).encode()

"""Every declared message survives the wire; nothing else gets through."""

from __future__ import annotations

import json
import types
import typing
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.config.schema import AppConfig, HealthConfig, TlsConfig
from pyworker.policy.lifecycle import State
from pyworker.protocol import control, dispatcher, store, template, worker
from pyworker.protocol.wire import MAX_MESSAGE, WireError, decode, decode_value, encode, from_json, tag, to_json
from pyworker.record import MISSING, field, fields, is_record, mutable, record

UNIONS = (
    store.ToDaemon,
    store.FromDaemon,
    store.ToLogger,
    store.FromLogger,
    worker.FromWorker,
    worker.ToWorker,
    template.ToTemplate,
    template.FromTemplate,
    dispatcher.ToDispatcher,
    dispatcher.FromDispatcher,
    control.Request,
    control.Answer,
)
MESSAGES = sorted({m for u in UNIONS for m in typing.get_args(u)}, key=tag)


def instances(cls: Any) -> st.SearchStrategy[Any]:
    """What makes messages of a class, with any value of its type in each field."""
    return st.builds(cls, **{name: _values(hint) for name, hint in typing.get_type_hints(cls).items()})


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if is_record(hint):
        return instances(hint)
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of([_values(part) for part in parts])
    if typing.get_origin(hint) is tuple:
        return st.lists(_values(parts[0])).map(tuple)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(*map(_values, parts))
    return st.from_type(hint)


def union_of(cls: type) -> Any:
    return next(u for u in UNIONS if cls in typing.get_args(u))


@pytest.mark.parametrize("cls", MESSAGES, ids=tag)
def test_every_message_round_trips(cls: type) -> None:
    @given(instances(cls))
    def round_trip(message: Any) -> None:
        try:
            json.dumps(to_json(message), allow_nan=False).encode().decode()
            text = encode(message)
        except (ValueError, TypeError):
            return  # a value that JSON has no word for; ours never make one
        try:
            decoded = decode(union_of(cls), text)
        except WireError as error:
            if "surrogate" in str(error) or "out of range" in str(error):
                return  # ours never send such a value
            raise
        assert decoded == message

    if any("Any" in str(f.type) for f in fields(cls)):
        required = {f.name: _plain(f.type) for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        message = cls(**required)
        assert decode(union_of(cls), encode(message)) == message
    else:
        round_trip()


def _plain(hint: Any) -> Any:
    text = str(hint)
    for word, value in (("dict", {}), ("tuple", ()), ("bool", True), ("int", 7), ("float", 0.5)):
        if text.startswith(word):
            return value
    return "text"


@pytest.mark.parametrize("union", UNIONS)
def test_tags_are_unique_in_a_union(union: Any) -> None:
    tags = [tag(m) for m in typing.get_args(union)]
    assert len(tags) == len(set(tags))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"null",
        b"[]",
        b'"go"',
        b"{}",
        b'{"type":"nope"}',
        b'{"type":["go"]}',
        b'{"type":"drain"}',
        b'{"type":"drain","timeout":"1","to_empty":true}',
        b'{"type":"drain","timeout":NaN,"to_empty":true}',
        b'{"type":"drain","timeout":1e999,"to_empty":true}',
        b'{"type":"drain","timeout":' + b"9" * 400 + b',"to_empty":true}',
        b'{"type":"drain","timeout":1,"to_empty":1}',
        b'{"type":"drain","timeout":true,"to_empty":true}',
        b'{"type":"go","extra":1}',
        b'{"type":"bound","errno":1.5}',
        b'{"type":"bound","errno":' + b"9" * 30 + b"}",
        b'{"type":"bound","errno":' + b"9" * 5000 + b"}",
        b'{"type":"bound","errno":0,"message":"\\ud800"}',
        b"[" * 4000,
        b"{" * 60000,
        b'{"type":"go"}' + b" " * MAX_MESSAGE,
        b"\xff\xfe",
    ],
)
def test_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(worker.ToWorker, data)


@given(st.binary(max_size=200))
def test_rubbish_is_refused_and_never_more(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(worker.FromWorker, data)


def test_errors_name_the_field() -> None:
    with pytest.raises(WireError, match=r"message\.names\[1\]: expected str, got int"):
        decode(store.ToDaemon, b'{"type":"restore","names":["a",3]}')


def test_a_whole_config_travels() -> None:
    app = AppConfig(name="api", target="a:b", health=HealthConfig(path="/x"), tls=TlsConfig("c", "k"), workers="auto", preload=False)
    spec = template.LaunchSpec(
        "template", app, 1, 0, 0, False, "/usr/bin/python3", {"A": "ü"}, None, 5, (1, 2), template.Engine("/x", "abi"), 4, 5, 6, 0, (7,)
    )  # fmt: skip
    data = encode(spec)
    assert decode(template.LaunchSpec, data) == spec
    assert b"kill_timeout" not in data, "what is at its default is left out, also of a part"


def test_a_value_within_another_is_told_as_it_is() -> None:
    @mutable
    class Inner:
        word: Any

    @mutable
    class Outer:
        parts: tuple[Any, ...]
        by_name: dict[str, Any]

    value = Outer((Inner("a"), Inner((1, 2.5)), State.READY, None), {"b": Inner(True), "c": [State.HELD]})
    told = {"parts": [{"word": "a"}, {"word": [1, 2.5]}, "ready", None], "by_name": {"b": {"word": True}, "c": ["held"]}}
    assert to_json(value) == told


@record
class _Part:
    size: int


@record
class _Shapes:
    number: int
    names: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    word: Literal["yes", 1] = "yes"
    either: str | int = 0
    maybe: int | None = None
    state: State = State.READY
    seconds: float = 0.0
    part: _Part | None = None


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": None},
        {"number": 2**64},
        {"number": -(2**63) - 1},
        {"names": None},
        {"names": 7},
        {"names": "ab"},
        {"names": {"a": 1}},
        {"names": ["a", None]},
        {"counts": None},
        {"counts": []},
        {"counts": {"a": "1"}},
        {"word": "no"},
        {"word": True},  # which equals 1
        {"word": None},
        {"either": None},
        {"either": 1.5},
        {"maybe": "7"},
        {"state": "asleep"},
        {"seconds": "2"},
        {"seconds": True},
        {"seconds": None},
        {"part": 7},
        {"part": {}},
        {"part": {"size": 1, "weight": 2}},
    ],
)
def test_a_value_of_another_shape_is_refused_as_such(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"number": 7, "names": ["a"], "counts": {"a": 1}, "word": 1}
    assert from_json(_Shapes, good, "it") == _Shapes(7, ("a",), {"a": 1}, 1)
    others = {"number": 2**64 - 1, "either": "a", "maybe": None, "state": "held", "seconds": 2, "part": {"size": -(2**63)}}
    assert from_json(_Shapes, others, "it") == _Shapes(
        2**64 - 1, either="a", state=State.HELD, seconds=2.0, part=_Part(-(2**63))
    )
    with pytest.raises(WireError, match=f"^it.{next(iter(wrong))}"):
        from_json(_Shapes, good | wrong, "it")


@pytest.mark.parametrize("name", ["type", "word", "state"])
def test_what_is_too_deep_to_be_printed_is_refused_as_well(name: str) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(WireError, match="list"):
        decode_value(_Shapes, {"type": tag(_Shapes), "number": 1, name: deep})

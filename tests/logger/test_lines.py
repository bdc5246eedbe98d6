"""The bytes of a stream come out of the log as they went in, however they were cut."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.logger.lines import CHUNK, Lines, Source, whole_characters
from pyworker.protocol.logs import MAX_LINE, parse_record
from tests.logger.rig import lines as rejoin

STAMP = "2026-11-23T14:02:31.104Z"
Format = Literal["text", "json", "short", "plain"]


def source() -> Source:
    return Source("api", 2, "out", 41)


def written(chunks: list[bytes | None], format: Format = "text") -> list[bytes]:
    """Feed chunks (None: the hold time is over) and return the lines as a reader has them."""
    assembler = Lines(source())
    data = b""
    for chunk in chunks:
        data += assembler.part(STAMP, format) if chunk is None else assembler.feed(chunk, STAMP, format)
        assert len(assembler.held) < MAX_LINE
    data += assembler.finish(STAMP, format)
    found = [parse_record(line) for line in data.split(b"\n")[:-1]]
    assert data == b"" or data.endswith(b"\n")
    assert None not in found
    return rejoin([r for r in found if r is not None])


def test_record_looks_as_the_protocol_says() -> None:
    assembler = Lines(source())
    assert assembler.feed(b"one\ntwo\nthr", STAMP, "text") == (
        b"2026-11-23T14:02:31.104Z api.2 41 out| one\n2026-11-23T14:02:31.104Z api.2 41 out| two\n"
    )
    assert assembler.part(STAMP, "text") == b"2026-11-23T14:02:31.104Z api.2 41 out+ thr\n"
    assert assembler.feed(b"ee\n", STAMP, "text") == b"2026-11-23T14:02:31.104Z api.2 41 out| ee\n"


def test_part_of_a_line_goes_on_with_the_next_chunk() -> None:
    assembler = Lines(source())
    assert assembler.feed(b"a\npart-", STAMP, "text").endswith(b"| a\n")
    assert assembler.feed(b"b\n", STAMP, "text").endswith(b"| part-b\n")


@given(st.lists(st.sampled_from([b"", b"a", b"\n", b"\n\n", b"b" * 100, b"c" * (MAX_LINE - 3), b"\nd"]), max_size=8))
@pytest.mark.parametrize("format", ["text", "json", "short", "plain"])
def test_how_many_lines_a_chunk_has_ended_is_known(format: Format, parts: list[bytes]) -> None:
    assembler = Lines(source())
    text = b"".join(parts)
    for at in range(0, len(text), CHUNK):
        chunk = text[at : at + CHUNK]
        assembler.feed(chunk, STAMP, format)
        assert assembler.ended == chunk.count(b"\n")


def test_json_record_is_one_object_a_line() -> None:
    data = Lines(source()).feed('ü "x"\n\xff\n'.encode("latin-1"), STAMP, "json")
    assert [json.loads(line)["msg"] for line in data.splitlines()] == ['\\xfc "x"', "\\xff"]
    assert json.loads(data.splitlines()[0]) | {"msg": ""} == {
        "ts": STAMP, "app": "api", "worker": 2, "pid": 41, "stream": "out", "msg": "",
    }  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"\n", b"\0", b"\x1b[31m", "ß€😀".encode()])), max_size=40
    ),
    st.data(),
)
def test_bytes_are_unchanged_however_they_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    chunks: list[bytes | None] = []
    while text:
        size = data.draw(st.integers(1, len(text)))
        chunks.append(text[:size])
        text = text[size:]
        if data.draw(st.booleans()):
            chunks.append(None)
    expected = b"".join(parts).split(b"\n")
    assert written(chunks) == (expected if expected[-1] else expected[:-1])


@settings(deadline=None, max_examples=30)
@given(st.text("aß€😀\n", max_size=300), st.lists(st.integers(1, 7), max_size=400))
def test_json_keeps_characters_whole_that_were_cut(text: str, sizes: list[int]) -> None:
    data = text.encode()
    chunks: list[bytes | None] = []
    for size in sizes:
        chunks += [data[:size], None]
        data = data[size:]
    while data:
        chunks.append(data[:CHUNK])
        data = data[CHUNK:]
    expected = text.encode().split(b"\n")
    assert written([c for c in chunks if c != b""], "json") == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("length", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE, 5 * MAX_LINE + 3])
@pytest.mark.parametrize("size", [CHUNK, CHUNK - 1, 1000])
def test_long_line_is_written_in_parts_and_holds_little_memory(length: int, size: int) -> None:
    line = ("€" * length).encode()[:length]
    text = b"before\n" + line + b"\nafter\n"
    chunks: list[bytes | None] = [text[i : i + size] for i in range(0, len(text), size)]
    assert written(chunks) == [b"before", line, b"after"]


def test_stream_that_ends_inside_a_line_ends_the_line() -> None:
    assembler = Lines(source())
    assembler.feed(b"half", STAMP, "text")
    assert assembler.finish(STAMP, "text").endswith(b"out| half\n")
    assert assembler.finish(STAMP, "text") == b""


def test_line_whose_parts_are_written_is_ended_even_when_nothing_more_came() -> None:
    assembler = Lines(source())
    assembler.feed(b"half", STAMP, "text")
    assembler.part(STAMP, "text")
    assert assembler.finish(STAMP, "text").endswith(b"out| \n")


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"", 0),
        (b"abc", 3),
        (b"a\xe2\x82", 1),
        ("€".encode(), 3),
        (b"\xf0\x9f\x98", 0),
        (b"\x80\x80\x80\x80\x80", 5),
        (b"a\xff", 2),
        (b"\xc3", 0),
    ],
)
def test_whole_characters(data: bytes, whole: int) -> None:
    assert whole_characters(data) == whole

"""A log line is read as it was written, in both formats."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.protocol.logs import LogRecord, format_record, parse_record, stamp


def test_a_stamp_keeps_three_digits() -> None:
    assert stamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert stamp(1.9999) == "1970-01-01T00:00:01.999Z"


def record(msg: bytes, partial: bool = False, stream: str = "out") -> LogRecord:
    return LogRecord("2026-11-23T14:02:31.104Z", "my-api", 2, 41211, stream, partial, msg)  # type: ignore[arg-type]


@given(st.binary(max_size=300).map(lambda b: b.replace(b"\n", b"")), st.booleans(), st.sampled_from(["out", "err"]))
def test_text_keeps_every_byte(msg: bytes, partial: bool, stream: str) -> None:
    line = format_record(record(msg, partial, stream), "text")
    assert line.count(b"\n") == 1
    assert parse_record(line) == record(msg, partial, stream)


@given(st.text(max_size=100), st.booleans())
def test_json_keeps_text(text: str, partial: bool) -> None:
    msg = text.encode("utf-8", "replace").replace(b"\n", b"")
    line = format_record(record(msg, partial), "json")
    assert line.count(b"\n") == 1
    assert parse_record(line) == record(msg, partial)


@pytest.mark.parametrize("line", [b"", b"hello\n", b"{", b"{}", b'{"ts":1}', b"a b c d e", b"2026 api.x 1 out| x", b"[" * 5000, b"2026 api.1 1 out? x"])
def test_other_lines_are_none(line: bytes) -> None:
    assert parse_record(line) is None


def test_the_format_file_of_lnav_knows_these_lines() -> None:
    form = json.loads((pathlib.Path(__file__).parents[2] / "docs" / "pyworker.lnav.json").read_text())["pyworker_log"]
    pattern = re.compile(form["regex"]["line"]["pattern"].replace("(?<", "(?P<"))
    for made, level in ((record(b"WARNING slow"), "WARNING"), (record(b"", True, "err"), None), (record(b"x"), None)):
        found = pattern.match(format_record(made, "text").decode().rstrip("\n"))
        assert found is not None
        assert (found["worker"], found["pid"], found["stream"], found["body"], found["level"]) == (
            "my-api.2", "41211", made.stream, made.msg.decode(), level,
        )  # fmt: skip
    for sample in form["sample"]:
        assert pattern.match(sample["line"])
        assert parse_record(sample["line"].encode()) is not None

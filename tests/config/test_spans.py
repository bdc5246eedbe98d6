"""Spans: the text under every span says what tomllib read there."""

from __future__ import annotations

import tomllib
from datetime import date, time
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.config.spans import Document, Path, scan

HARD = """
# comment with [brackets] = and "quotes"
title = "a # b"  # not = this
'quo ted' . "k\\u00e9y".plain = 1
empty = ""
multi = \"\"\"
one [x] = 2
"quoted" \\
   joined\"\"\"\"
literal = '''it's # here
''\\n'''
list = [ 1, [2, 3], # inner ]
  "a,b]", { x = 1, y.z = [true] }, ]
when = 1979-05-27 07:32:00
inline = { a = { b = "}" }, "c d" = '''x
y''' }
nothing = []
braces = {}

[ a . "b.c" ]
d.e = +inf
[a]
f = 0x_f if False else 1
"""
HARD = HARD.replace("0x_f if False else 1", "0xF_F")
ARRAYS = """
[[x]]
k = 1
[[x]]
[x.y]
z = 2
[[x.w]]
q = 1
[[x.w]]
q = 2
[[other.deep]]
v = {a.b = 1}
"""


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    found: dict[Path, Any] = {path: value} if path else {}
    if isinstance(value, dict):
        for key, item in value.items():
            found |= leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found |= leaves(item, (*path, index))
    return found


def assert_spans_are_right(text: str) -> None:
    document = scan(text)
    expected = leaves(tomllib.loads(text))
    assert set(document.spans) == set(expected)
    for path, value in expected.items():
        span = document.spans[path]
        under = document.text[slice(*span.value)]
        if isinstance(value, (dict, list)):
            headed = under.startswith("[") and span.key[0] > span.value[0]  # a [table] header, not a value
            if headed or span.key == span.value:
                continue
        assert tomllib.loads(f"v = {under}")["v"] == value or value != value
        if isinstance(path[-1], str):
            assert tomllib.loads(f"{document.text[slice(*span.key)]} = 1") == {path[-1]: 1}


@pytest.mark.parametrize("text", [HARD, ARRAYS, "", "#", "a=1", "[t]", "[t] # c\n\na = 1\r\nb = 2\r\n"])
def test_hand_made_documents_are_mapped_whole(text: str) -> None:
    assert_spans_are_right(text)


def test_toml_files_of_this_project_are_mapped_whole() -> None:
    root = FilePath(__file__).parents[2]
    files = [root / "pyproject.toml", *(root / "configs").glob("*.toml")]
    for file in files:
        assert_spans_are_right(file.read_text())


def test_caret_for_a_parent_in_a_header_points_at_that_part() -> None:
    text = "[tool.pyworker.appp]\n"
    document = scan(text)
    assert text[slice(*document.spans["tool", "pyworker", "appp"].key)] == "appp"
    assert text[slice(*document.spans[("tool",)].key)] == "tool"


def test_place_counts_code_points_and_stops_at_the_line_end() -> None:
    document = scan('"é" = "ü"\nlong = """a\nb"""\n')
    assert document.place(document.spans["é",].value)[:3] == (1, 7, 10)
    assert document.place(document.spans["long",].value) == (2, 8, 12, 'long = """a')


@given(st.text(alphabet="[]{}=\"'#.,ab1 \n\\", max_size=60))
def test_scanning_anything_ends(text: str) -> None:
    scan(text)
    Document(text).place((0, len(text)))


# ---- documents made at random ----------------------------------------------------------------------
_BARE = st.text(alphabet="abcXYZ012-_", min_size=1, max_size=6)
_ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
_CONTROL = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def basic(text: str) -> str:
    return '"' + "".join(_CONTROL.get(c, c) for c in text) + '"'


@st.composite
def keys(draw: st.DrawFn) -> str:
    if draw(st.booleans()):
        return draw(_BARE)
    text = draw(_ANY_TEXT)
    return f"'{text}'" if "'" not in text and draw(st.booleans()) else basic(text)


@st.composite
def strings(draw: st.DrawFn) -> str:
    text = draw(_ANY_TEXT)
    match draw(st.integers(0, 3)):
        case 0:
            return basic(text)
        case 1:
            return '"""' + draw(st.sampled_from(["", "\n", '"', '""', "\\\n  "])) + basic(text)[1:-1] + '\n"""'
        case 2 if "'" not in text:
            return f"'{text}'"
        case _:
            return "'''\n" + text.replace("'", "") + draw(st.sampled_from(["", "'", "''", "\n# no = comment"])) + "'''"


_SCALARS = st.one_of(
    strings(),
    st.integers(-(10**6), 10**6).map(str),
    st.booleans().map(lambda b: str(b).lower()),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(
        lambda f: repr(float(f)) if "e" not in repr(f) else "1.5"
    ),
    st.sampled_from(
        [
            "inf",
            "-inf",
            "0x1F",
            "1_000",
            "2026-01-02T03:04:05.6+01:00",
            str(date(2026, 1, 2)),
            str(time(1, 2, 3)),
        ]
    ),
)
_GAP = st.sampled_from(["", " ", "\n", " # c ] }\n", "\t"])


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[str]) -> str:
    text = "["
    parts = draw(st.lists(items, max_size=4))
    for index, part in enumerate(parts):
        text += draw(_GAP) + part + draw(_GAP)
        if index < len(parts) - 1 or draw(st.booleans()):
            text += ","
    return text + draw(_GAP) + "]"


@st.composite
def inline_tables(draw: st.DrawFn, items: st.SearchStrategy[str]) -> str:
    names = draw(st.lists(_BARE, max_size=3, unique=True))
    return "{ " + ", ".join(f"{name} = {draw(items)}" for name in names) + " }"


_VALUES = st.recursive(_SCALARS, lambda inner: st.one_of(arrays(inner), inline_tables(inner)), max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        match draw(st.integers(0, 4)):
            case 0:
                parts = draw(st.lists(keys(), min_size=1, max_size=3))
                lines.append(
                    "[" + draw(st.sampled_from([".", " . "])).join(parts) + "]" + draw(st.sampled_from(["", " # c"]))
                )
            case 1:
                lines.append("[[" + ".".join(draw(st.lists(keys(), min_size=1, max_size=2))) + "]]")
            case _:
                path = ".".join(draw(st.lists(keys(), min_size=1, max_size=3)))
                lines.append(f"{path} = {draw(_VALUES)}" + draw(st.sampled_from(["", " # a = 1"])))
    return draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(lines)


@settings(max_examples=300, deadline=None)
@given(documents())
def test_random_documents_are_mapped_whole(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a key twice and the like: tomllib's to refuse
    assert_spans_are_right(text)

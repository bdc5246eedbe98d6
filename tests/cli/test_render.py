from __future__ import annotations

import io
import json
import os
import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.cli.live import fit
from pyworker.cli.render import (
    GLYPHS,
    Column,
    Look,
    argument,
    clean,
    cut,
    latency,
    line,
    look,
    out_json,
    pad,
    pause,
    plain,
    rate,
    ready,
    size,
    span,
    state,
    table,
    width,
    wrap,
)
from pyworker.policy.lifecycle import State
from pyworker.protocol.control import AppState


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("-1", 80), ("x", 80), ("9", 20), ("100", 100)])
def test_a_terminal_that_was_not_told_its_size_has_80_columns(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert look(Terminal()).width == width


PLAIN = Look(tty=True, color=False, ascii=False, width=0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0, "0s"), (-3, "0s"), (0.9, "0s"), (45, "45s"), (60, "1m"), (843, "14m 3s"), (3600, "1h"),
        (7860, "2h 11m"), (3605, "1h"), (273600.4, "3d 4h"), (86400 * 400, "400d"),
    ],
)  # fmt: skip
def test_spans_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "long", "short"),
    [(None, "–", "–"), (0, "0 B", "0B"), (1023, "1023 B", "1023B"), (92274688, "88 MB", "88M"), (1181116006, "1.1 GB", "1.1G"),
     (2**60, "1048576 TB", "1048576T")],
)  # fmt: skip
def test_sizes_count_in_powers_of_1024(count: int | None, long: str, short: str) -> None:
    assert size(count) == long
    assert size(count, gap="", unit="") == short


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (0.3, "0.3"), (3.0, "3"), (9.96, "10"), (1240.1, "1,240")]
)
def test_rates(value: float | None, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0 µs"), (0.000085, "85 µs"), (0.0031, "3.1 ms"), (0.0414, "41 ms"), (1.52, "1.5 s")],
)
def test_latencies(seconds: float | None, text: str) -> None:
    assert latency(seconds) == text


@given(st.text(alphabet="ab 日…", max_size=60), st.integers(4, 30), st.integers(0, 12))
def test_wrapping_loses_no_word_and_fits(text: str, columns: int, indent: int) -> None:
    text = text.strip()
    lines = wrap(text, columns, indent)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("workers", "text"),
    [({"ready": 3, "want": 4}, "3/4"), ({"ready": 0, "want": 0}, "0/0"), ({"ready": 0, "want": None}, "0/–"), ({}, "0/–")],
)
def test_what_is_wanted_may_be_unknown(workers: dict[str, int | None], text: str) -> None:
    assert ready(workers) == text


def test_wrapping_indents_what_did_not_fit() -> None:
    assert wrap("20:01 api exited: no module named redis", 20, 6) == ["20:01 api exited: no", "      module named", "      redis"]
    assert wrap("short", 20, 6) == ["short"]
    assert wrap("x" * 50, 0, 6) == ["x" * 50]


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert (width("日本"), width("e\u0301"), width("\x1b[31mred\x1b[0m")) == (4, 1, 3)
    assert cut("日本語", 5) == "日本…"
    assert cut("a-very-long-name.12", 10, ".12") == "a-very….12"
    assert pad("日本", 6) + "|" == "日本  |"


@given(st.text(), st.integers(1, 40))
def test_what_is_cut_fits(text: str, columns: int) -> None:
    assert width(cut(text, columns)) <= columns


@given(st.text())
def test_clean_text_has_nothing_that_steers_a_terminal(text: str) -> None:
    shown = clean(text)
    assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    shown.encode()
    assert "\n" not in line(text)


@pytest.mark.parametrize("how", [Look(True, False, False, 80), Look(False, False, True, 0)])
def test_json_has_nothing_that_steers_a_terminal_and_means_the_same(
    how: Look, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"m": "\x1b[2J \x9b31m \u202e \ud800 grün \n"}
    out_json(value, how)
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert clean(shown) == shown


@given(st.lists(st.lists(st.text("abc日", max_size=30), min_size=4, max_size=4), max_size=5), st.integers(30, 200))
def test_a_table_fits_the_terminal(rows: list[list[str]], columns: int) -> None:
    shape = (
        Column("NAME", shrink=8),
        Column("A", right=True, keep=1),
        Column("B", keep=2),
        Column("C", keep=3, shrink=6),
    )
    for text in table(shape, rows, PLAIN._replace(width=columns)):
        assert width(text) <= columns


def test_a_table_keeps_its_columns_where_there_are_no_glyphs() -> None:
    how = PLAIN._replace(width=16, ascii=True)
    lines = table((Column("NAME", shrink=8), Column("WHAT")), [["payments-of", "a → b"], ["mail", "–"]], how)
    assert [plain(text, how) for text in lines] == ["NAME      WHAT", "payment~  a -> b", "mail      -"]


def test_outside_a_terminal_nothing_is_cut() -> None:
    assert "x" * 500 in table((Column("NAME", shrink=8),), [["x" * 500]], PLAIN)[1]


def test_a_pause_ends_with_what_it_waits_for_or_with_the_reader_of_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    waits, comes = os.pipe()
    try:
        with open(write, "w") as out:
            monkeypatch.setattr(sys, "stdout", out)
            pause(0, waits)
            os.write(comes, b"x")
            pause(None, waits)
            os.close(read)
            with pytest.raises(BrokenPipeError):
                pause(None, waits)
    finally:
        os.close(waits)
        os.close(comes)


def test_every_state_has_its_glyph_and_nothing_else_has_one() -> None:
    assert GLYPHS.keys() == {*get_args(AppState), *(state.value for state in State)}


def test_a_state_has_its_colour_in_a_pipe_too_where_colour_is_asked_for() -> None:
    assert state("failed", Look(tty=False, color=True, ascii=False, width=0)).style == "red"


def test_a_row_that_is_cut_keeps_its_colours() -> None:
    assert fit("  api.1  \x1b[32m✓\x1b[0m ready  0.61s", 20) == "  api.1  \x1b[32m✓\x1b[0m ready  0…"
    assert fit("  api.1  \x1b[32m✓\x1b[0m ready", 9) == "  api.1 …"


@pytest.mark.parametrize(
    ("path", "said"), [("/h", "~"), ("/h/a", "~/a"), ("/h/a b", "~/'a b'"), ("/ha", "/ha"), ("/h a", "'/h a'")]
)
def test_a_path_is_said_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch, path: str, said: str) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert argument(path) == said

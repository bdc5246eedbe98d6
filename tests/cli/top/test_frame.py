"""Pictures: golden/*.txt hold them. UPDATE_GOLDEN=1 writes them anew; look at the difference before you keep it."""

from __future__ import annotations

import copy
import os
import pathlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.cli.render import ANSI, Look, plain, width
from pyworker.cli.top.frame import frame, spark
from pyworker.cli.top.model import Model
from pyworker.record import replace
from tests.cli import documents
from tests.cli.top.made import AROUND, model

GOLDEN = pathlib.Path(__file__).parent / "golden"
MADE = model()
KEYS = ["up", "down", "tab", "?", "s", "/", "x", "esc", "r", "R", "+", "-", "y", "n", "enter", "home", "end", "q"]


def look(columns: int, *, ascii: bool = False, color: bool = False) -> Look:
    return Look(tty=True, color=color, ascii=ascii, width=columns)


@pytest.mark.parametrize(
    ("name", "columns", "rows", "keys"),
    [
        ("60", 60, 24, ()), ("80", 80, 24, ()), ("120", 120, 36, ()), ("200", 200, 50, ()),
        ("short", 100, 9, ("down", "down")), ("help", 80, 24, ("?",)), ("help-60", 60, 24, ("?",)), ("scale", 80, 24, ("+", "+")),
        ("reload", 60, 24, ("tab", "r")), ("command", 80, 24, ("tab", "tab")), ("failed", 100, 24, ("end",)),
        ("filter", 80, 24, ("/", "a", "d")), ("by-cpu", 80, 24, ("c",)), ("colours", 80, 30, ()),
    ],
)  # fmt: skip
def test_pictures(name: str, columns: int, rows: int, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    made = copy.deepcopy(MADE)
    for key in keys:
        made.key(key, 60.0)
    lines = frame(made, AROUND, look(columns, color=name == "colours"), rows)
    text = "\n".join(line.rstrip().replace("\x1b", "^[") for line in lines) + "\n"
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_a_long_name_leaves_room_for_what_happened() -> None:
    made = copy.deepcopy(MADE)
    made.events[-1] = replace(made.events[-1], app="payments-of-the-northern-region", worker=12)
    (text,) = (text for text in frame(made, AROUND, look(60), 40) if "payments-of" in text)
    assert text.split("  ")[2] == "payments-of-the-….12"


def test_colour_changes_no_text() -> None:
    bare = frame(MADE, AROUND, look(120), 30)
    coloured = frame(MADE, AROUND, look(120, color=True), 30)
    assert [ANSI.sub("", text) for text in coloured] == bare
    assert any("\x1b[" in text for text in coloured)


@pytest.mark.parametrize("keys", [(), ("?",), ("/",)])
def test_keys_have_names_that_a_terminal_without_glyphs_can_show(keys: tuple[str, ...]) -> None:
    made = copy.deepcopy(MADE)
    for key in keys:
        made.key(key, 60.0)
    assert not set("".join(frame(made, AROUND, look(120, ascii=True), 24))) & set("↑↓⏎←")


@given(st.integers(20, 220), st.integers(3, 70), st.lists(st.sampled_from(KEYS), max_size=12), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_frame_always_fits_the_window(columns: int, rows: int, keys: list[str], ascii: bool) -> None:
    made = copy.deepcopy(MADE)
    for key in keys:
        made.key(key, 60.0)
    lines = frame(made, AROUND, look(columns, ascii=ascii, color=True), rows)
    assert len(lines) == rows
    assert max(width(text) for text in lines) <= columns
    if ascii:
        assert [plain(text, look(columns, ascii=True)) for text in lines] == lines  # as wide as it was measured


def test_the_selected_worker_is_always_in_the_picture() -> None:
    made = Model()
    document = documents.ps()
    document["apps"] = [documents.app("big", pool=[documents.worker(i, 1000 + i) for i in range(1, 101)])]
    made.feed(document, 0.0)
    rng = random.Random(4)
    for _ in range(50):
        made.key(rng.choice(["down", "down", "up"]), 0.0)
        lines = frame(made, AROUND, look(80), rng.randrange(12, 40))
        assert sum(f"▸  big.{made.worker} " in text for text in lines) == 1, (made.worker, lines)


def test_why_an_app_is_degraded_is_said() -> None:
    sick = documents.worker(2, 41211, "unhealthy", health="failing", reason="GET / answered 500, expected 2xx")
    document = documents.ps()
    document["apps"] = [documents.app("api", state="degraded", pool=[documents.worker(1, 41210), sick])]
    made = Model()
    made.feed(document, 0.0)
    assert "  api.2 fails its health check: GET / answered 500, expected 2xx" in frame(made, AROUND, look(80), 24)


def test_what_an_app_waits_for_is_said() -> None:
    document = documents.ps()
    document["apps"] = [documents.app("api", state="starting", notes=["waits for db, which failed"])]
    made = Model()
    made.feed(document, 0.0)
    assert "  waits for db, which failed" in frame(made, AROUND, look(80), 24)


def test_hostile_names_and_reasons_cannot_steer_the_terminal() -> None:
    document = documents.ps()
    evil = "x\x1b]0;title\x07\x1b[2J\n"
    failure = {"message": evil, "traceback": "", "hint": "", "at": ""}
    document["apps"] = [documents.app("api", state="failed", target=evil, last_failure=failure, listen=[evil])]
    made = Model()
    made.feed(document, 0.0)
    made.say(evil, 0.0)
    for rows in (30, 12):
        assert "\x1b" not in "".join(frame(made, AROUND._replace(host=evil, now=0.0), look(120), rows))


def test_without_apps_it_says_what_to_do() -> None:
    made = Model()
    made.feed({"v": 1, "apps": []}, 0.0)
    assert "pyworker start app.toml" in "\n".join(frame(made, AROUND, look(80), 10))
    assert made.key("r", 0.0) is None
    assert made.key("enter", 0.0) is None


def test_a_message_stays_for_a_while_in_its_colour_and_no_wider_than_the_window() -> None:
    made = copy.deepcopy(MADE)
    made.say(f"api reloaded {'x' * 80}", 57.0, "green")
    assert frame(made, AROUND, look(40, color=True), 24)[-1] == f"\x1b[32m api reloaded {'x' * 25}…\x1b[0m"
    late = AROUND._replace(now=80.0)
    assert frame(made, late, look(80), 24) == frame(MADE, late, look(80), 24)


def test_an_address_whose_queue_is_not_known_is_passed_over() -> None:
    document = documents.ps()
    document["apps"] = [documents.app("api", queue=[None, [3, 128], [4, 128]])]
    made = Model()
    made.feed(document, 0.0)
    made.feed(document, 1.0)
    assert "queue 3/128, 4/128" in "".join(frame(made, AROUND, look(120), 30))


def test_a_daemon_that_is_away_is_said() -> None:
    made = copy.deepcopy(MADE)
    made.away(57.0)
    assert frame(made, AROUND, look(80), 24)[-1] == (
        " no answer since 3 s; its guardian replaces a daemon that hangs within 35 s"
    )


@pytest.mark.parametrize(
    ("values", "columns", "bars"),
    [
        ([], 4, "    "), ([0, 0], 4, "  ▁▁"), ([1, 2, 4, 8], 4, "▁▂▄█"), ([None, 8], 3, "  █"),
        ([8, 8, 1, 8], 2, "▁█"), ([0.5], 1, "▁"), ([1], 0, ""),
    ],
)  # fmt: skip
def test_curves(values: list[float | None], columns: int, bars: str) -> None:
    assert spark(values, columns, look(80), least=4) == bars
    assert spark(values, columns, look(80, ascii=True), least=4).isascii()

"""How problems look: the frame, the caret in the right column, nothing of the file reaching the terminal."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pyworker.cli.problems import render
from pyworker.cli.render import Look, plain
from pyworker.config.load import load
from pyworker.config.problem import ConfigError, Problem

BAD = """[app]
target = "shop.main:app"

worker = 4
workers = "many"

[app.restart]
policy = "always"


[app.health]
path = "/healthz"
type = "htp"
"""
SHOWN = """error: unknown key `worker` in [app]
 --> app.toml:4:1
  |
4 | worker = 4
  | ^^^^^^
  = help: did you mean `workers`?

error: `app.workers` must be a whole number or "auto", not "many"
 --> app.toml:5:11
  |
5 | workers = "many"
  |           ^^^^^^
  = help: "auto" means one worker per usable CPU

error: `app.health.type` must be one of "http", "tcp", "exec", not "htp"
  --> app.toml:13:8
   |
13 | type = "htp"
   |        ^^^^^
   = help: did you mean "http"?

app.toml has 3 errors.
"""


def problem(source: str, column: int, end: int, **more: str) -> Problem:
    return Problem("m", file="/nowhere/x.toml", line=1, column=column, end_column=end, source=source, **more)


def test_three_mistakes_look_as_documented(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(BAD)
    try:
        load(str(file))
    except ConfigError as error:
        found = error.problems
    shown = render(found).replace(f"{tmp_path}/", "")
    assert shown == SHOWN


def test_colour_adds_escapes_only(tmp_path: Path) -> None:
    found = [problem("a = 1", 1, 2, hint="h")]
    coloured = render(found, True)
    assert "\033[1;31merror\033[0m" in coloured
    assert re.sub(r"\033\[[0-9;]*m", "", coloured) == render(found, False)


def test_caret_counts_wide_characters_and_tabs_as_the_terminal_does() -> None:
    lines = render([problem('\t名 = "x"', 6, 9)]).splitlines()
    assert lines[3] == '1 |     名 = "x"'
    # tab 4 columns, the wide character 2, " = " 3: the caret starts in column 9 behind the gutter
    assert lines[4] == "  | " + " " * 9 + "^^^"


def test_escapes_of_the_file_are_neutralised() -> None:
    shown = render([Problem("bad \033]0;x\007", "\033[2J", "", "/x\033[31m.toml", 1, 6, 8, "a = '\033[31m'")], False)
    assert "\033" not in shown
    assert "\\x1b[31m" in shown
    assert shown.splitlines()[4] == "  |      ^^^^^"  # \x1b is shown as four characters, [ is the fifth


def test_long_line_is_cut_around_the_mistake() -> None:
    source = "a = [" + "1, " * 300 + "x, " + "2, " * 300 + "]"
    column = source.index("x") + 1
    lines = render([problem(source, column, column + 1)]).splitlines()
    assert max(map(len, lines)) < 160
    assert lines[3][lines[4].index("^")] == "x"
    *_, written, caret = plain("\n".join(lines[:5]), Look(tty=True, color=False, ascii=True, width=80)).splitlines()
    assert written[caret.index("^")] == "x"


def test_problem_without_a_place_is_message_and_help() -> None:
    shown = render([Problem("app.toml has no app", 'add one:\n[app]\ntarget = "m:a"', file="/x/app.toml")])
    assert shown == (
        "error: app.toml has no app\n --> /x/app.toml\n  = help: add one:\n          [app]\n"
        '          target = "m:a"\n\napp.toml has 1 error.\n'
    )
    assert render([Problem("m", "h")], closing="") == "error: m\n  = help: h\n\nthe app has 1 error.\n"


@given(st.text(max_size=300), st.integers(1, 310), st.integers(0, 320))
def test_any_line_and_any_columns_can_be_shown(source: str, column: int, end: int) -> None:
    shown = render([problem(source.replace("\n", ""), column, end)])
    assert all(line.isprintable() for line in shown.splitlines())
    assert "^" in shown or not source.replace("\n", "")

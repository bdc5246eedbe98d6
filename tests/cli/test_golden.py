"""What each command shows: in a pipe, on a terminal, a narrow one, without colour, a dumb one, in a C locale.

golden/NAME.txt hold it. UPDATE_GOLDEN=1 writes them anew; look at the difference before you keep it.
"""

from __future__ import annotations

import os
import pathlib
import re

import pytest

from pyworker.cli.names import COMMANDS
from pyworker.cli.render import width
from tests.cli.scenes import SCENES, SIX_MISTAKES, Scene, Stage, stage
from tests.support.cli import OnTerminal, run, run_on_terminal

GOLDEN = pathlib.Path(__file__).parent / "golden"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LIVE = re.compile(r"\x1b\[\d+A|\x1b\[J")  # rows that are rewritten in place
# tables and cards: not one line is too wide for the terminal. Messages and data may wrap
FIT = {"top-once", "describe", "events", "scale", "stop", "help"}
TABLE = {"ps", "ps-workers"}  # and messages behind an empty line


def on_terminal(scene: Scene, at: Stage, columns: int = 100, **env: str) -> OnTerminal:
    return run_on_terminal(*scene.args, home=at.home, cwd=at.folder, columns=columns, during=_say_no, **env)


def _say_no(process: object, raw: str, terminal: int) -> None:
    if raw.endswith("[y/N]: "):
        os.write(terminal, b"n\n")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_what_a_command_shows(scene: Scene) -> None:
    parts = [f"$ pyworker {' '.join(scene.args)}".rstrip() + "\n"]
    code = 1 if scene.name == "stop-all" else scene.code  # here it can ask, and the answer is no

    def part(title: str, text: str, of: str = "") -> None:
        parts.append(f"---- {title}\n{of or text}")

    def staged(columns: int = 100, **env: str) -> tuple[OnTerminal, str]:
        with stage(scene) as at:
            done = on_terminal(scene, at, columns, **env)
            assert done.code == code, done.screen.text
            return done, at.shown(done.screen.text)

    with stage(scene) as at:
        piped = run(*scene.args, home=at.home, cwd=at.folder)
        out, err = at.shown(piped.out), at.shown(piped.err)
    assert piped.code == scene.code, piped
    assert "\x1b" not in out + err
    part(f"stdout in a pipe, exit {scene.code}", out)
    part("stderr in a pipe", err)

    wide, text = staged()
    part("terminal", text)
    narrow, narrow_text = staged(60)
    part("60 columns", narrow_text, "(as on the terminal)\n" if narrow_text == text else "")
    colourless, plain = staged(NO_COLOR="1")
    assert not COLOUR.search(colourless.raw)
    assert scene.machine or plain == text
    dumb, dumb_text = staged(TERM="dumb")
    assert "\x1b" not in dumb.raw
    part("TERM=dumb", dumb_text, "(as on the terminal)\n" if dumb_text == text else "")

    c_locale, c_text = staged(LC_ALL="C")
    assert c_locale.raw.replace("ñ", "").isascii()  # what an app prints is its own affair
    part("LC_ALL=C", c_text)
    if not scene.machine:
        _compare(GOLDEN / f"{scene.name}.txt", "".join(parts))
    if scene.name in FIT | TABLE:
        table = narrow_text.partition("\n\n")[0] if scene.name in TABLE else narrow_text
        assert max(width(line) for line in table.splitlines()) <= 60, narrow_text
    for done in (wide, narrow, c_locale):  # colours, rows that are rewritten, and nothing else
        assert "\x1b" not in LIVE.sub("", COLOUR.sub("", done.raw))


def _compare(file: pathlib.Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_every_command_has_a_scene_and_every_golden_file_too() -> None:
    assert {scene.args[0] for scene in SCENES if scene.args} >= set(COMMANDS)
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {scene.name for scene in SCENES if not scene.machine}


def test_six_mistakes_are_six_carets_under_the_text_and_five_suggestions() -> None:
    shown = (GOLDEN / "start-six-mistakes.txt").read_text().partition("---- terminal")[0]
    lines = shown.splitlines()
    carets = [(lines[i - 1], line) for i, line in enumerate(lines) if "^" in line]
    assert len(carets) == 6
    for source, caret in carets:
        marked = source[caret.index("^") : caret.rindex("^") + 1]
        assert marked in SIX_MISTAKES
        assert marked.strip('"').split(":")[0] in {"targt", "many", "127.0.0.1", "round-robbin", "allways", "helth"}
    assert shown.count("= help:") == 5
    assert lines[-1] == "app.toml has 6 errors. Nothing was started."

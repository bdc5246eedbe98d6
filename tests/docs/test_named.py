"""Every command line and every key of a config that a page names exists, with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pyworker.cli import names
from pyworker.cli.main import command_of
from pyworker.cli.names import ALIASES, HIDDEN
from pyworker.cli.topics import TOPICS
from pyworker.config.convert import hints_of, table_class
from pyworker.config.schema import AppConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
TYPED = re.compile(r"^(?:\$ |sudo |RUN |ExecStart=)*(pyworker(?: .*)?)$")
# where a command line ends, and a shell or a remark begins
_END_WORDS = {"|", ">", "<", "&&", "||", ";", "...", "2>/dev/null", "2>&1"}
END = re.compile(r"\s(?:\||>|<|&&|\|\||;|2>|#)|…|\.\.\.|;|   ")
# what processes are called, not commands
TITLES = {"guardian", "dispatcher", "template", "logger", "spare"}


def typed(page: Path) -> Iterator[str]:
    """The command lines of a page, those in running text too."""
    text = page.read_text(encoding="utf-8")
    for info, block in FENCE.findall(text):
        if info.split(" ")[0] in ("", "console", "sh", "text", "bash"):
            for line in block.split("\n"):
                if found := TYPED.match(line.strip()):
                    yield found[1]
    for span in SPAN.findall(FENCE.sub("", text)):
        if found := TYPED.match(span):
            yield found[1]


def wrong(line: str) -> str:
    """What is wrong with a command line, "" when nothing is."""
    line = line.split("   ")[0]
    try:
        words = shlex.split(line.replace("\\", ""), comments=True)[1:]
    except ValueError:  # a ; or | that ended it stood in quotes
        words = shlex.split(END.split(line)[0].replace("\\", ""))[1:]
    stop = next((i for i, word in enumerate(words) if word in _END_WORDS or "…" in word or word.endswith(";")), len(words))
    words = [word.rstrip(";") for word in words[: stop + 1] if word not in _END_WORDS and "…" not in word]
    words = [word for word in words if not word.startswith("[")]  # of a synopsis
    words = words[: words.index("--")] if "--" in words else words
    if not words or words[0].startswith("-") or words[0].isupper() or words[0] in TITLES:
        return ""
    if words[0] == "help":
        return "" if not words[1:] or words[1].isupper() or words[1] in {*TOPICS, "topics", "man"} or command_of(words[1]) else f"no topic {words[1]}"
    command = command_of(ALIASES.get(words[0], words[0]))
    if command is None:
        return f"no command {words[0]}"
    context = click.Context(command)
    words = words[1:]
    if isinstance(command, click.Group) and words and words[0].islower() and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        if inner is None:
            return f"no command {words[0]}"
        command, words = inner, words[1:]
    try:
        command.make_parser(click.Context(command, info_name="x", **command.context_settings)).parse_args(words)
    except click.UsageError as error:
        return error.format_message()
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_line_of_the_page_can_be_typed(page: Path) -> None:
    assert [(line, why) for line in typed(page) if (why := wrong(line))] == []


def test_a_command_line_that_cannot_be_typed_is_found() -> None:
    assert wrong("pyworker reload api --wait") == ""
    assert wrong("pyworker daemon upgrade --force | cat") == ""
    assert "no command reloda" in wrong("pyworker reloda api")
    assert "--canary" in wrong("pyworker reload --canary 1")
    assert "no command fly" in wrong("pyworker daemon fly")
    assert sum(len(list(typed(page))) for page in PAGES) > 250


TABLES = {name: table for name, hint in hints_of(AppConfig).items() if (table := table_class(hint)) is not None}
KEY = re.compile(rf"`((?:{'|'.join(TABLES)})\.(?!py\b|toml\b)[a-z_]+)(?=[` =,])")
ELSEWHERE = {"http.disconnect", "http.server", "hooks.before_start"}  # ASGI's, Python's, circus'
HEADER = re.compile(r"`\[(?:app|apps\.[\w-]+|defaults)\.(\w+)\]`")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_key_of_a_config_that_the_page_names_is_one(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    keys = {f"{table}.{key}" for table, found in TABLES.items() for key in hints_of(found)} | ELSEWHERE
    assert set(KEY.findall(text)) - keys == set()
    assert set(HEADER.findall(text)) - {*TABLES, "env"} == set()


def test_words_of_other_programs_are_no_commands_and_what_is_said_to_them_is_one() -> None:
    assert set(names.ELSEWHERE).isdisjoint({*names.COMMANDS, *ALIASES, *HIDDEN})
    for word, answer in names.ELSEWHERE.items():
        for line in re.findall(r"pyworker (?!does|itself|is )(?:[a-z-]+)(?: -[-\w]+| [A-Z]+)*", answer):
            assert wrong(line) == "", (word, line)

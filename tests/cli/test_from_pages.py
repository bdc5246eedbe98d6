"""docs/from-*.md: every command in them exists, and every option of the config is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyworker.cli.names import ALIASES, COMMANDS, HIDDEN
from pyworker.config.canonical import flat
from pyworker.config.convert import hints_of, table_class
from pyworker.config.schema import AppConfig

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("from-*.md"))


def known_keys() -> set[str]:
    found = set(flat(AppConfig("x", target="a:b")))
    for name, hint in hints_of(AppConfig).items():
        found.add(name)
        if (nested := table_class(hint)) is not None:
            found |= {f"{name}.{inner}" for inner in hints_of(nested)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_command_and_key_exists(page: Path) -> None:
    text = page.read_text()
    for command in re.findall(r"`pyworker ([a-z]+)", text):
        assert command in COMMANDS or command in ALIASES or command in HIDDEN or command == "export", command
    keys = known_keys()
    for row in re.findall(r"^\| .*? \| (.*) \|$", text, re.MULTILINE):
        for key in re.findall(r"`([a-z_]+\.[a-z_]+)[ `=]", row):
            assert key in keys or key.startswith("env."), key


def test_there_is_a_page_for_each_peer() -> None:
    assert {p.stem for p in PAGES} == {
        f"from-{n}" for n in ("pm2", "supervisor", "gunicorn", "uvicorn", "uwsgi", "circus")
    }

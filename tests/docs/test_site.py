"""The documents as a whole: every page can be reached, every example of a config is one.

That links lead somewhere is looked at by tests/architecture, blocks with a title by test_examples.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pyworker.config.jsonschema import schema
from pyworker.config.load import load

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = jsonschema.Draft7Validator(schema())
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"^(```|~~~).*?^\1$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}:{i}")
    for page in PAGES
    for i, text in enumerate(TOML.findall(page.read_text(encoding="utf-8")), 1)
]


def links(page: Path) -> set[Path]:
    """The files that a page links to."""
    found = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    paths = [link.partition("#")[0] for link in found if "://" not in link and not link.startswith("mailto:")]
    return {(page.parent / path).resolve() for path in paths if path}


def entries(nav: Any) -> Iterator[str]:
    for value in nav if isinstance(nav, list) else nav.values():
        if isinstance(value, str):
            yield value
        else:
            yield from entries(value)


def test_the_site_has_every_page_once() -> None:
    nav = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    decisions = {page for page in pages if page.startswith("decisions/")} - {"decisions/README.md"}
    assert sorted(nav) == sorted((pages - decisions) | {"index.md"})


def test_the_readme_links_every_page_and_the_decisions_theirs() -> None:
    from_readme = links(ROOT / "README.md")
    from_decisions = links(ROOT / "docs" / "decisions" / "README.md")
    for page in (ROOT / "docs").rglob("*.md"):
        by = from_decisions if page.parent.name == "decisions" and page.name != "README.md" else from_readme
        assert page in by, f"nothing leads to {page.relative_to(ROOT)}"


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_of_a_config_is_one_to_the_loader_and_to_the_schema(text: str, tmp_path: Path) -> None:
    """A part of a file may leave out the app itself; then one is put around it."""
    file = tmp_path / "app.toml"
    if not re.search(r"^\[(\[?app\]?|apps\..*)\]$", text, re.MULTILINE):
        text = f'[app]\ntarget = "shop:app"\nbind = "127.0.0.1:8000"\n\n{text}'
    elif "[apps." not in text and not re.search(r"^(target|command|script)\b", text, re.MULTILINE):
        text = re.sub(r"^(\[\[?app\]\]?)$", r'\1\ntarget = "shop:app"', text, count=1, flags=re.MULTILINE)
    file.write_text(text)
    assert load(str(file)).apps
    SCHEMA.validate(tomllib.loads(text))

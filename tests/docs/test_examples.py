"""Every file and every command of the documents is real: written, typed, and compared with what the page shows."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from tests.docs.document import Command, File, Run, blurred, steps
from tests.support.pyworker import running

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "docs" / "tutorial.md", *(ROOT / "docs" / "guides").glob("*.md")])
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs the curl command (apt install curl)")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node (apt install nodejs)")


@needs_curl
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[needs_node] if page.stem == "node" else [], id=str(page.relative_to(ROOT))) for page in PAGES],
)
def test_the_page_does_what_it_shows(page: pathlib.Path) -> None:
    with running() as pw:
        assert Run(pw, page).carry_out() >= 1


def test_a_document_is_read_as_files_and_commands() -> None:
    text = '```python title="a.py"\nx = 1\n```\n\n```console\n$ one \\\n  two\nout\n$ three\n```\n\n```sh\n$ no\n```\n'
    assert list(steps(text)) == [File("a.py", "x = 1\n"), Command("one \\\n  two", ("out",)), Command("three", ())]


def test_what_differs_from_run_to_run_is_not_compared() -> None:
    assert blurred("shop.1   ready 0.04s pid=11927") == blurred("shop.1 ready 1.2s pid=7")
    assert blurred("shop.1 ready 0.04s pid=11927") != blurred("shop.2 ready 0.04s pid=11927")

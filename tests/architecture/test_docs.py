"""Documents are true to the code: what they name exists, what is generated is current, links lead somewhere."""

from __future__ import annotations

import ast
import pathlib
import re
import runpy

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"`([\w/]+\.py): ([\w.]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def definitions(path: pathlib.Path) -> set[str]:
    """Return the functions of a file, methods as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{x.name}"
                for x in node.body
                if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return found


def test_every_function_of_the_walks_exists() -> None:
    named = NAMED.findall(ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) > 30
    missing = []
    for file, function in named:
        path = ROOT / "pyworker" / file
        if not path.is_file() or function not in definitions(path):
            missing.append(f"{file}: {function}")
    assert missing == []


def test_every_file_of_the_codemap_exists() -> None:
    text = (
        ARCHITECTURE.read_text(encoding="utf-8").partition("## Where to find what")[2].partition("\n## ")[0]
    )
    missing = []
    inside = ""  # of a table of one folder
    for line in text.splitlines():
        if (heading := re.match(r"### In `(\w+)/`", line)) is not None:
            inside = heading[1]
        folder = inside or "".join(re.findall(r"^\| `(\w+)/` \|", line))
        names = re.findall(r"`([\w/]+(?:\.py|/))`", line.partition("|")[2].partition("|")[2]) if folder else []
        missing += [name for name in names if not (ROOT / "pyworker" / folder / name).exists()]
    assert missing == []


def test_every_folder_is_in_the_codemap() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    folders = {
        p.parent.name
        for p in (ROOT / "pyworker").glob("*/__init__.py")
        if len(p.read_bytes().splitlines()) >= 1
    }
    assert [f for f in sorted(folders) if f"| `{f}/` |" not in text] == []


@pytest.mark.parametrize(
    "name", ["lifecycle.md", "commands.md", "configuration.md", "pyworker.1", "json.md", "exit-codes.md"]
)
def test_what_is_made_from_the_code_is_current(name: str) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make.py"))["PAGES"]
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made[name](), "run: make docs"


def anchors(document: pathlib.Path) -> set[str]:
    """The places that a link may point at: headings, as GitHub and MkDocs name them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h)).strip().lower() for h in headings]
    return {re.sub(r"\s", "-", word) for word in words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: pathlib.Path) -> None:
    broken = []
    for match in LINK.finditer(document.read_text(encoding="utf-8")):
        target, _, place = (match[1] or match[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        page = document.parent / target if target else document
        if not page.exists() or (place and page.suffix == ".md" and place not in anchors(page)):
            broken.append(match[1] or match[2])
    assert broken == []

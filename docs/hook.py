"""For `mkdocs build`: README.md is the first page, and links to files outside of docs/ become plain text.

The pages link into the source so that they can be read in a checkout; a site has no source to link to.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the README as index.md; it is not copied into docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Keep the words of links that lead out of docs/ or to a folder, drop the links."""
    folder = posixpath.dirname("docs/" + page.file.src_uri)

    def inside(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        path = target.partition("#")[0]
        if "://" in target or not path:
            return match[0]
        full = posixpath.normpath(posixpath.join(folder, path))
        # files that are no page (a .py, a .json) stay linked when the site has them
        there = full.startswith("docs/") and (ROOT / full).is_file() and not full.endswith((".py", ".1"))
        return match[0] if there else ("" if image else words)

    text = LINK.sub(inside, markdown)
    return re.sub(r'^```(\w+) title="([^"]+)"$', r"`\2`:\n\n```\1", text, flags=re.MULTILINE)

"""Change one value in the text of a config file: every other byte, comments included, stays as it is. Pure."""

from __future__ import annotations

import re
import tomllib

from pyworker.config.canonical import literal
from pyworker.config.spans import Path, scan


class CannotEdit(ValueError):
    """The text has no place for this value that is safe to write to."""


def set_value(text: str, table: Path, key: str, value: object) -> str:
    """Return the text with `key` of a table set: replaced where it stands, else added below the table's header."""
    mark = "\ufeff" if text.startswith("\ufeff") else ""  # some editors put it there
    text = text.removeprefix(mark)
    document = scan(text)
    new = literal(value)
    # with each line's own end: a span counts it as one
    characters = re.findall(r"\r\n|.", text, re.DOTALL)
    span = document.spans.get((*table, key))
    if span is not None:
        start, end = span.value
        characters[start:end] = [new]
    else:
        header = _header_end(document.text, document.spans.get(table), table)
        characters.insert(header, f"{key} = {new}{characters[header - 1]}")
    changed = "".join(characters)
    if not _is_only_this_changed(text, changed, (*table, key), value):
        raise CannotEdit(f"{'.'.join(map(str, (*table, key)))} stands where it cannot be changed safely")
    return mark + changed


def _header_end(text: str, span: object, table: Path) -> int:
    """Return where the line after a table's [header] begins."""
    start, end = getattr(span, "value", (0, 0))
    if not text[start:end].startswith("["):
        raise CannotEdit(f"there is no [{'.'.join(map(str, table))}] to add to")
    line_end = text.find("\n", end)
    if line_end < 0:
        raise CannotEdit(f"[{'.'.join(map(str, table))}] is the last line and has no end")
    return line_end + 1


def _is_only_this_changed(before: str, after: str, path: Path, value: object) -> bool:
    """Parse both and compare: whatever the spans say, a file is never damaged."""
    try:
        old, new = tomllib.loads(before), tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return False
    here = old
    for part in path[:-1]:
        here = here[part]  # type: ignore[index]
        if not isinstance(here, dict):
            return False
    here[str(path[-1])] = value
    return old == new

"""Collects the problems of one config and finds each one's place in the text. Knows no rule of its own."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pyworker.config.problem import ConfigError, Problem
from pyworker.config.spans import Document, Path

MAX_PROBLEMS = 100  # a file that is something else altogether; nobody reads more
MAX_SOURCE = 2000

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")


class Report:
    """What is wrong so far. Without a document (options, inline tables) problems have a key and no line."""

    def __init__(self, file: str = "", document: Document | None = None) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.failed: set[Path] = set()  # what a problem was reported about
        self.attempted: set[Path] = set()  # keys that are there, or were most likely meant by one that is there
        self.root: Path = ()  # where the tables of the file begin: ("tool", "pyworker") in pyproject.toml
        self.profile = ""  # whose tables are laid on the others
        self._document = document

    def add(
        self,
        path: Path,
        message: str,
        hint: str = "",
        *,
        at: Literal["key", "value"] = "value",
        code: str = "invalid_value",
    ) -> None:
        """Report a problem with what stands at `path`; a path that is not in the text is shown at its table.

        Raise ConfigError when nobody would read more: to look for what was meant thousands of times takes minutes.
        """
        self.failed.add(path)
        line, column, end, source = self._place(path, at)
        source = source if len(source) <= MAX_SOURCE else ""
        found = Problem(message, hint, dotted(path), self.file, line, column, end, source, code)
        if found not in self.problems:
            self.problems.append(found)
        if len(self.problems) >= MAX_PROBLEMS:
            self.stop_if_wrong()

    @property
    def has_text(self) -> bool:
        """False for what was not read from a file."""
        return self._document is not None

    def has(self, path: Path) -> bool:
        """True when the text says something at this path."""
        return self._document is not None and path in self._document.spans

    def is_table(self, path: Path) -> bool:
        """True when the text has something in it, false for a single value."""
        spans = self._document.spans if self._document is not None else ()
        return any(len(other) > len(path) and other[: len(path)] == path for other in spans)

    def failed_below(self, path: Path) -> bool:
        """True when a problem was reported about this path or something in it."""
        return any(p[: len(path)] == path for p in self.failed)

    def stop_if_wrong(self) -> None:
        """Raise ConfigError with all problems so far, in the order of the text."""
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda p: (p.line, p.column)))

    def _place(self, path: Path, at: str) -> tuple[int, int, int, str]:
        if self._document is None:
            return 0, 0, 0, ""
        for length in range(len(path), 0, -1):
            span = self._document.spans.get(path[:length])
            if span is not None:
                return self._document.place(span.key if at == "key" and length == len(path) else span.value)
        return 0, 0, 0, ""


def dotted(path: Path) -> str:
    """Return a path as it is written: apps.web.bind[0]; odd names in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _PLAIN.match(part) else json.dumps(short(part), ensure_ascii=False)
            text += f".{name}" if text else name
    return text


def short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def shown(value: Any) -> str:
    """Return a value as one would write it in TOML; what is long is cut, lists and tables are only named."""
    match value:
        case str():
            return json.dumps(short(value), ensure_ascii=False)
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if abs(value) < 10**30 else "a number this large"
        case float():
            return f"{value:g}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"

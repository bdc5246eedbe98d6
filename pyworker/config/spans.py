"""Where every key and value of a TOML text stands. Pure; for messages, never for values.

1. `scan` is given text that tomllib has accepted; it never judges. What it does not understand it leaves out.
2. A path is what one would index the parsed document with: ("apps", "web", "bind", 0).
3. Where a key is written several times (a parent in several headers) its first place counts; a table's own
   [header] counts before a mere mention.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"[ \t]*")
_SPACE = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")  # between the items of an array
_SCALAR = re.compile(r"[^,\]}#\n]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")'
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


class Span(NamedTuple):
    """Offsets into the text, ends exclusive. Items of arrays have no key: it is the value's."""

    key: tuple[int, int]
    value: tuple[int, int]


class Place(NamedTuple):
    """Line and columns as Problem has them; what runs over several lines is cut at its first."""

    line: int
    column: int
    end_column: int
    source: str


class Document:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")  # as tomllib does, so that its positions are ours
        self._starts = [0, *(m.end() for m in re.finditer("\n", self.text))]
        self.spans: dict[Path, Span] = {}
        self._lengths: dict[Path, int] = {}  # arrays of tables: how many headers so far
        self._headed: set[Path] = set()

    def place(self, span: tuple[int, int]) -> Place:
        start, end = span
        row = bisect.bisect_right(self._starts, start) - 1
        source = self.line(row + 1)
        column = start - self._starts[row] + 1
        last = min(end - self._starts[row], len(source)) + 1
        return Place(row + 1, column, max(last, column + 1), source)

    def line(self, number: int) -> str:
        """Return a line by its number (from 1); "" behind the end."""
        if not 1 <= number <= len(self._starts):
            return ""
        start = self._starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : len(self.text) if end < 0 else end]

    @property
    def lines(self) -> int:
        """How many lines there are; the empty one behind a last newline counts."""
        return len(self._starts)


def scan(text: str) -> Document:
    """Find all keys and values of a valid TOML text."""
    document = Document(text)
    try:
        _Scanner(document).document()
    except (_Lost, IndexError, RecursionError):
        pass  # a message without a caret is better than none
    return document


class _Lost(Exception):
    """Something that is not TOML as we know it."""


class _Scanner:
    def __init__(self, document: Document) -> None:
        self._text = document.text
        self._out = document
        self._at = 0

    def document(self) -> None:
        table: Path = ()
        while True:
            self._skip(_SPACE)
            if self._at >= len(self._text):
                return
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        start = self._at
        several = self._text.startswith("[[", start)
        brackets = 2 if several else 1
        self._at += brackets
        keys = self._keys()
        self._skip(_BLANK)
        self._at += brackets
        path: Path = ()
        for index, (name, span) in enumerate(keys):
            path = (*path, name)
            last = index == len(keys) - 1
            if last and not several:
                self._note(path, span, (start, self._at), header=True)
            else:
                self._note(path, span, span)
            if last and several:
                number = self._out._lengths[path] = self._out._lengths.get(path, -1) + 1
                path = (*path, number)
                self._note(path, span, (start, self._at), header=True)
            elif path in self._out._lengths:
                path = (*path, self._out._lengths[path])
        return path

    def _pair(self, table: Path) -> None:
        keys = self._keys()
        self._skip(_BLANK)
        if self._text[self._at] != "=":
            raise _Lost
        self._at += 1
        self._skip(_BLANK)
        path = table
        for name, span in keys[:-1]:
            path = (*path, name)
            self._note(path, span, span)
        name, span = keys[-1]
        self._value((*path, name), span)

    def _value(self, path: Path, key: tuple[int, int] | None) -> None:
        start = self._at
        # before the items, so that the dict is in the order of the text
        self._out.spans.setdefault(path, Span(key or (start, start), (start, start)))
        match self._text[start]:
            case '"' | "'":
                self._match(_STRING)
            case "[":
                self._items("]", lambda index: self._value((*path, index), None))
            case "{":
                self._items("}", lambda _: self._pair(path))
            case _:
                self._at = start + len(self._match(_SCALAR).rstrip())
        value = (start, self._at)
        self._out.spans[path] = Span(key or value, value)

    def _items(self, closing: str, read: Callable[[int], None]) -> None:
        """Read what stands in brackets, with commas between."""
        self._at += 1
        for index in itertools.count():
            self._skip(_SPACE)
            if self._text[self._at] == closing:
                self._at += 1
                return
            read(index)
            self._skip(_SPACE)
            if self._text[self._at] == ",":
                self._at += 1

    def _keys(self) -> list[tuple[str, tuple[int, int]]]:
        """Read a dotted key: each part's name and its span (quotes included)."""
        found = []
        while True:
            self._skip(_BLANK)
            start = self._at
            if self._text[start] in "\"'":
                raw = self._match(_STRING)
                name = _unescape(raw[1:-1]) if raw[0] == '"' else raw[1:-1]
            else:
                name = self._match(_BARE)
            found.append((name, (start, self._at)))
            self._skip(_BLANK)
            if self._at >= len(self._text) or self._text[self._at] != ".":
                return found
            self._at += 1

    def _note(self, path: Path, key: tuple[int, int], value: tuple[int, int], *, header: bool = False) -> None:
        if header and path not in self._out._headed:
            self._out._headed.add(path)
            self._out.spans[path] = Span(key, value)
        else:
            self._out.spans.setdefault(path, Span(key, value))

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise _Lost
        self._at = match.end()
        return match[0]


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        digits = match[1] or match[2]
        return chr(int(digits, 16)) if digits else _ESCAPES.get(match[3], match[3])

    return _ESCAPE.sub(one, text)

"""CLI: lines of logs as records: a line and what belongs to it. Filters for whole records, levels, JSON lines laid out. Pure.

A record is a line and the lines of the same worker and stream that continue it: indented ones, and a traceback with
its last line, its causes too. So a pattern that meets any line of a traceback means all of it.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from pyworker.cli.logview import Entry

Key = tuple[bytes, bytes, bytes]
_TRACEBACK = b"Traceback (most recent call last):"
_CHAINS = (b"During handling of the above exception", b"The above exception was the direct cause", b"Caused by: ")
_GAP = 2.0  # seconds: what is printed later than this after a line does not continue it
_MOST_LINES = 2000  # of one record

LEVELS = {"trace": 5, "debug": 10, "info": 20, "notice": 25, "warning": 30, "error": 40, "critical": 50}
_SAME = {"warn": "warning", "err": "error", "fatal": "critical", "panic": "critical", "alert": "critical",
         "emerg": "critical", "crit": "critical", "dbg": "debug", "inf": "info", "wrn": "warning"}  # fmt: skip
_WORDS = "trace|debug|info|notice|warning|warn|error|err|critical|crit|fatal|panic|alert|emerg"
# a level is a word in capitals, or one that is marked as such: [info], info:, level=info
_LEVEL = re.compile(rf"\b({_WORDS.upper()})\b|\blevel=\"?({_WORDS})\b|\[({_WORDS})\s*\]|(?:^|\s)({_WORDS}):", re.ASCII)
_LEVEL_KEYS = ("level", "levelname", "severity", "lvl", "log.level", "log_level")
_MESSAGE_KEYS = ("msg", "message", "event", "text")
_TIME_KEYS = ("ts", "time", "timestamp", "@timestamp", "asctime", "datetime")
_TRACE_KEYS = ("exc_info", "exception", "traceback", "stack", "stack_trace", "error.stack_trace", "exc_text")


class _Record:
    """A record that may go on."""

    def __init__(self, first: Entry) -> None:
        self.lines = [first]
        self.ended = False
        # "line": one line so far, or indented ones; "trace": in a traceback; "raised": after its last line
        self.state = "trace" if first.msg.startswith(_TRACEBACK) else "line"

    def take(self, line: Entry) -> bool:
        msg = line.msg
        state = self.state
        if len(self.lines) >= _MOST_LINES:
            return False
        if msg[:1] in (b" ", b"\t"):
            pass
        elif not msg.strip():
            if state == "line":
                return False
        elif msg.startswith(_TRACEBACK):
            state = "trace"
        elif state == "trace":
            state = "raised"
        elif state == "raised" and msg.startswith(_CHAINS):
            state = "chain"
        else:
            return False
        if _seconds(self.lines[-1].ts, line.ts) > _GAP:
            return False
        self.state = state
        self.lines.append(line)
        return True


def goes_on(msg: bytes) -> bool:
    """True for a line that is rarely the first of a record."""
    return not msg.strip() or msg[:1] in (b" ", b"\t") or msg.startswith((_TRACEBACK, *_CHAINS))


def _seconds(before: bytes, after: bytes) -> float:
    if before[:19] == after[:19]:
        return 0.0
    try:
        first, last = (datetime.fromisoformat(ts.decode("ascii", "replace")) for ts in (before, after))
        return (last - first).total_seconds()
    except ValueError:
        return 0.0


class Grouper:
    """Puts lines together as records, which come out in the order of their first lines."""

    def __init__(self) -> None:
        self._open: dict[Key, _Record] = {}
        self._queue: deque[_Record] = deque()

    def add(self, line: Entry) -> list[list[Entry]]:
        """Take a line; return the records that are complete by now."""
        key = (line.name, line.pid, line.stream)
        record = self._open.get(key)
        if record is None or not record.take(line):
            if record is not None:
                record.ended = True
            self._open[key] = record = _Record(line)
            self._queue.append(record)
        found = []
        while self._queue:
            first = self._queue[0]
            if not first.ended and (first is record or _seconds(first.lines[-1].ts, line.ts) <= _GAP):
                break
            self._drop(self._queue.popleft())
            found.append(first.lines)
        return found

    def flush(self) -> list[list[Entry]]:
        """Return all records as they are so far."""
        found = [record.lines for record in self._queue]
        self._queue.clear()
        self._open.clear()
        return found

    def __len__(self) -> int:
        return len(self._queue)

    def _drop(self, record: _Record) -> None:
        first = record.lines[0]
        key = (first.name, first.pid, first.stream)
        if self._open.get(key) is record:
            del self._open[key]


def group(lines: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the records of lines that are in the order of their times."""
    grouper = Grouper()
    for line in lines:
        yield from grouper.add(line)
    yield from grouper.flush()


class Filter:
    """Which records are wanted: all patterns of `include` met, none of `exclude`, at least this level."""

    def __init__(self, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), level: str = "") -> None:
        self._include = [re.compile(p, re.MULTILINE) for p in include]
        self._exclude = [re.compile(p, re.MULTILINE) for p in exclude]
        self._level = LEVELS[level] if level else 0

    def __bool__(self) -> bool:
        return bool(self._include or self._exclude or self._level)

    def wants(self, record: list[Entry]) -> bool:
        text = b"\n".join(line.msg for line in record).decode("utf-8", "backslashreplace")
        if not all(p.search(text) for p in self._include) or any(p.search(text) for p in self._exclude):
            return False
        return not self._level or level_of(text) >= self._level


def level_of(text: str) -> int:
    """Return the level of a record; one that says none counts as info, with a traceback as an error."""
    fields = parse_json(text.encode()) if text.startswith("{") else None
    name = level_name(fields) if fields is not None else ""
    if not name and (match := _LEVEL.search(text[:80])):
        name = level_word(next(filter(None, match.groups())))
    if name:
        return LEVELS[name]
    return 40 if "Traceback (most recent call last):" in text else 20


def level_name(fields: dict[str, Any]) -> str:
    """Return the level that a JSON line says, in our word for it; "" when it says none."""
    for key in _LEVEL_KEYS:
        value = fields.get(key)
        if isinstance(value, str):
            name = level_word(value)
            if name in LEVELS:
                return name
        elif isinstance(value, (int, float)) and not isinstance(value, bool):  # as pino and bunyan count
            return next((n for n, top in _NUMBERS if value <= top), "critical")
    return ""


_NUMBERS = (("trace", 10), ("debug", 20), ("info", 30), ("warning", 40), ("error", 50))


def level_word(word: str) -> str:
    """Return our word for a level: "WARN" is "warning"."""
    word = word.strip().lower()
    return _SAME.get(word, word)


def parse_json(msg: bytes, *, strict: bool = False) -> dict[str, Any] | None:
    """Return a line that is a JSON object, None for any other. `strict`: with null for NaN and its like, which JSON lacks."""
    if not msg.startswith(b"{") or not msg.rstrip().endswith(b"}"):
        return None
    try:
        value = json.loads(msg, parse_constant=lambda _: None, parse_float=_finite) if strict else json.loads(msg)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def lay_out(msg: bytes) -> tuple[str, list[str]] | None:
    """Return a JSON line as a level and lines to read: the message and its fields, then a traceback's lines.

    None for a line that is no JSON object, or one without a message. Its time is left out: the prefix has one.
    """
    fields = parse_json(msg)
    if fields is None:
        return None
    key = next((k for k in _MESSAGE_KEYS if isinstance(fields.get(k), str)), None)
    if key is None:
        return None
    level = level_name(fields)
    below: list[str] = []
    shown = []
    for name, value in fields.items():
        if name == key or name in _TIME_KEYS or (name in _LEVEL_KEYS and level):
            continue
        if name in _TRACE_KEYS and isinstance(value, str) and "\n" in value:
            below += ["  " + line for line in value.strip("\n").split("\n")]
        elif value not in (None, ""):
            shown.append(f"{name}={_value(value)}")
    head = fields[key].split("\n")
    text = "  ".join([head[0], " ".join(shown)]) if shown else head[0]
    return level, [text, *("  " + line for line in head[1:]), *below]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if re.search(r"[\s\"=]", value) else value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

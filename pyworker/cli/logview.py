"""CLI: records of log files as lines for a person, a pipe or a program. Pure: no file, no clock, no terminal.

An app's output can never steer the terminal: control characters are made visible, except with --raw.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pyworker.cli.render import Look, clean
from pyworker.protocol.inherited import APP_NAME
from pyworker.protocol.logs import parse_record

_SAFE = bytes([9, *range(0x20, 0x7F)])  # a line of nothing else needs no closer look
_COLORS = (b"36", b"33", b"32", b"35", b"34", b"96", b"93", b"92", b"95", b"94")
_LEVEL_COLORS = {"warning": b"33", "error": b"31", "critical": b"1;31", "debug": b"2", "trace": b"2"}
_MOST_HELD = 1024 * 1024  # bytes of one unfinished line


_MARKS = {b"out|": (b"out", False), b"err|": (b"err", False), b"out+": (b"out", True), b"err+": (b"err", True)}
_new_entry = tuple.__new__
_names: set[bytes] = set()  # seen and found to be APP.N; checking each once is enough


class Entry(NamedTuple):
    """A line of a log: `name` is "api.2"; `stream` is "out" or "err"; `partial`: the next one goes on with it."""

    ts: bytes
    name: bytes
    pid: bytes
    stream: bytes
    partial: bool
    msg: bytes


def entry(line: bytes) -> Entry | None:
    """Parse a line of a log file (either format); None for one that is no record."""
    is_json = line.startswith(b"{")  # then what an app prints may look like a head of the other format
    parts = line.split(b" ", 4)
    if len(parts) == 5 and not is_json:
        ts, name, pid, mark, msg = parts
        known = _MARKS.get(mark)
        if known is not None and pid.isdigit() and len(pid) < 20 and (name in _names or _is_name(name)):
            return _new_entry(Entry, (ts, name, pid, *known, msg))  # what Entry(...) does, in half the time
    record = parse_record(line) if is_json else None
    if record is None or not APP_NAME.match(record.app):
        return None
    name = f"{record.app}.{record.worker}".encode()
    return Entry(record.ts.encode(), name, b"%d" % record.pid, record.stream.encode(), record.partial, record.msg)


def _is_name(name: bytes) -> bool:
    app, _, worker = name.rpartition(b".")
    good = worker.isdigit() and len(worker) < 20 and APP_NAME.match(app.decode("latin-1")) is not None
    if good and len(_names) < 10_000:
        _names.add(name)
    return good


class Choice:
    """Which lines are wanted: names ("api", "api.2", globs; none = all), streams, times (UTC stamps; "" = open)."""

    def __init__(
        self, names: tuple[str, ...] = (), stream: str = "", since: str = "", until: str = "", pid: int = 0
    ) -> None:
        self._pid = b"%d" % pid if pid else b""
        self._names = () if "all" in names else names
        self._stream = stream.encode()
        self._since = since.encode()
        self._until = until.encode()
        self._known: dict[bytes, bool] = {}
        self._everything = not self._names and not stream and not until and not since and not pid

    def wants(self, found: Entry) -> bool:
        if self._everything:
            return True
        if (self._stream and found.stream != self._stream) or (self._pid and found.pid != self._pid):
            return False
        if (self._since and found.ts < self._since) or (self._until and found.ts > self._until):
            return False
        known = self._known.get(found.name)
        if known is None:
            known = self._known[found.name] = self._is_named(found.name.decode("utf-8", "replace"))
        return known

    def is_before(self, found: Entry) -> bool:
        """True for an entry older than all that is wanted."""
        return bool(self._since) and found.ts < self._since

    def wants_app(self, app: str) -> bool:
        return not self._names or any(fnmatchcase(app, _app_of(n)) for n in self._names)

    def _is_named(self, name: str) -> bool:
        app, _, worker = name.rpartition(".")
        full = f"{app}.template" if worker == "0" else name
        return not self._names or any(fnmatchcase(app, n) or fnmatchcase(full, n) for n in self._names)


def _app_of(selector: str) -> str:
    app, dot, worker = selector.rpartition(".")
    return app if dot and (worker.isdigit() or worker == "template" or "*" in worker) else selector


class Joiner:
    """Puts the parts of lines together again, per worker and stream."""

    def __init__(self) -> None:
        self._parts: dict[tuple[bytes, bytes, bytes], list[Entry]] = {}
        self._sizes: dict[tuple[bytes, bytes, bytes], int] = {}

    def add(self, found: Entry) -> Entry | None:
        """Return the whole line that an entry ends, or None when it goes on."""
        if not found.partial and not self._parts:
            return found
        key = (found.name, found.pid, found.stream)
        self._parts.setdefault(key, []).append(found)
        size = self._sizes[key] = self._sizes.get(key, 0) + len(found.msg)
        return None if found.partial and size <= _MOST_HELD else self._take(key)

    def held(self) -> list[Entry]:
        """Return the lines that nothing has ended, as they are so far, and forget them."""
        return [self._take(key) for key in list(self._parts)]

    def __len__(self) -> int:
        return len(self._parts)

    def _take(self, key: tuple[bytes, bytes, bytes]) -> Entry:
        parts = self._parts.pop(key)
        del self._sizes[key]
        return parts[-1]._replace(partial=False, msg=b"".join(part.msg for part in parts))


class View:
    """Turns entries into output. `kind`: "text", "json" (one object a line) or "raw" (the app's own bytes)."""

    def __init__(
        self,
        how: Look,
        kind: str = "text",
        *,
        prefix: bool = True,
        stamps: bool = False,
        encoding: str = "utf-8",
        highlight: Sequence[re.Pattern[str]] = (),
    ) -> None:
        self._how = how
        self._highlight = highlight if how.color else ()
        self._kind = kind
        self._prefix = prefix
        self._stamps = stamps
        self._encoding = encoding
        self._width = 0
        self._out_heads: dict[bytes, bytes] = {}
        self._err_heads: dict[bytes, bytes] = {}
        self._colors: dict[bytes, bytes] = {}
        self._second = b""
        self._time = b""

    def learn(self, names: Iterable[bytes]) -> None:
        """Make room for the longest of these names, so that what follows is aligned from its first line."""
        longest = max([self._width, *(len(_shown(n)) for n in names)])
        if longest > self._width:
            self._width = longest
            self._out_heads.clear()
            self._err_heads.clear()

    def line(self, found: Entry) -> bytes:
        """Return the output for an entry, newline included."""
        if self._kind == "raw":
            return found.msg + b"\n"
        if self._kind == "json":
            return self._json(found)
        if self._how.tty and found.msg.startswith(b"{") and (laid := self._laid_out(found)) is not None:
            return laid
        msg = self._safe(found.msg) if found.msg.translate(None, _SAFE) else found.msg
        if self._highlight:
            msg = self._mark(msg)
        return self._with_head(found, msg)

    def _with_head(self, found: Entry, msg: bytes) -> bytes:
        when = self._dim(_local_stamp(found.ts.decode("ascii", "replace"))) if self._stamps else b""
        if not self._prefix:
            return when + msg + b"\n"
        heads = self._out_heads if found.stream == b"out" else self._err_heads
        head = heads.get(found.name)
        if head is None:
            head = heads[found.name] = self._head(found.name, found.stream)
        if self._stamps or not self._how.tty:
            return head + when + msg + b"\n"
        if found.ts[:19] != self._second:
            self._second = found.ts[:19]
            self._time = self._dim(local(found.ts.decode("ascii", "replace")))
        return head + self._time + msg + b"\n"

    def _laid_out(self, found: Entry) -> bytes | None:
        """Return a JSON line as one to read, on a terminal."""
        from pyworker.cli.records import lay_out

        laid = lay_out(found.msg)
        if laid is None:
            return None
        level, texts = laid
        lines = [self._safe(text.encode("utf-8", "backslashreplace")) for text in texts]
        if self._highlight:
            lines = [self._mark(line) for line in lines]
        if level:
            color = b"\x1b[" + _LEVEL_COLORS.get(level, b"32") + b"m" if self._how.color else b""
            lines[0] = color + f"{level.upper():<8}".encode() + (b"\x1b[0m" if color else b"") + b" " + lines[0]
        return b"".join(self._with_head(found, line) for line in lines)

    def _mark(self, msg: bytes) -> bytes:
        text = msg.decode("utf-8", "backslashreplace")
        parts, at = [], 0
        for start, end in sorted(m.span() for pattern in self._highlight for m in pattern.finditer(text) if m[0]):
            if end > at:
                parts += [text[at : max(start, at)], f"\x1b[1;7m{text[max(start, at) : end]}\x1b[0m"]
                at = end
        return self._encode("".join([*parts, text[at:]]))

    def event(self, stamp: str, who: str, words: str) -> bytes:
        """Return an event as a dim line between the app's."""
        rule = "--" if self._how.ascii else "──"
        time = local(stamp)
        text = f"{rule} {time}  {clean(who)} {clean(words)} {rule}"
        return self._encode(f"\x1b[2m{text}\x1b[0m" if self._how.color else text) + b"\n"

    def stray(self, line: bytes) -> bytes:
        """Return a line of a log file that is no record: somebody else has written it."""
        return line + b"\n" if self._kind == "raw" else self._safe(line) + b"\n" if self._kind == "text" else b""

    def _head(self, name: bytes, stream: bytes) -> bytes:
        self.learn([name])
        out, err = ("|", "!") if self._how.ascii else ("│", "┃")
        bar = err if stream == b"err" else out
        label, mark = _shown(name).ljust(self._width), self._encode(bar)
        if self._how.color:
            color = self._colors.setdefault(name, _COLORS[len(self._colors) % len(_COLORS)])
            label = b"\x1b[" + color + b"m" + label
            mark = (b"\x1b[31m" + mark if stream == b"err" else mark) + b"\x1b[0m"
        return label + b" " + mark + b" "

    def _dim(self, time: str) -> bytes:
        return (f"\x1b[2m{time}\x1b[0m " if self._how.color else f"{time} ").encode()

    def _safe(self, msg: bytes) -> bytes:
        return self._encode(clean(msg.decode("utf-8", "backslashreplace").rstrip("\r").replace("\n", " ")))

    def _encode(self, text: str) -> bytes:
        return text.encode(self._encoding, "backslashreplace")

    def _json(self, found: Entry) -> bytes:
        app, _, worker = found.name.decode("utf-8", "replace").rpartition(".")
        value: dict[str, Any] = {
            "v": 1, "ts": found.ts.decode("ascii", "replace"), "app": app, "worker": int(worker), "pid": int(found.pid),
            "stream": "stderr" if found.stream == b"err" else "stdout", "msg": found.msg.decode("utf-8", "backslashreplace"),
        }  # fmt: skip
        if found.msg.startswith(b"{"):
            from pyworker.cli.records import level_name, parse_json

            fields = parse_json(found.msg, strict=True)
            if fields is not None:
                value |= {"level": level_name(fields) or None, "fields": fields}
        return json.dumps(value).encode() + b"\n"


def _shown(name: bytes) -> bytes:
    return name[:-1] + b"template" if name.endswith(b".0") else name


def local(stamp: str) -> str:
    """Return the local time of day of a UTC stamp: "14:02:31"."""
    try:
        return datetime.fromisoformat(stamp).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError):
        return clean(stamp)[:8]


def _local_stamp(stamp: str) -> str:
    """Return the local date and time of a UTC stamp: "2026-11-23 15:02:31.104+01:00"."""
    try:
        return datetime.fromisoformat(stamp).astimezone().isoformat(" ", "milliseconds")
    except (ValueError, OverflowError):
        return clean(stamp)


def merge(batches: Iterable[Iterable[Entry]]) -> Iterator[Entry]:
    """Merge logs by time; each of them stays in its own order, also when a clock was set back."""
    import heapq

    return heapq.merge(*batches, key=lambda e: e.ts)

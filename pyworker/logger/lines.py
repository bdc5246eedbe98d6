"""Logger: the bytes of one stream become records. Sans I/O and without a clock; the format is protocol/logs.py.

Most chunks are many whole lines: they become records by one `replace`, not line by line.
"""

from __future__ import annotations

import json
from typing import Literal

from pyworker.protocol.logs import MAX_LINE, Format, LogRecord, format_record, short_head
from pyworker.record import mutable

CHUNK = MAX_LINE  # bytes a read; only the first line of a chunk can then be longer than MAX_LINE


@mutable
class Source:
    """What stands before every record of one stream: "api.2 41211 out"."""

    app: str
    worker: int
    stream: Literal["out", "err"]
    pid: int = 0

    def __str__(self) -> str:
        return f"{self.app}.{self.worker} {self.pid} {self.stream}"


class Lines:
    """Assembles the lines of one stream. `held` is the unfinished line so far (less than MAX_LINE bytes)."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.held = b""
        self.ended = 0  # lines that the last chunk has ended
        self._parted = False  # the unfinished line has records already

    def feed(self, chunk: bytes, stamp: str, format: Format) -> bytes:
        """Take a chunk (CHUNK bytes at most) and return the records that are complete now."""
        assert len(chunk) <= CHUNK
        end = chunk.rfind(b"\n")
        if end < 0:
            self.held += chunk
            records = b"" if len(self.held) < MAX_LINE else self.part(stamp, format)
            self.ended = 0
            return records
        held, self.held = self.held, chunk[end + 1 :]
        before = b""
        if len(held) + end > MAX_LINE:
            first = len(held) + chunk.find(b"\n")
            if first > MAX_LINE:
                held, chunk, end = held + chunk[:end], b"", 0
            while first > MAX_LINE:
                cut = whole_characters(held[:MAX_LINE])
                before += self._records(held[:cut], stamp=stamp, format=format, partial=True)
                held = held[cut:]
                first -= cut
        self._parted = False
        return before + self._records(held, memoryview(chunk)[:end], stamp=stamp, format=format)

    def part(self, stamp: str, format: Format) -> bytes:
        """Return what is held as a part of a line; a character that is not complete stays held."""
        cut = whole_characters(self.held)
        if not cut:
            return b""
        ready, self.held = self.held[:cut], self.held[cut:]
        self._parted = True
        return self._records(ready, stamp=stamp, format=format, partial=True)

    @property
    def has_half_a_character(self) -> bool:
        return whole_characters(self.held) < len(self.held)

    def leave(self, stamp: str, format: Format) -> bytes:
        """Return all that is held as a part of a line: another one goes on with it, who has not even half a character."""
        rest, self.held = self.held, b""
        return self._records(rest, stamp=stamp, format=format, partial=True) if rest else b""

    def finish(self, stamp: str, format: Format) -> bytes:
        """Return the end of an unfinished line, as a line: nothing will follow."""
        if not self.held and not self._parted:
            return b""
        rest, self.held, self._parted = self.held, b"", False
        return self._records(rest, stamp=stamp, format=format)

    def _records(self, *parts: bytes | memoryview, stamp: str, format: Format, partial: bool = False) -> bytes:
        """Return the records of lines that come in parts, without the newline of the last; note how many lines they are.

        A program that prints much pays for each time that its bytes are copied, and for `bytes.count`, which takes as long
        as all of it.
        """
        if format != "json":
            head = f"{stamp} {self.source}{'+' if partial else '|'} ".encode()
            if format != "text":
                head = short_head(self.source.app, self.source.worker, format)
            lines = b"".join((head, *parts))
            records = lines.replace(b"\n", b"\n" + head) + b"\n"
            more = (len(records) - 1 - len(lines)) // len(head) if head else lines.count(b"\n")
            self.ended = more + 1
            return records
        source = self.source
        empty = LogRecord(stamp, source.app, source.worker, source.pid, source.stream, partial, b"\0")
        before, _, after = format_record(empty, "json").partition(rb'"\u0000"')
        dumps = json.dumps
        texts = b"".join(parts).decode("utf-8", "backslashreplace").split("\n")
        self.ended = len(texts)
        return b"".join([before + dumps(t, ensure_ascii=False).encode() + after for t in texts])


def whole_characters(data: bytes) -> int:
    """Return the length of `data` without a UTF-8 character that has only begun at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return len(data)
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < size and byte < 0xF8 else len(data)
    return len(data)

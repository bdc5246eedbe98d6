"""The lines of an app's log file, written by the logger and read by `pyworker logs`, and what the logger is told.

Text format, one record a line, readable with tail:

    2026-11-23T14:02:31.104Z api.2 41211 out| the line as the app printed it
    2026-11-23T14:02:31.110Z api.2 41211 err| a line on stderr
    2026-11-23T14:02:31.110Z api.2 41211 out+ a part of a line: the next out record of the same pid goes on with it

The stamp is the time at which the chunk was read. After "| " or "+ " come the app's own bytes, unchanged except
that they hold no newline. JSON format: {"ts","app","worker","pid","stream","msg"} and "partial":true.
`worker` is the slot, 0 for the template's own output (shown as "api.template").
"""

from __future__ import annotations

import functools
import json
import struct
import time
from collections.abc import Iterator
from typing import Literal

from pyworker.record import record

Format = Literal["text", "json", "short", "plain"]  # short ("api.2 | …") and plain (the app's bytes): on stdout only
JOURNAL = "/run/systemd/journal/socket"
STDOUT = "/dev/stdout"  # as LogsSpec.file: what the logger has inherited; not opened, rotated or looked at
MAX_LINE = 64 * 1024  # a longer line is written in parts
IN_HAND = ".in-hand"  # in the logs folder: what the logger has taken out of pipes and not written yet
UNCOUNTED = 1 << 40  # is added to an app's lines while a chunk of it is read: how many they are is seen after that
HAND = struct.Struct("=64sq")  # of that file: an app, and its lines; less than 0: lost, and its log does not say so yet


@record
class LogsSpec:
    """Content of the memfd `logs.APP`: how the logger writes the app's log."""

    file: str  # absolute
    format: Format
    max_size: int
    max_files: int
    compress: bool
    stop_signal: int = 15  # when guardian and daemon are both gone the logger stops what is left
    drain_timeout: float = 30.0  # seconds from that signal to SIGKILL
    drains_alone: bool = False  # asgi, wsgi, script: ends by itself then, so that it needs no signal, only the SIGKILL
    journald: bool = False  # each record to systemd's journal as well


@record
class LogRecord:
    """One line of a log file, parsed."""

    ts: str
    app: str
    worker: int
    pid: int
    stream: Literal["out", "err"]
    partial: bool
    msg: bytes


def stamp(seconds: float) -> str:
    """Return an instant of the wall clock as UTC, ISO 8601 with milliseconds; cheap enough for each chunk that is read."""
    second, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{_whole(second)}.{milliseconds:03}Z"


@functools.lru_cache(maxsize=1)
def _whole(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def in_hand(content: bytes) -> dict[str, int]:
    """Return app -> lines that the logger has in its hands (and UNCOUNTED), of the content of IN_HAND."""
    return {app: count for app, count in _hands(content) if count > 0}


def unsaid(content: bytes) -> dict[str, int]:
    """Return app -> lines that are lost and that its log does not mention yet, of the content of IN_HAND."""
    return {app: -count for app, count in _hands(content) if count < 0}


def _hands(content: bytes) -> Iterator[tuple[str, int]]:
    rows = HAND.iter_unpack(content[: len(content) // HAND.size * HAND.size])
    return ((name.rstrip(b"\0").decode("ascii", "replace"), count) for name, count in rows if name[0])


def format_record(record: LogRecord, format: Format) -> bytes:
    """Return the record as it stands in the file, newline included."""
    if format == "json":
        value: dict[str, object] = {
            "ts": record.ts, "app": record.app, "worker": record.worker, "pid": record.pid,
            "stream": record.stream, "msg": record.msg.decode("utf-8", "backslashreplace"),
        }  # fmt: skip
        if record.partial:
            value["partial"] = True
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
    if format in ("short", "plain"):
        return short_head(record.app, record.worker, format) + record.msg + b"\n"
    mark = b"+" if record.partial else b"|"
    head = f"{record.ts} {record.app}.{record.worker} {record.pid} {record.stream}".encode()
    return head + mark + b" " + record.msg + b"\n"


def short_head(app: str, worker: int, format: Format) -> bytes:
    """Return what stands before a line on stdout: "api.2 | ", or nothing."""
    return f"{app}.{worker or 'template'} | ".encode() if format == "short" else b""


def parse_record(line: bytes) -> LogRecord | None:
    """Parse one line (either format); None for a line that is not a record (an editor's, a torn one)."""
    line = line.rstrip(b"\n")
    if line.startswith(b"{"):
        return _parse_json(line)
    parts = line.split(b" ", 4)
    if len(parts) != 5:
        return None
    ts, name, pid, stream, msg = parts
    app, _, slot = name.rpartition(b".")
    if stream[:3] not in (b"out", b"err") or stream[3:] not in (b"|", b"+") or not pid.isdigit() or not slot.isdigit():
        return None
    try:
        return LogRecord(
            ts.decode("ascii"), app.decode("ascii"), int(slot), int(pid),
            "out" if stream[:3] == b"out" else "err", stream[3:] == b"+", msg,
        )  # fmt: skip
    except ValueError:
        return None


def _parse_json(line: bytes) -> LogRecord | None:
    try:
        value = json.loads(line)
        stream = value["stream"]
        if stream not in ("out", "err"):
            return None
        return LogRecord(
            str(value["ts"]), str(value["app"]), int(value["worker"]), int(value["pid"]), stream,
            bool(value.get("partial", False)), str(value["msg"]).encode("utf-8", "backslashreplace"),
        )  # fmt: skip
    except (ValueError, OverflowError, RecursionError, KeyError, TypeError):
        return None

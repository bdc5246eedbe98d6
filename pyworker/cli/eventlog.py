"""CLI: events as lines: the past out of the file in the home, the rest from the daemon."""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from typing import Any

from pyworker.cli.lines import last_first
from pyworker.cli.render import Look, clean, line, pad, paint, plain, span, wrap
from pyworker.protocol.events import Event, sentence
from pyworker.protocol.names import EVENTS_FILE

_INDENT = 10  # of what did not fit on an event's line
_STYLES = {"failed": "red", "exited": "red", "refused": "red", "backoff": "yellow", "unhealthy": "yellow"}


def matches(event: Event, selectors: tuple[str, ...], types: frozenset[str] = frozenset()) -> bool:
    """True when an event belongs to what was asked for: app, app.N, glob, all; of these types."""
    if types and event.type not in types:
        return False
    if not selectors or "all" in selectors:
        return True
    return any(fnmatchcase(name, selector) for name in {event.app, event.who} for selector in selectors)


def parse(raw: Any) -> Event | None:
    """Return an event of a JSON object, None for anything that is not one."""
    if not isinstance(raw, dict):
        return None
    worker, data = raw.get("worker"), raw.get("data")
    seq, stamp, kind = raw.get("seq"), raw.get("time"), raw.get("type")
    if not (isinstance(seq, int) and isinstance(stamp, str) and isinstance(kind, str)):
        return None
    return Event(
        seq,
        stamp,
        str(raw.get("app") or ""),
        worker if isinstance(worker, int) else None,
        kind,
        data if isinstance(data, dict) else {},
    )


def past(
    home: str,
    count: int,
    since_seq: int,
    selectors: tuple[str, ...],
    types: frozenset[str],
    since: str = "",
    until: str = "",
) -> list[Event]:
    """Return the last `count` events after `since_seq` and between two UTC stamps that match, oldest first.

    Without a file there are none. Lines that are no events (a torn last one) are passed over.
    """
    found: list[Event] = []
    for path in _files(os.path.join(home, EVENTS_FILE)):
        for raw in last_first(path):
            try:
                event = parse(json.loads(raw))
            except (ValueError, RecursionError):
                continue
            if event is None:
                continue
            if event.seq <= since_seq or len(found) >= count:
                return found[::-1]
            is_then = event.time >= since and (not until or event.time <= until)
            if is_then and matches(event, selectors, types):
                found.append(event)
    return found[:count][::-1]


def _files(path: str) -> list[str]:
    """The file and its rotated predecessors (.1, .2…), newest first."""
    found = [path]
    while os.path.exists(f"{path}.{len(found)}"):
        found.append(f"{path}.{len(found)}")
    return found


def words(event: Event) -> str:
    """Return an event in words, in one clean line; whatever its data are."""
    try:
        return line(sentence(event))
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or a damaged file
        return line(event.type.replace("_", " "))


class Printer:
    """Turns events into lines; the column of names grows with the longest one seen."""

    def __init__(self, how: Look) -> None:
        self._how = how
        self._names = 8

    def line(self, event: Event) -> str:
        """Return an event as a line: local time, who, what."""
        who = line(event.who) or "pyworker"
        self._names = max(self._names, len(who))
        text = f"{clock(event.time)}  {pad(who, self._names)}  {words(event)}"
        style = next((s for word, s in _STYLES.items() if word in event.type), "")
        return "\n".join(
            paint(part, style, self._how) for part in wrap(plain(text, self._how), self._how.width, _INDENT)
        )


def clock(stamp: str) -> str:
    """Return an event's UTC stamp as local time; with the day when it was not today."""
    from datetime import datetime

    try:
        when = datetime.fromisoformat(stamp).astimezone()
    except (ValueError, OverflowError):
        return clean(stamp)[:23]
    today = datetime.now(when.tzinfo).date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M:%S")


def ago(stamp: str) -> str:
    """Return how long ago a UTC stamp was: "3d 4h ago"; when it was, if that is to come (the clock was set back)."""
    from datetime import UTC, datetime

    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    except (ValueError, TypeError):
        return clean(stamp)[:23]
    return f"{span(seconds)} ago" if seconds > -1 else clock(stamp)

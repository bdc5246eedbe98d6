"""CLI: the logs that `pyworker logs` was asked for, from files to stdout: the past, then what is added."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pyworker.cli import eventlog, logfiles, render
from pyworker.cli.files import cannot
from pyworker.cli.homes import apps_wanted
from pyworker.cli.logview import Choice, Entry, Joiner, View, entry, local, merge
from pyworker.cli.options import Settings
from pyworker.errors import PyworkerError
from pyworker.protocol.events import Event, names_in_words
from pyworker.protocol.names import EVENTS_FILE

if TYPE_CHECKING:
    from pyworker.cli.records import Filter, Grouper

_POLL = 0.1  # seconds between looks at files that did not grow
_RECORD_ENDS = 0.3  # seconds without a line after which -f takes a record for complete
_SHOW_UNFINISHED = 1.0  # seconds until an unfinished line is shown by -f
_WINDOW = 20_000  # lines that are looked at together for records
_MOST_OF_PAST = 64 * 1024 * 1024  # bytes that are looked through for the beginning of one endless line


class Reader:
    """The logs that were asked for, from files to stdout."""

    def __init__(
        self,
        settings: Settings,
        names: tuple[str, ...],
        choice: Choice,
        view: View,
        wanted: Filter | None,
        *,
        events: bool,
    ) -> None:
        self._settings = settings
        self._home = settings.home
        self._names = names
        self._choice = choice
        self._view = view
        self._logs: dict[str, logfiles.Log] = {}
        self._joiner = Joiner()
        self._wanted = wanted
        self._grouper: Grouper | None = None
        if wanted is not None:
            from pyworker.cli.records import Grouper

            self._grouper = Grouper()
        self._event_log = logfiles.Log(os.path.join(self._home, EVENTS_FILE))
        self._out = sys.stdout.buffer
        self.has_shown = False
        self._refused: set[str] = set()
        self._events = events
        self._began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
        self._find(start=True)

    def close(self) -> None:
        for log in (*self._logs.values(), self._event_log):
            log.close()

    def past(self, count: int | None, since: str, until: str) -> None:
        """Print the past: the last `count` lines, or all since a time."""
        logs = list(self._logs.values())
        entries: Iterable[Entry]
        whole = bool(since)  # nothing of that time is left out: what happened before the first line is of interest, too
        if count is None:
            began = datetime.fromisoformat(since).timestamp()
            entries = merge([self._picked(self._joined(self._forwards(log, began))) for log in logs])
        else:
            if self._wanted is None:
                entries = last = deque(merge([self._last(log, count) for log in logs]), count)
                # what happened to one that printed nothing is all there is
                whole = (whole and len(last) < count) or not last
            else:
                records = [record for log in logs for record in self._last_records(log, count)]
                whole = whole and len(records) < count
                records = sorted(records, key=lambda r: r[0].ts)[-count:] if count else []
                entries = [line for record in records for line in record]
            self._view.learn({e.name for e in entries})
        events = iter(self._past_events(count, since, until) if self._events and count != 0 else [])
        event = next(events, None)
        first = True
        for found in entries:
            while event is not None and event.time.encode() < found.ts:
                if whole or not first:
                    self._print_event(event)
                event = next(events, None)
            first = False
            self._write(self._view.line(found))
        while event is not None and (whole or not first):
            self._print_event(event)
            event = next(events, None)
        self._out.flush()

    def refused(self) -> list[PyworkerError]:
        """Return of each file that may not be opened, once, the error that says so: the others are shown."""
        found = {path: error for log in self._logs.values() for path, error in log.refused.items()}
        errors = [cannot("open", path, error) for path, error in found.items() if path not in self._refused]
        self._refused.update(found)
        return errors

    def follow(self) -> None:
        """Print what is added until Ctrl-C, or until nobody reads it."""
        quiet_since: float | None = None
        while True:
            self._find(start=False)
            for error in self.refused():
                render.note(f"{error.message}; {error.hint}")
            batches = [self._added(log) for log in self._logs.values()]
            events = [v for line in self._event_log.more() if (v := self._event(line)) is not None]
            if any(batches) or events:
                quiet_since = None
                self._print_merged(batches, events)
                self._out.flush()
                continue
            if len(self._joiner) or self._grouper:
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() - quiet_since >= _SHOW_UNFINISHED:
                    for held in self._joiner.held():
                        self._show(held)
                    self._out.flush()
                if self._grouper and time.monotonic() - quiet_since >= _RECORD_ENDS:
                    for record in self._grouper.flush():
                        self._show_record(record)
                    self._out.flush()
            render.pause(_POLL)

    def _added(self, log: logfiles.Log) -> list[Entry]:
        lines = log.more()
        if log.gap is not None:
            before, after = map(entry, log.gap)
            self._say_missing(log.path, before, after)
        return [e for line in lines if (e := self._entry(line)) is not None]

    def _say_missing(self, path: str, before: Entry | None, after: Entry | None) -> None:
        """Say what a reader slower than the rotation does not get. How many lines that were, nobody knows any more."""
        since, until = (e.ts.decode("ascii", "replace") if e is not None else "" for e in (before, after))
        if not self._settings.json:
            since, until = since and local(since), local(until)
        when = f"between {since} and {until}" if since else f"before {until}"
        text = f"what was printed {when} is missing: it was rotated away before it was read"
        if self._settings.json and after is not None:
            name = after.name.rpartition(b".")[0] + b".0"
            note = after._replace(name=name, pid=b"%d" % os.getpid(), stream=b"err", msg=text.encode())
            self._write(self._view.line(note))
            return
        self._out.flush()
        hint = "logs.max_size and logs.max_files keep more"
        render.note(f"{os.path.basename(path)}: {text}; {hint}")

    def _print_merged(self, batches: list[list[Entry]], events: list[Event]) -> None:
        pending = deque(events)
        entries: Iterable[Entry] = merge(batches) if sum(map(bool, batches)) > 1 else [e for b in batches for e in b]
        parts: list[bytes] = []
        line, add = self._view.line, self._joiner.add
        for found in entries:
            while pending and pending[0].time.encode() < found.ts:
                self._write(b"".join(parts))
                parts = []
                self._print_event(pending.popleft())
            whole = add(found)
            if whole is None:
                continue
            if self._grouper is None:
                parts.append(line(whole))
            else:
                for record in self._grouper.add(whole):
                    self._show_record(record)
        self._write(b"".join(parts))
        for event in pending:
            self._print_event(event)

    def _show(self, found: Entry) -> None:
        if self._grouper is None:
            self._write(self._view.line(found))
            return
        for record in self._grouper.add(found):
            self._show_record(record)

    def _show_record(self, record: list[Entry]) -> None:
        assert self._wanted is not None
        if self._wanted.wants(record):
            for found in record:
                self._write(self._view.line(found))

    # ---- what is there ------------------------------------------------------------------------------
    def _find(self, *, start: bool) -> None:
        files = logfiles.find(self._home)
        wanted = {path for app, path in files.items() if self._choice.wants_app(app)}
        if self._event_log.is_outdated():
            self._event_log = logfiles.Log(self._event_log.path)
        for path in wanted - {path for path, log in self._logs.items() if not log.is_outdated()}:
            self._logs[path] = log = logfiles.Log(path)
            if not start:  # its file may be one of before
                entries = (e for line in log.forwards(0) if (e := self._entry(line)) is not None)
                self._print_merged([[e for e in entries if e.ts >= self._began]], [])
                self._out.flush()
        if start and self._names:
            apps = files.keys() | apps_wanted(self._home)
            for name in self._names:
                if not any(Choice((name,)).wants_app(app) for app in apps):
                    raise _unknown(name, sorted(apps), self._home)

    def _entry(self, line: bytes) -> Entry | None:
        found = entry(line)
        if found is None:
            if line and not self._names:
                self._write(self._view.stray(line))
            return None
        return found if self._choice.wants(found) else None

    def _forwards(self, log: logfiles.Log, since: float) -> Iterator[Entry]:
        for line in log.forwards(since):
            found = entry(line)
            if found is not None and self._choice.wants(found):
                yield found

    def _last(self, log: logfiles.Log, count: int) -> list[Entry]:
        """Return the last `count` lines of a log that are wanted, oldest first, parts joined."""
        found: list[Entry] = []
        ended = size = looked = 0
        begun: set[tuple[bytes, bytes, bytes]] = set()  # whose oldest line may have parts before it
        for line in log.backwards() if count else ():
            one = entry(line)
            if one is None or not self._choice.wants(one):
                if one is not None and self._choice.is_before(one):
                    break
                continue
            key = (one.name, one.pid, one.stream)
            if ended < count:
                ended += not one.partial
                begun.add(key)
            else:  # what others have printed meanwhile stands between the parts of a line
                looked += 1
                if not one.partial:
                    begun.discard(key)
                if not begun or looked > _WINDOW:
                    break
                if key not in begun or not one.partial:
                    continue
            size += len(one.msg)
            if size > _MOST_OF_PAST and one.partial:
                break
            found.append(one)
        return list(self._joined(reversed(found)))[-count:]

    def _last_records(self, log: logfiles.Log, count: int) -> list[list[Entry]]:
        """Return the last `count` wanted records of a log, oldest first.

        Read from the end in windows. What a window begins with may belong to a record that began before it: of
        each worker all is carried to the window before, up to and with the first line that could be a beginning.
        """
        from pyworker.cli.records import goes_on, group

        assert self._wanted is not None
        found: list[list[Entry]] = []
        lines = log.backwards() if count else iter(())
        carried: list[Entry] = []
        while len(found) < count:
            window: list[Entry] = []
            more = False
            for line in lines:
                one = entry(line)
                if one is not None and self._choice.is_before(one):
                    break
                if one is not None and self._choice.wants(one):
                    window.append(one)
                if len(window) >= _WINDOW:
                    more = True
                    break
            begun: set[tuple[bytes, bytes, bytes]] = set()
            whole: list[list[Entry]] = []
            older: list[Entry] = []
            for record in group(self._joined([*reversed(window), *carried])):
                key = (record[0].name, record[0].pid, record[0].stream)
                if not more or key in begun:
                    if self._wanted.wants(record):
                        whole.append(record)
                    continue
                older += record
                if not goes_on(record[0].msg):
                    begun.add(key)
            carried = older
            found = [*whole, *found]
            if not more:
                break
        return found[-count:]

    def _picked(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        if self._wanted is None:
            yield from entries
            return
        from pyworker.cli.records import group

        for record in group(entries):
            if self._wanted.wants(record):
                yield from record

    def _joined(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        joiner = Joiner()
        for found in entries:
            whole = joiner.add(found)
            if whole is not None:
                yield whole
        yield from joiner.held()

    # ---- events -------------------------------------------------------------------------------------
    def _past_events(self, count: int | None, since: str, until: str) -> list[Event]:
        """Return the last `count` events: who prints little has seen hundreds since the first of so many lines."""
        most = sys.maxsize if count is None else count
        return eventlog.past(self._home, most, 0, self._names, frozenset(), since, until)

    def _event(self, line: bytes) -> Event | None:
        if not self._events:
            return None
        try:
            found = eventlog.parse(json.loads(line))
        except (ValueError, RecursionError):
            return None
        return found if found is not None and eventlog.matches(found, self._names) else None

    def _print_event(self, event: Event) -> None:
        self._write(self._view.event(event.time, event.who or "pyworker", " ".join(eventlog.words(event).split())))

    def _write(self, data: bytes) -> None:
        self.has_shown = self.has_shown or bool(data)
        self._out.write(data)


def _unknown(name: str, apps: list[str], home: str) -> PyworkerError:
    import difflib

    near = difflib.get_close_matches(name.partition(".")[0], apps, n=1)
    hint = f"did you mean {near[0]}?\n" if near else ""
    hint += f"there are logs of: {names_in_words(apps)}" if apps else "nothing has been logged there yet"
    return PyworkerError(f"no logs of an app named {render.line(name)!r} in {home}", hint=hint, code="no_such_app")

"""CLI: `pyworker logs`: what the workers print, merged by time. Reads the files of the home; needs no daemon."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import click

from pyworker.cli import eventlog, logfiles, render
from pyworker.cli.logview import Choice, Entry, Joiner, View, entry, merge
from pyworker.cli.options import Settings, common
from pyworker.errors import Exit, PyworkerError
from pyworker.protocol.events import Event
from pyworker.protocol.names import APPS_FILE, EVENTS_FILE

_POLL = 0.1  # seconds between looks at files that did not grow
_SHOW_UNFINISHED = 1.0  # seconds until an unfinished line is shown by -f
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)\Z")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_EVENTS = 500
_MOST_OF_PAST = 64 * 1024 * 1024  # bytes that are looked through for the beginning of one endless line


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A point in time: "15m" (ago), "13:00" (the last one), "2026-11-23", "2026-11-23T13:00". Gives a UTC stamp."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        now = datetime.now().astimezone()
        span = _SPAN.match(value)
        try:
            if span:
                when = now - timedelta(seconds=float(span[1]) * _UNITS[span[2]])
            elif re.match(r"\d{1,2}:\d\d(:\d\d)?\Z", value):
                clock = datetime.strptime(value, "%H:%M:%S" if value.count(":") == 2 else "%H:%M").time()  # noqa: DTZ007
                when = datetime.combine(now.date(), clock).astimezone()
                if when > now:
                    when = datetime.combine(now.date() - timedelta(days=1), clock).astimezone()
            else:
                when = datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f'{value!r} is not a time: write "15m", "13:00" or "2026-11-23T13:00"', param, ctx)
        utc = when.astimezone(UTC)
        return utc.strftime("%Y-%m-%dT%H:%M:%S") + f".{utc.microsecond // 1000:03}Z"


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME[.N]]...")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed, rotated files and new workers too.")
@click.option(
    "-n", "count", type=click.IntRange(min=0), metavar="N", help="So many lines of the past (50; with -f 10)."
)
@click.option("--since", type=Moment(), default=None, metavar="TIME", help='From then on: "15m", "13:00", a date.')
@click.option("--until", type=Moment(), default=None, metavar="TIME", help="Up to then.")
@click.option("--stdout", "only_out", is_flag=True, help="Only stdout.")
@click.option("--stderr", "only_err", is_flag=True, help="Only stderr.")
@click.option("--raw", is_flag=True, help="The app's own bytes, escape sequences too.")
@click.option("--no-prefix", is_flag=True, help="Without the name and the time before each line.")
@common
def cmd(
    settings: Settings,
    names: tuple[str, ...],
    follow: bool,
    count: int | None,
    since: str | None,
    until: str | None,
    only_out: bool,
    only_err: bool,
    raw: bool,
    no_prefix: bool,
) -> int:
    """Show what the workers print.

    \b
    pyworker logs -f api
    pyworker logs api.2 --since 15m
    pyworker logs --stderr -n 200
    """
    if follow and until:
        raise click.UsageError("-f goes on for ever, --until ends: give one of them")
    if raw and settings.json:
        raise click.UsageError("--raw and --json are two forms of output: give one of them")
    stream = "" if only_out == only_err else "out" if only_out else "err"
    if count is None and not since:
        count = 10 if follow else 50
    choice = Choice(names, stream, since or "", until or "")
    reader = _Reader(settings, names, choice, View(*_look(settings, raw), prefix=not no_prefix))
    reader.events = not (raw or settings.json or no_prefix or stream)
    gc.enable()
    try:
        reader.past(count, since or "", until or "")
        if follow:
            reader.follow()
    finally:
        reader.close()
    return 0


def _look(settings: Settings, raw: bool) -> tuple[render.Look, str]:
    return render.look(sys.stdout, settings.color), "raw" if raw else "json" if settings.json else "text"


class _Reader:
    """The logs that were asked for, from files to stdout."""

    def __init__(self, settings: Settings, names: tuple[str, ...], choice: Choice, view: View) -> None:
        self._home = settings.home
        self._names = names
        self._choice = choice
        self._view = view
        self._logs: dict[str, logfiles.Log] = {}
        self._joiner = Joiner()
        self._event_log = logfiles.Log(os.path.join(self._home, EVENTS_FILE))
        self._out = sys.stdout.buffer
        self.events = True
        self._find(start=True)

    def close(self) -> None:
        """Close all files."""
        for log in (*self._logs.values(), self._event_log):
            log.close()

    def past(self, count: int | None, since: str, until: str) -> None:
        """Print the past: the last `count` lines, or all since a time."""
        logs = list(self._logs.values())
        entries: Iterable[Entry]
        if count is None:
            began = datetime.fromisoformat(since).timestamp()
            entries = merge([self._joined(self._forwards(log, began)) for log in logs])
        else:
            last = merge([self._last(log, count) for log in logs])
            entries = deque(last, count)
            self._view.learn({e.name for e in entries})
        events = iter(self._past_events(since, until) if self.events and count != 0 else [])
        event = next(events, None)
        first = True
        for found in entries:
            while event is not None and event.time.encode() < found.ts:
                if not first or since:  # what was before the first line shown is not of interest
                    self._print_event(event)
                event = next(events, None)
            first = False
            self._write(self._view.line(found))
        while event is not None and not (first and not since):
            self._print_event(event)
            event = next(events, None)
        self._out.flush()

    def follow(self) -> None:
        """Print what is added until Ctrl-C, or until nobody reads it."""
        quiet_since: float | None = None
        while True:
            self._find(start=False)
            batches = [
                [e for line in log.more() if (e := self._entry(line)) is not None] for log in self._logs.values()
            ]
            events = [v for line in self._event_log.more() if (v := self._event(line)) is not None]
            if any(batches) or events:
                quiet_since = None
                self._print_merged(batches, events)
                self._out.flush()
                continue
            if len(self._joiner):
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() - quiet_since >= _SHOW_UNFINISHED:
                    for held in self._joiner.held():
                        self._write(self._view.line(held))
                    self._out.flush()
            time.sleep(_POLL)

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
            if whole is not None:
                parts.append(line(whole))
        self._write(b"".join(parts))
        for event in pending:
            self._print_event(event)

    # ---- what is there ------------------------------------------------------------------------------
    def _find(self, *, start: bool) -> None:
        files = logfiles.find(self._home)
        wanted = {path for app, path in files.items() if self._choice.wants_app(app)}
        for path in wanted - self._logs.keys():
            self._logs[path] = log = logfiles.Log(path)
            if not start:
                self._print_merged([[e for line in log.forwards(0) if (e := self._entry(line)) is not None]], [])
                self._out.flush()
        if start and self._names:
            apps = files.keys() | _apps_wanted(self._home)
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
        ended = size = 0
        for line in log.backwards() if count else ():
            one = entry(line)
            if one is None or not self._choice.wants(one):
                if one is not None and self._choice.is_before(one):
                    break
                continue
            ended += not one.partial
            size += len(one.msg)
            # one line more than is needed: the parts of the oldest one are then all there
            if ended > count or (size > _MOST_OF_PAST and one.partial):
                break
            found.append(one)
        return list(self._joined(reversed(found)))[-count:]

    def _joined(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        joiner = Joiner()
        for found in entries:
            whole = joiner.add(found)
            if whole is not None:
                yield whole
        yield from joiner.held()

    # ---- events -------------------------------------------------------------------------------------
    def _past_events(self, since: str, until: str) -> list[Event]:
        found = eventlog.past(self._home, _MOST_EVENTS, 0, self._names, frozenset())
        return [e for e in found if e.time >= since and (not until or e.time <= until)]

    def _event(self, line: bytes) -> Event | None:
        if not self.events:
            return None
        try:
            found = eventlog.parse(json.loads(line))
        except (ValueError, RecursionError):
            return None
        return found if found is not None and eventlog.matches(found, self._names) else None

    def _print_event(self, event: Event) -> None:
        who = event.app if event.worker is None else f"{event.app}.{event.worker}"
        self._write(self._view.event(event.time, who or "pyworker", " ".join(eventlog.words(event).split())))

    def _write(self, data: bytes) -> None:
        self._out.write(data)


def _apps_wanted(home: str) -> set[str]:
    """Return the apps that the daemon keeps, for one that has printed nothing yet has no log file."""
    try:
        with open(os.path.join(home, APPS_FILE), "rb") as file:
            return {str(app["name"]) for app in json.load(file)["apps"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _unknown(name: str, apps: list[str], home: str) -> PyworkerError:
    import difflib

    near = difflib.get_close_matches(name.partition(".")[0], apps, n=1)
    hint = f"did you mean {near[0]}?\n" if near else ""
    hint += f"there are logs of: {', '.join(apps)}" if apps else "nothing has been logged there yet"
    return PyworkerError(
        f"no logs of an app named {render.line(name)!r} in {home}", hint=hint, code="no_such_app", exit=Exit.NO_SUCH_APP
    )

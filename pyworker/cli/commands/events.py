"""CLI: `pyworker events`: what happened, and with -f what happens. The past is read without a daemon too."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import click

from pyworker.cli import render
from pyworker.cli.client import Call, Lost, check_readable, patience, waiting
from pyworker.cli.eventlog import Printer, matches, parse, past
from pyworker.cli.moment import Moment
from pyworker.cli.options import Settings, common, follow_no_longer, option
from pyworker.errors import PyworkerError
from pyworker.protocol.events import TYPES, Event

_QUIET = 0.1  # seconds without an event after which a reader that leaves is waited for, too
_AGAIN = 0.1  # seconds between looks whether the daemon is back


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@option("-f", "--follow", is_flag=True, help="Go on with new events.")
@option("-n", "count", type=click.IntRange(min=0), metavar="N", help="How many of the past (50; with -f 10).")
@option("--since-seq", type=click.IntRange(min=0), default=None, metavar="SEQ", help="All events after this one.")
@option("--since", type=Moment(), default=None, metavar="TIME", help='Since when: "15m", "13:00", a date.')
@option("--type", "kinds", metavar="TYPE,...", help="Only these types.")
@common
def cmd(
    settings: Settings,
    names: tuple[str, ...],
    follow: bool,
    count: int | None,
    since_seq: int | None,
    since: str | None,
    kinds: str | None,
) -> int:
    """Show what happened to the apps.

    \b
    pyworker events -f
    pyworker events api --type worker_exited,worker_backoff
    pyworker events --since 15m
    pyworker events -f --json --since-seq 8123      goes on after the last one that was read
    """
    types = _types(kinds)
    if count is None:
        count = sys.maxsize if since_seq is not None or since else 10 if follow else 50
    if follow:
        follow_no_longer(settings)
    check_readable(settings.home)
    show = _shower(settings)
    known = past(settings.home, 1, 0, (), frozenset())  # what the file has by now is not asked for again
    shown = past(settings.home, count, since_seq or 0, names, types, since or "")
    for event in shown:
        show(event)
    last = max([since_seq or 0, *(event.seq for event in (*known, *shown))])
    if follow:
        return _follow(settings, names, types, last, show)
    unknown = [name for name in names if not past(settings.home, 1, 0, (name,), frozenset())]
    if unknown:
        message = f"nothing has happened to {', '.join(map(render.line, unknown))}, as far as is known"
        if len(unknown) == len(names) and not shown:
            raise PyworkerError(message, hint="pyworker ps lists the apps", code="no_such_app")
        if not settings.is_silent:
            render.note(message)
    return 0


def _types(kinds: str | None) -> frozenset[str]:
    found = frozenset(k.strip() for k in (kinds or "").split(",") if k.strip())
    for kind in sorted(found - TYPES.keys()):
        import difflib

        near = difflib.get_close_matches(kind, TYPES, n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(TYPES))}"
        raise click.BadParameter(f"there is no event {kind!r}{meant}")
    return found


def _shower(settings: Settings) -> Callable[[Event], None]:
    how = render.look(sys.stdout, settings.color)
    printer = Printer(how)

    def show(event: Event) -> None:
        if settings.json:
            worker = event.worker
            value = {"v": 1, "time": event.time, "seq": event.seq, "app": event.app, "worker": worker}
            value |= {"type": event.type, "data": event.data}
            render.out_json(value, how)
        else:
            render.out(printer.line(event), how)

    return show


def _follow(
    settings: Settings, names: tuple[str, ...], types: frozenset[str], last: int, show: Callable[[Event], None]
) -> int:
    """Show events as they come; ask the next daemon for the rest when this one goes away."""
    gc.enable()
    lost_at: float | None = None
    has_said = False
    while True:
        request = {"type": "follow", "selectors": list(names), "since_seq": last}
        try:
            with Call(settings.home, request) as call:
                for answer in call.answers(_QUIET, None):
                    if answer is None:
                        render.pause(None, call.fileno())
                    event = parse(answer)
                    if event is not None and event.seq > last:
                        last = event.seq
                        if matches(event, names, types):
                            show(event)
                return 0  # the daemon ended the stream
        except PyworkerError as error:
            if isinstance(error, Lost):
                lost_at, has_said = time.monotonic(), False
            elif lost_at is None or time.monotonic() - lost_at >= patience(error):
                raise
            elif not has_said and not settings.is_silent:
                has_said = True
                render.note(waiting(error))
        render.pause(_AGAIN)

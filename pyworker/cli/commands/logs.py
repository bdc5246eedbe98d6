"""CLI: `pyworker logs`: what the workers print, merged by time. Reads the files of the home; needs no daemon."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import warnings
from typing import TYPE_CHECKING

import click

from pyworker.cli import eventlog, logfiles, moment, render
from pyworker.cli.client import DaemonAway, apps_now, check_readable, is_emptied
from pyworker.cli.homes import apps_wanted
from pyworker.cli.logreader import Reader
from pyworker.cli.logview import Choice, View, entry
from pyworker.cli.moment import Moment
from pyworker.cli.options import Settings, common, follow_no_longer, option
from pyworker.errors import PyworkerError
from pyworker.protocol.events import Event, names_in_words

if TYPE_CHECKING:
    from pyworker.cli.records import Filter

_BIRTHS = 1000  # of a worker: how many are looked at
_PRINTS_EARLY = 1.0  # seconds
_WORKER = re.compile(r"\.[0-9]+\Z")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME[.N]]...")
@option("-f", "--follow", is_flag=True, help="Go on with what is printed, rotated files and new workers too.")
@option(
    "-n",
    "count",
    type=click.IntRange(min=0),
    metavar="N",
    help="How many past lines, and events at most (50; with -f 10); with -i, -e, -l: records.",
)
@option("--since", type=Moment(), default=None, metavar="TIME", help='Since when: "15m", "13:00", a date.')
@option("--until", type=Moment(), default=None, metavar="TIME", help="Until when.")
@option("-i", "--include", multiple=True, metavar="RE", help="Only records that match this pattern.")
@option("-e", "--exclude", multiple=True, metavar="RE", help="No records that match this one.")
@option("-H", "--highlight", multiple=True, metavar="RE", help="Mark what matches this pattern; hide nothing.")
@option("-l", "--level", metavar="LEVEL", help="Only from this level: debug, info, warning, error, critical.")
@option("-p", "--previous", is_flag=True, help="What the worker that died last has printed.")
@option("--stdout", "only_out", is_flag=True, help="Only stdout.")
@option("--stderr", "only_err", is_flag=True, help="Only stderr.")
@option("-t", "--timestamps", is_flag=True, help="Date, time and milliseconds before each line, in a pipe too.")
@option("--raw", is_flag=True, help="The app's own bytes, escape sequences too.")
@option("--no-prefix", is_flag=True, help="Without the name and the time before each line.")
@common
def cmd(
    settings: Settings,
    names: tuple[str, ...],
    follow: bool,
    count: int | None,
    since: str | None,
    until: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    highlight: tuple[str, ...],
    level: str | None,
    previous: bool,
    only_out: bool,
    only_err: bool,
    timestamps: bool,
    raw: bool,
    no_prefix: bool,
) -> int:
    """Show what the workers print.

    -i, -e and -l look at whole records: a line with its indented lines, a traceback. On a terminal JSON lines are
    laid out.

    \b
    pyworker logs -f api
    pyworker logs api.2 --since 15m
    pyworker logs -l error -n 5           the last five errors, with their tracebacks
    pyworker logs -t api | less           with date and time
    pyworker logs -p api                  the last words of the worker that died last
    """
    for pattern in (*include, *exclude, *highlight):
        _check_pattern(pattern)
    if follow and until:
        raise click.UsageError("-f goes on for ever, --until ends: give one of them")
    if raw and settings.json:
        raise click.UsageError("--raw and --json are two forms of output: give one of them")
    stream = "" if only_out == only_err else "out" if only_out else "err"
    if count is not None:
        count = min(count, sys.maxsize)
    elif not since:
        count = 10 if follow else 50
    if follow:
        follow_no_longer(settings)
    check_readable(settings.home)
    pid = 0
    since, until = since or "", until or ""
    if previous:
        if follow:
            raise click.UsageError("-p shows what is over, -f what is to come: give one of them")
        ended = _last_ended(settings, names)
        names = (f"{ended.app}.{ended.worker or 'template'}",)
        if isinstance(ended.data.get("pid"), int):
            pid = ended.data["pid"]
            birth, next_birth = _births(settings.home, names, ended, pid)
            since, until = max(since, birth), min(filter(None, (until, next_birth)), default="")
        else:
            pid = _last_pid(settings.home, ended)
    if not (logfiles.find(settings.home) or apps_wanted(settings.home) or is_emptied(settings.home)):
        _check_kept(settings, names)
    choice = Choice(names, stream, since, until, pid)
    # each for itself: what joins them may not stand in one, such as (?i) or the name of a group
    marked = [re.compile(p) for p in highlight]
    form = "raw" if raw else "json" if settings.json else "text"
    view = View(
        render.look(sys.stdout, settings.color), form, prefix=not no_prefix, stamps=timestamps, highlight=marked
    )
    # an event belongs to no record: it is not there to be filtered
    events = not (raw or settings.json or no_prefix or stream or include or exclude or level or previous)
    reader = Reader(settings, names, choice, view, _filter(include, exclude, level), events=events)
    gc.enable()
    try:
        reader.past(count, since, until)
        if not follow and (refused := reader.refused()):
            for error in refused[1:]:
                render.note(error.message)
            raise refused[0]
        if not reader.has_shown and not previous and (workers := [n for n in names if _WORKER.search(n)]):
            with contextlib.suppress(DaemonAway):  # nobody knows then which there are
                apps_now(settings.home, settings.timeout, workers)
        if not (reader.has_shown or settings.is_silent):
            like_that = " like that" if since or until or stream or include or exclude or level else ""
            if previous:
                render.note("It has printed nothing that is still in the log.")
            elif not (names or logfiles.find(settings.home)):
                if not follow:
                    render.note(f"Nothing has been logged in {settings.home} yet.")
            elif count != 0 and (names or like_that):
                where = f"log of {names_in_words([*map(render.line, names)])}" if names else "logs"
                render.note(f"There is nothing{like_that} in the {where}.")
        if follow:
            reader.follow()
    finally:
        reader.close()
    return 0


def _check_kept(settings: Settings, names: tuple[str, ...]) -> None:
    """Refuse when apps run of which the home has nothing: those of `pyworker run`. What they print is in no file."""
    with contextlib.suppress(DaemonAway):
        apps = apps_now(settings.home, settings.timeout, names)
        if apps:
            raise PyworkerError(
                f"there is no log in {settings.home}: the output of {names_in_words([a['name'] for a in apps])} goes to that "
                "of pyworker run",
                hint="look there: docker logs, kubectl logs, journalctl -u UNIT\nlogs.file gives an app a file of its own",
            )


def _check_pattern(pattern: str) -> None:
    warnings.simplefilter("ignore")  # of what a pattern may mean one day ("[[a]"): today it means this
    try:
        re.compile(pattern)
    except re.error as error:
        at = f" at character {error.pos + 1}" if error.pos is not None else ""
        raise click.BadParameter(
            f"{render.line(pattern)!r} is no regular expression: {error.msg}{at}; put a backslash before what is meant literally"
        ) from None
    except (OverflowError, RecursionError) as error:
        raise click.BadParameter(
            f"{render.line(pattern[:60])!r} is no regular expression to search by: {error}"
        ) from None


def _filter(include: tuple[str, ...], exclude: tuple[str, ...], level: str | None) -> Filter | None:
    if not (include or exclude or level):
        return None
    from pyworker.cli.records import LEVELS, Filter, level_word

    name = level_word(level or "")
    if name and name not in LEVELS:
        raise click.BadParameter(f"there is no level {render.line(level)!r}; the levels are {', '.join(LEVELS)}")
    return Filter(include, exclude, name)


def _last_ended(settings: Settings, names: tuple[str, ...]) -> Event:
    """Return how the worker (or template) of these apps ended that did so last, of itself if any did."""
    ended: Event | None = None
    for kinds in (("worker_exited", "template_exited"), ("worker_stopped",)):
        found = eventlog.past(settings.home, 1, 0, names, frozenset(kinds))
        if found:
            ended = found[-1]
            break
    if ended is None:
        whose = f" of {', '.join(map(render.line, names))}" if names else ""
        hint = "pyworker events lists what happened; pyworker logs shows what is printed"
        raise PyworkerError(f"no worker{whose} has ended yet", hint=hint, code="not_running")
    who = f"{ended.app}.{ended.worker or 'template'}"
    if not settings.is_silent:
        words = " ".join(eventlog.words(ended).split())
        render.note(f"{who} {words}, {eventlog.ago(ended.time)}")
    return ended


def _births(home: str, names: tuple[str, ...], ended: Event, pid: int) -> tuple[str, str]:
    """Return when the process that ended was born, and when the next one of its pid was ("" = not known, none).

    In a container pids begin anew with each start. A process may print some time before it is said to be there: on a busy
    machine, or where the daemon was killed meanwhile, a long time, and its age at its end is what tells.
    """
    birth = next_birth = ""
    for event in eventlog.past(home, _BIRTHS, 0, names, frozenset({"worker_starting"})):
        if event.data.get("pid") == pid and not next_birth:
            if event.seq < ended.seq:
                birth = moment.before(event.time, _PRINTS_EARLY)
            else:
                next_birth = max(ended.time, moment.before(event.time, _PRINTS_EARLY))
    age = ended.data.get("after_s")
    if isinstance(age, int | float):
        by_age = moment.before(ended.time, age + _PRINTS_EARLY)
        birth = min(birth or by_age, by_age)
    return birth, next_birth


def _last_pid(home: str, ended: Event) -> int:
    """Return the pid of the template that printed last before it ended: its event does not say it."""
    path = logfiles.find(home).get(ended.app)
    if path is None:
        return 0
    log = logfiles.Log(path)
    try:
        for line in log.backwards():
            found = entry(line)
            if found is not None and found.name.endswith(b".0") and found.ts <= ended.time.encode():
                return int(found.pid)
    finally:
        log.close()
    return 0

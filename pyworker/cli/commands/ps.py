"""CLI: `pyworker ps`: one row per app, or per worker with -w. Never starts a daemon; imports next to nothing.

The table (or the JSON document, as the daemon made it) goes to stdout. What needs attention goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pyworker import __version__
from pyworker.cli import render
from pyworker.cli.client import ask, ps
from pyworker.cli.fail import without_causes
from pyworker.cli.health import failing
from pyworker.cli.homes import unreadable
from pyworker.cli.options import Settings, common, option
from pyworker.cli.render import Cell, Column, Look
from pyworker.errors import Exit

_APPS = (
    Column("APP", shrink=12),
    Column("STATE"),
    Column("WORKERS"),
    Column("CPU", right=True, keep=3),
    Column("MEM", right=True, keep=4),
    Column("REQ/S", right=True, keep=1),
    Column("RESTARTS", keep=5),
    Column("UPTIME", keep=2),
    Column("LISTENING ON", keep=6, shrink=22),
)
WORKERS = (
    Column("WORKER", shrink=12),
    Column("PID", right=True),
    Column("STATE"),
    Column("GEN", right=True, keep=4),
    Column("CPU", right=True, keep=5),
    Column("MEM", right=True, keep=6),
    Column("REQ/S", right=True, keep=2),
    Column("OPEN", right=True, keep=1),
    Column("RESTARTS", right=True, keep=7),
    Column("UPTIME", keep=3),
    Column("LAST EXIT", keep=8, shrink=16),
)
_UP = frozenset({"running", "reloading", "scheduled"})
# what --sort looks at: the largest first; of a worker the same figures are in the same places
_SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cpu": lambda of: of.get("cpu_percent") or 0,
    "mem": lambda of: of.get("rss_bytes") or 0,
    "req/s": lambda of: of.get("requests_per_s") or 0,
    "restarts": lambda of: of["restarts"]["total"] if isinstance(of.get("restarts"), dict) else of.get("restarts") or 0,
    "uptime": lambda of: of.get("uptime_s") or 0,
}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@option("-w", "--workers", is_flag=True, help="One row per worker.")
@option("--sort", type=click.Choice(list(_SORTS)), help="Largest first; default: by name.")
@option("--check", is_flag=True, help="Exit with 3 unless all of them run, or are jobs that wait for their time.")
@common
def cmd(settings: Settings, names: tuple[str, ...], workers: bool, sort: str | None, check: bool) -> int:
    """Show what runs: all apps, or those named (api, api.2, 'w*').

    \b
    pyworker ps                 all apps
    pyworker ps -w api          each worker of api
    pyworker ps --sort mem      the largest first
    pyworker ps --json | jq     for programs
    """
    one = any("." in name for name in names)  # a worker: its row is what was asked for
    workers = workers or one
    measured = settings.json or bool(sort) or not settings.quiet
    document = ask(settings.home, ps(names, sample=measured), settings.timeout)
    apps: list[dict[str, Any]] = document.get("apps") or []
    how = render.look(sys.stdout, settings.color)
    if sort and not settings.json:
        apps = _sorted(apps, sort)
    if settings.json:
        render.out_json(document, how, indent=2 if how.tty else None)
    elif settings.quiet:
        for app in apps:
            for name in [f"{app['name']}.{w['worker']}" for w in app["pool"]] if workers else [app["name"]]:
                render.out(render.line(name), how)
    else:
        show(apps, workers, how)
        errors = render.look(sys.stderr, settings.color)
        texts = notes(document, errors, settings.home)
        if texts and apps and how.tty and errors.tty:
            render.note("", errors)
        for text in texts:
            render.note(text, errors)
    if one:
        states = [w["state"] for app in apps for w in app["pool"] or [{"state": "stopped"}]]
        up = all(state == "ready" for state in states)
    else:
        up = bool(apps) and all(app["state"] in _UP for app in apps)
    if check and not up:
        return int(Exit.NOT_RUNNING)
    return 0


def _sorted(apps: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    key = _SORTS[sort]
    ordered = [{**app, "pool": sorted(app.get("pool") or (), key=key, reverse=True)} for app in apps]
    return sorted(ordered, key=key, reverse=True)


def show(apps: list[dict[str, Any]], workers: bool, how: Look) -> None:
    """Write the table: a row per app, or per worker."""
    if not apps and how.tty:
        return
    columns: tuple[Column, ...] = WORKERS if workers else _APPS
    rows = [row for app in apps for row in (worker_rows(app, how) if workers else [_app_row(app, how)])]
    if not how.tty:  # for awk, column, grep: no blanks inside a cell, all to the left
        columns = tuple(Column(c.title.replace(" ", "-")) for c in columns)
        rows = [[Cell("-".join(cell.text.split()) or "-") for cell in row] for row in rows]
    render.write(sys.stdout, "\n".join(render.table(columns, rows, how)) + "\n", how)


def _app_row(app: dict[str, Any], how: Look) -> list[Cell]:
    none = "–" if how.tty else "-"
    gap = " " if how.tty else ""
    want, ready, total = (app["workers"].get(k) or 0 for k in ("want", "ready", "total"))
    up = bool(total)
    more = f" +{total - want}" if how.tty and total > want and up else ""
    return [
        Cell(render.line(app["name"]), "bold"),
        render.state(app["state"], how),
        Cell(render.ready(app["workers"], none=none) + more, "" if ready >= want else "yellow"),
        Cell(render.percent(app.get("cpu_percent") if up else None, none=none)),
        Cell(_memory(app.get("rss_bytes") if up else None, how)),
        Cell(render.rate(app.get("requests_per_s") if up else None, thousands="," if how.tty else "", none=none)),
        Cell(_restarts(app.get("restarts") or {}, how)),
        Cell(render.span(app.get("uptime_s"), gap=gap, none=none)),
        Cell((", " if how.tty else ",").join(render.line(a) for a in app.get("listen") or ()) or none),
    ]


def worker_rows(app: dict[str, Any], how: Look) -> list[list[Cell]]:
    """Return a table row for each worker of an element of the document's `apps`."""
    none = "–" if how.tty else "-"
    rows = []
    for worker in app["pool"]:
        pid = worker.get("pid")
        rows.append(
            [
                Cell(render.line(f"{app['name']}.{worker['worker']}"), "bold", f".{worker['worker']}"),
                Cell(str(pid) if pid else none),
                render.state(worker["state"], how),
                Cell(str(worker.get("gen", none))),
                Cell(render.percent(worker.get("cpu_percent"), none=none)),
                Cell(_memory(worker.get("rss_bytes"), how)),
                Cell(render.rate(worker.get("requests_per_s"), thousands="," if how.tty else "", none=none)),
                Cell(none if worker.get("open_connections") is None else str(worker["open_connections"])),
                Cell(str(worker.get("restarts") or 0)),
                Cell(render.span(worker.get("uptime_s"), gap=" " if how.tty else "", none=none)),
                Cell(_last_exit(worker.get("last_exit")) or none),
            ]
        )
    return rows


def _last_exit(last: dict[str, Any] | None) -> str:
    if not last:
        return ""
    how = f"code {last['code']}" if last["signal"] is None else f"signal {last['signal']}"
    return render.line(last["reason"] or how)


def _memory(count: int | None, how: Look) -> str:
    return render.size(count) if how.tty else render.size(count, gap="", unit="", none="-")


def _restarts(restarts: dict[str, Any], how: Look) -> str:
    recent = restarts.get("window") or 0
    if not recent:
        return str(restarts.get("total") or 0)
    window = render.span(restarts.get("window_s"), gap="")
    return f"{recent} in {window}" if how.tty else f"{recent}/{window}"


def notes(document: dict[str, Any], how: Look, home: str) -> list[str]:
    """Return what needs attention, one line each, with the next step."""
    lines = []
    apps = document.get("apps") or []
    if not apps and (why := unreadable(home)):
        lines.append(_step(render.line(why), "start your apps again: pyworker start app.toml", how))
    elif not apps:
        lines.append("No apps yet. Start one with: pyworker start app.toml")
    causes = [render.line((app.get("last_failure") or {}).get("message") or "") for app in apps if trouble(app)]
    for app in apps:
        lines += [without_causes(text, causes) for text in app_notes(app, how)]
    lines += changed_files(apps, how)
    version = (document.get("daemon") or {}).get("version")
    if version and version != __version__:
        text = f"daemon {render.line(version)}, this command {__version__}"
        lines.append(render.paint(_step(text, "pyworker daemon upgrade   no request is lost", how), "dim", how))
    return lines


def app_notes(app: dict[str, Any], how: Look) -> list[str]:
    """Return the lines about one app: why it failed, what it waits for, what else the daemon wants said."""
    name = render.line(app["name"])
    lines = []
    failure = app.get("last_failure")
    if failure and (unwell := trouble(app)):
        words = render.clean(failure.get("message") or "").split("\n")[0]
        style = "red" if app["state"] == "failed" else "yellow"
        head = render.paint(f"{name} {unwell}:", style, how)
        lines.append(_step(f"{head} {words}", next_step(name, failure), how))
    if sick := failing(app):
        who = ", ".join(dict.fromkeys(f"{name}.{worker['worker']}" for worker in sick[:3]))
        who += f" and {len(sick) - 3} more" if len(sick) > 3 else ""
        head = render.paint(f"{who} unhealthy:", "yellow", how)
        # a check's words are all that events know of it; why it fails is in what the worker printed, or where it is
        hangs = "answer within" in sick[0]["reason"] and app.get("kind") != "command"
        step = f"pyworker stack {name}.{sick[0]['worker']}" if hangs else f"pyworker logs {name}"
        lines.append(_step(f"{head} {render.line(sick[0]['reason'])}", step, how))
    if backoff := app.get("backoff"):
        from pyworker.protocol.events import try_in_words

        lines.append(f"{name} backoff: {try_in_words(backoff['try'], backoff['max'], backoff['in_s'] or 0)}")
    if app.get("drops"):
        text = f"{name}: {app['drops']} line{'s' * (app['drops'] != 1)} of its log could not be written"
        lines.append(_step(text, "pyworker doctor", how))
    lines += [f"{name}: {render.line(text)}" for text in app.get("notes") or ()]
    return lines


def trouble(app: dict[str, Any]) -> str:
    """What there is to say before the last failure of an app; nothing when that is over."""
    if app["state"] == "scheduled":
        return "failed at its last run" if app.get("last_failure") else ""
    return str(app["state"]) if app["state"] in {"failed", "degraded"} or app.get("backoff") else ""


def has_printed(failure: dict[str, Any]) -> bool:
    """Whether what a process of the app printed says more: not of a config or machine at fault, where a hint does."""
    from pyworker.protocol.events import PRE_START_FAILED

    if (failure.get("message") or "").startswith(PRE_START_FAILED):
        return False
    return bool(failure.get("traceback") or not failure.get("hint"))


def next_step(name: str, failure: dict[str, Any]) -> str:
    """Return the command that shows more of a failure."""
    return f"pyworker logs -p {name}" if has_printed(failure) else f"pyworker describe {name}"


def changed_files(apps: list[dict[str, Any]], how: Look) -> list[str]:
    """Return a line for each config or env file that is not what was read: many apps may be of one."""
    files: dict[str, list[str]] = {}
    for app in apps:
        for file in changed_of(app):
            files.setdefault(render.line(file), []).append(render.line(app["name"]))
    lines = []
    for file, names in files.items():
        short = file.rpartition("/")[2]
        if len(names) == 1:
            text = f"{names[0]}: {short} changed on disk since it was started"
        else:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            text = f"{some}: {short} changed on disk since they were started"
        lines.append(_step(text, f"pyworker diff {names[0]}" if len(names) == 1 else "pyworker diff", how))
    return lines


def changed_of(app: dict[str, Any]) -> list[str]:
    """Return the files of an app's config that are not what was read."""
    return (app.get("config") or {}).get("changed_files") or []


def _step(text: str, command: str, how: Look) -> str:
    """Return a note and the command to give next, which has a line of its own where the terminal would break it."""
    row = render.plain(f"{text}   → {command}", how)
    return row if not how.width or render.width(row) <= how.width else f"{text}\n  → {command}"

"""CLI: `pyworker describe`: all about an app on one card: the reason first when it is unwell, events last."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from pyworker.cli import render
from pyworker.cli.asking import looking_into_file, need_names
from pyworker.cli.client import ask
from pyworker.cli.commands.ps import WORKERS, app_notes, changed_files, changed_of, has_printed, trouble, worker_rows
from pyworker.cli.eventlog import ago, parse, words
from pyworker.cli.fail import is_said
from pyworker.cli.health import failing, unchecked
from pyworker.cli.homes import typed
from pyworker.cli.options import Settings, common, option
from pyworker.cli.render import Cell, Column, Look, line, paint
from pyworker.config.units import duration_text
from pyworker.protocol.events import Event

_SHOWN_ENV = 12  # without -v or --reveal
# what `ps -w` shows, and the worker's fair share of the memory it has in common with the others
_PSS = Column("PSS", right=True, keep=6)
_WORKERS = (*WORKERS[:6], _PSS, *WORKERS[6:])


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@option("--reveal", is_flag=True, help="Show the values of secrets.")
@common
def cmd(settings: Settings, names: tuple[str, ...], reveal: bool) -> int:
    """Show all about an app: where it comes from, its workers, why they ended, its environment, its last events.

    \b
    pyworker describe api
    pyworker describe api -v           with the whole environment
    """
    need_names(settings, "describe", names)
    request = {"type": "describe", "selectors": list(names), "reveal": reveal}
    with looking_into_file(names):
        body = ask(settings.home, request, settings.timeout)
    apps: list[dict[str, Any]] = body.get("apps") or []
    how = render.look(sys.stdout, settings.color)
    if settings.json:
        render.out_json({"v": 1, **body}, how, indent=2 if how.tty else None)
        return 0
    if not apps:
        render.note(render.NO_APP)
        return 0
    everything = settings.verbose or reveal
    render.write(sys.stdout, "\n\n".join("\n".join(card(app, how, everything)) for app in apps) + "\n", how)
    return 0


def card(app: dict[str, Any], how: Look, everything: bool) -> list[str]:
    workers = app.get("workers") or {}
    state = render.state(app["state"], how)
    name = paint(line(app["name"]), "bold", how)
    lines = [f"{name} — {paint(state.text, state.style, how)}, {render.ready(workers)} workers ready"]
    lines += _reason(app, how)
    lines += ["", *_facts(_left(app), _right(app), how)]
    if app.get("pool"):
        lines += ["", paint("Workers", "bold", how), *render.table(_WORKERS, _rows(app, how), how, "  ")]
    lines += _exits(app, how)
    lines += _environment(app, how, everything)
    lines += _events(app, how)
    return lines


def _rows(app: dict[str, Any], how: Look) -> list[list[Cell]]:
    rows = worker_rows(app, how)
    for row, worker in zip(rows, app["pool"], strict=True):
        gap, unit, none = (" ", "B", "–") if how.tty else ("", "", "-")
        row.insert(6, Cell(render.size(worker.get("pss_bytes"), gap=gap, unit=unit, none=none)))
    return rows


def _exits(app: dict[str, Any], how: Look) -> list[str]:
    """How workers have ended lately other than by a command, the newest last."""
    found = [event for event in map(parse, app.get("exits") or ()) if event is not None]
    if not found:
        return []
    lines = ["", paint("Last exits", "bold", how), *_told(found, how)]
    if found[-1].type == "worker_exited":
        step = typed(f"  → pyworker logs -p {line(app['name'])}   what the last of them printed")
        # of one that had proved stable: it is no failure of its app, and stands nowhere else
        is_above = app.get("last_failure") and trouble(app)
        hints = "" if is_above else render.clean(found[-1].data.get("hint") or "")
        lines += _wrapped([step, *(typed(f"  → {hint}") for hint in hints.split("\n") if hint.strip())], how)
    return lines


def _reason(app: dict[str, Any], how: Look) -> list[str]:
    """Why it is not well, with the traceback once, and what else wants to be known."""
    lines = []
    failure = app.get("last_failure") or {}
    if failure and (unwell := trouble(app)):
        lines += ["", paint(f"{unwell}: {render.clean(failure.get('message') or '')}", "red", how)]
        if failure.get("traceback") and not is_said(failure["traceback"], failure.get("message") or ""):
            lines += ["  " + text for text in render.clean(failure["traceback"]).strip("\n").split("\n")]
        hints = render.clean(failure.get("hint") or "").split("\n")
        if has_printed(failure):
            hints.append(f"pyworker logs -p {line(app['name'])}   what it printed last")
        lines += [f"  = help: {typed(h)}" for h in hints if h.strip()]
    quiet = {**app, "last_failure": None}
    if more := app_notes(quiet, how) + changed_files([app], how):
        lines += ["", *_wrapped([part for text in more for part in typed(text).split("\n")], how)]
    return lines


def _left(app: dict[str, Any]) -> list[tuple[str, str]]:
    restarts = app.get("restarts") or {}
    limits = app.get("limits") or {}
    listen = ", ".join(app.get("listen") or ())
    up = app.get("uptime_s")
    counted = f"{restarts.get('total', 0)} total"
    if (most := restarts.get("max")) is not None:
        counted = f"{restarts.get('window', 0)} of {most} in the last {render.span(restarts.get('window_s'), gap='')} ({counted})"
    return [
        _what(app),
        ("listening", listen or "–"),
        ("balance", str(app.get("balance") or "–")),
        ("generation", f"{app.get('gen', '–')}" + (f", since {render.span(up)}" if up is not None else "")),
        ("restarts", counted),
        ("limits", _limits(limits)),
        *_traffic(app),
    ]


def _limits(limits: dict[str, Any]) -> str:
    """Return all that a worker is held to: "512 MB per worker, 1,000 requests, 1h old"."""
    memory = limits.get("memory")
    size = "its share of the cgroup's memory" if memory == "auto" else render.size(memory)
    said = [f"{size} per worker"] if memory else []
    if requests := limits.get("max_requests"):
        said.append(f"{requests:,} requests")
    if age := limits.get("max_age"):
        said.append(f"{duration_text(age)} old")
    if longest := limits.get("request_timeout"):
        said.append(f"{duration_text(longest)} for a request")
    if files := limits.get("nofile"):
        said.append(f"{files:,} open files")
    return ", ".join(said) or "none"


def _traffic(app: dict[str, Any]) -> list[tuple[str, str]]:
    """How it answers, and what waits: only for apps that count requests, and listen."""
    facts = []
    http = app.get("http")
    if http is not None:
        p50, p99 = (render.latency(http.get(k)) for k in ("p50_s", "p99_s"))
        facts.append(("requests", f"{render.rate(app.get('requests_per_s'))}/s, p50 {p50}, p99 {p99}"))
        errors = http.get("error_share")
        share = "–" if errors is None else f"{errors * 100:.2f}%" if errors else "none"
        facts.append(("errors", f"5xx {share} lately, {http['status']['5xx']:,} of {app.get('requests', 0):,} in all"))
        facts.append(("now", f"{app.get('in_flight', 0)} in flight, {app.get('open_connections', 0)} connections"))
    queues = [f"{queue[0]} of {queue[1]}" for queue in app.get("queue") or () if queue]
    if queues:
        step = ""
        if app.get("command") and app.get("balance") == "shared" and any(q and q[0] for q in app["queue"]):
            from pyworker.config.check import runs_node

            # one that listens elsewhere runs as well as any other
            if not runs_node(app["command"]):
                step = ": a command has to accept on the socket that it gets, LISTEN_FDS (fd 3)"
        facts.append(("queue", f"{', '.join(queues)} waiting to be accepted{step}"))
    return facts


def _what(app: dict[str, Any]) -> tuple[str, str]:
    if app.get("script"):
        return "script", str(app["script"])
    if app.get("command"):
        return "command", shlex.join(map(str, app["command"]))
    known = app.get("kind") not in (None, "", "target", "unknown")  # what it is, its import says
    return "target", f"{app['target']} ({app['kind']})" if known else str(app.get("target") or "–")


def _right(app: dict[str, Any]) -> list[tuple[str, str]]:
    config = app.get("config") or {}
    template = app.get("template") or {}
    health = app.get("health") or {}
    file = config.get("file")
    changed = "changed on disk" if file in changed_of(app) else "unchanged"
    facts = [
        ("config", f"{render.home(str(file))} ({changed})" if file else "given on the command line"),
        ("cwd", render.home(str(app.get("cwd") or "–"))),
        ("python", render.home(str(app.get("python") or "–"))),
        ("user", str(app.get("user") or "as the daemon")),
        ("logs", _logs(app)),
    ]
    if cron := app.get("cron"):
        facts.append(("runs", f"at {cron}{_next(app.get('next_run_at'))}"))
    if cron := (app.get("reload") or {}).get("cron"):
        facts.append(("reload", f"at {cron}{_next(app.get('next_reload_at'))}"))
    if health:
        of = {"http": str(health.get("path")), "exec": shlex.join(map(str, health.get("command") or ()))}
        what = " ".join(filter(None, (str(health["type"]), of.get(health["type"]))))
        waiting = len(unchecked(app))
        counts = f"{sum(worker['state'] == 'ready' for worker in app['pool'])} ok, {len(failing(app))} failing"
        counts += f", {waiting} not passed yet" if waiting else ""
        facts.append(("health", f"{what} every {health['interval']:g}s, {counts}"))
    if app.get("dispatcher"):
        dispatcher = app["dispatcher"]
        facts.append(("dispatcher", f"{line(dispatcher.get('state'))}, pid {dispatcher.get('pid')}"))
    if template:
        why = f" ({template['why']})" if template.get("why") else ""
        preload = "imported once, then forked" if template.get("preload") not in (False, "false") else "in each worker"
        facts.append(("preload", f"{preload}{why}"))
        if template.get("engine"):
            facts.append(("engine", str(template["engine"])))
    older = [v for v in app.get("runtime") or [] if v != app.get("daemon_version")]  # an upgrade leaves workers alone
    if older:
        facts.append(("runtime", f"pyworker {', '.join(older)}; a reload brings {app.get('daemon_version')}"))
    return facts


def _next(at: str | None) -> str:
    """When that is, by the wall clock here: ", next Sun 2026-11-29 04:00 CET"."""
    if at is None:
        return ""
    import datetime as dt

    when = dt.datetime.fromisoformat(at).astimezone()
    return f", next {when:%a %Y-%m-%d %H:%M %Z}"


def _logs(app: dict[str, Any]) -> str:
    written = app.get("log_bytes")
    size = f" ({render.size(written)})" if written is not None else ""
    return render.home(str(app.get("log_file") or "–")) + size


def _facts(left: list[tuple[str, str]], right: list[tuple[str, str]], how: Look) -> list[str]:
    """Return the facts in two columns where they fit, else (and in a pipe) in one."""
    left, right = ([(k, line(v)) for k, v in facts] for facts in (left, right))
    names = max(len(k) for k, _ in left + right) + 2

    def cell(fact: tuple[str, str]) -> str:
        return render.pad(fact[0], names) + fact[1]

    column = max(render.width(cell(fact)) for fact in left) + 4
    widest = max(render.width(cell(fact)) for fact in right)
    if how.width >= 100 and 2 + column + widest <= how.width:
        rows = max(len(left), len(right))
        left += [("", "")] * (rows - len(left))
        right += [("", "")] * (rows - len(right))
        return [f"  {render.pad(cell(a), column)}{cell(b)}".rstrip() for a, b in zip(left, right, strict=True)]
    return [render.cut(f"  {cell(fact)}", how.width, mark=how.mark) for fact in left + right]


def _environment(app: dict[str, Any], how: Look, everything: bool) -> list[str]:
    env = app.get("env") or []
    if not env:
        return []
    origins: dict[str, int] = {}
    for variable in env:
        if origin := line(variable.get("origin") or ""):
            origins[origin] = origins.get(origin, 0) + 1
    counts = ", ".join(f"{n} from {origin}" for origin, n in origins.items())
    first, *more = render.wrap(f"Environment   {len(env)} variables{f' ({counts})' if counts else ''}", how.width, 6)
    lines = ["", first.replace("Environment", paint("Environment", "bold", how), 1), *more]
    shown = env if everything else [v for v in env if v.get("origin") != "base"][:_SHOWN_ENV]
    rows = [
        [Cell(line(v["name"])), Cell(line(v.get("value"))), Cell(line(v.get("origin") or ""), "dim")] for v in shown
    ]
    if rows:
        columns = (Column("NAME", shrink=12), Column("VALUE", shrink=20), Column("FROM", keep=1))[: 3 if counts else 2]
        lines += render.table(columns, (row[: len(columns)] for row in rows), how, "  ")
    if len(shown) < len(env):
        lines.append(f"  … {len(env) - len(shown)} more with -v")
    return lines


def _events(app: dict[str, Any], how: Look) -> list[str]:
    found = [event for event in map(parse, app.get("events") or ()) if event is not None]
    return ["", paint("Events", "bold", how), *_told(found, how)] if found else []


def _told(events: list[Event], how: Look) -> list[str]:
    rows = [(ago(e.time), line(e.who), words(e)) for e in events]
    when, whose = max(render.width(r[0]) for r in rows), max(render.width(r[1]) for r in rows)
    texts = [f"  {render.pad(r[0], when)}   {render.pad(r[1], whose)}  {r[2]}" for r in rows]
    return _wrapped(texts, how)


def _wrapped(texts: list[str], how: Look) -> list[str]:
    return [part for text in texts for part in render.wrap(render.plain(text, how), how.width, 6)]

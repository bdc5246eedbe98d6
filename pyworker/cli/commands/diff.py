"""CLI: `pyworker diff`: what a reload would change. Exit 0: nothing, 1: something, more: it cannot be said."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

from pyworker.cli import render
from pyworker.cli.asking import looking_into_file
from pyworker.cli.client import ask, shell_env
from pyworker.cli.homes import typed
from pyworker.cli.options import Settings, common
from pyworker.cli.render import Look, line, out, paint

_APPLIED = {"live": "live", "reload": "needs reload", "restart": "needs restart"}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@common
def cmd(settings: Settings, names: tuple[str, ...]) -> int:
    """Compare the config files with what runs; change nothing.

    Files, env files, certificates, interpreter and links are read again, as a reload would. Values of secrets are not shown.

    \b
    pyworker diff              every app; exit 0: all the same, 1: something differs
    pyworker diff api
    """
    request = {"type": "diff", "selectors": list(names), "shell_env": shell_env()}
    with looking_into_file(names):
        body = ask(settings.home, request, settings.timeout)
    if settings.json:
        out(json.dumps({k: body[k] for k in ("v", "same", "changes", "not_started") if k in body}))
    elif not settings.quiet:
        how = render.look(sys.stdout, settings.color)
        same = [] if names else [line(app["app"]) for app in body["apps"] if not app["changes"]]
        for app in body["apps"]:
            if line(app["app"]) not in same:
                out(_words(app, how), how)
        if same and not body["same"]:
            out("\n".join(render.wrap(f"The same: {', '.join(same)}", how.width, 2)), how)
        if not body["apps"]:  # what a boot found stopped, or could not read, is none of them
            render.note("There is nothing to compare: no app has been started since the daemon was.")
        elif body["same"]:
            out("No difference: what runs is what is written.", how)
        for app in body.get("not_started", ()):
            file, name = line(app["file"]), line(app["app"])
            start = f"pyworker start {shlex.quote(file)} --only {name}"
            render.note(f"{render.home(file)} has {name}, too, which was not started: {start}")
    return 0 if body["same"] else 1


def _words(app: dict[str, Any], how: Look) -> str:
    changes = app["changes"]
    name = line(app["app"])
    if not changes:
        return f"{name}: the same (generation {app['gen']})"
    where = render.home(line(app["file"])) if app["file"] else "its command line"
    lines = [f"{paint(name, 'bold', how)}: {where}, compared with what runs (generation {app['gen']})"]
    lines += change_lines(changes, how)
    if not app["running"]:
        lines.append(typed(f"pyworker start {name}   starts it with all of this"))
    else:
        gap = " without a gap" if app["overlaps"] else ": the old workers stop first"
        lines.append(typed(f"pyworker reload {name}   applies all of this{gap}"))
    if app.get("scaled") is not None:
        text = f"({name} was scaled to {app['scaled']}; a reload keeps that unless `workers` was changed)"
        lines += render.wrap(text, how.width, 2)
    return "\n".join(lines)


def change_lines(changes: list[dict[str, Any]], how: Look) -> list[str]:
    """Return what becomes of each setting, and how it is applied."""
    rows = [(c["key"], _change(c), _APPLIED[c["apply"]]) for c in changes]
    keys = max(len(r[0]) for r in rows)
    room = how.width - keys - 20
    texts = max([len(r[1]) for r in rows if not how.width or len(r[1]) <= room], default=0)
    lines = []
    for key, text, applied in rows:
        if how.width and len(text) > room:  # nothing of a value is cut: it has lines of its own
            lines += [f"  {line(key):<{keys}}  {paint(applied, 'dim', how)}", f"      {line(text)}"]
        else:
            lines.append(f"  {line(key):<{keys}}  {line(text):<{texts}}  {paint(applied, 'dim', how)}")
    return lines


def _change(change: dict[str, Any]) -> str:
    if change["secret"] and change["old"] is not None and change["new"] is not None:
        return "*** → *** (changed)"
    if change["old"] == change["new"]:  # of a file that is named
        return f"{_shown(change['new'])}: its content has changed"
    return f"{_shown(change['old'])} → {_shown(change['new'])}"


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)

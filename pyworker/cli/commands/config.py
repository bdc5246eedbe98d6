"""CLI: `pyworker config`: what a config comes to, every default filled in, and where each value comes from."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from pyworker.cli.client import ask
from pyworker.cli.here import absolute, here
from pyworker.cli.options import Settings, common, of_profile, option
from pyworker.cli.render import NO_APP, line, look, note, out
from pyworker.errors import PyworkerError
from pyworker.record import replace


@click.command()
@click.argument("what", nargs=-1, metavar="[FILE | NAME | env NAME]")
@option("--origin", is_flag=True, help="Say where each value comes from.")
@option("--reveal", is_flag=True, help="With env: show secrets too.")
@of_profile
@common
def cmd(settings: Settings, what: tuple[str, ...], origin: bool, reveal: bool, profile: str) -> int:
    """Show a config as pyworker understands it: TOML, every default filled in.

    \b
    pyworker config               the file of this folder
    pyworker config app.toml
    pyworker config api           what runs as api
    pyworker config env api       the environment of its workers; secrets are masked
    pyworker config --origin      ... and which line each value comes from
    """
    if what[:1] == ("env",):
        if len(what) != 2:
            raise PyworkerError("the environment of which app?", hint="pyworker config env NAME", code="usage")
        return _environment(settings, what[1], origin, reveal)
    if len(what) > 1:
        raise PyworkerError("config takes one file or name", hint="pyworker config -h", code="usage")
    word = what[0] if what else ""
    apps = _of_file(word, profile) if not word or word.endswith(".toml") or os.sep in word else _running(settings, word)
    if settings.json:
        shown = [{k: v for k, v in app.items() if origin or k != "origins"} for app in apps]
        out(json.dumps({"v": 1, "apps": shown}))
        return 0
    if not apps:
        note(NO_APP)
        return 0
    out(_toml(apps, origin).rstrip("\n"), look(sys.stdout, False))
    return 0


def _of_file(path: str, profile: str) -> list[dict[str, Any]]:
    from pyworker.config import canonical
    from pyworker.config.environment import secrets, without_passwords
    from pyworker.config.load import find, load
    from pyworker.config.origin import origins

    found = absolute(path) if path else find(here(), os.environ)
    if found is None:
        hint = "name one, or an app that runs: pyworker config NAME"
        raise PyworkerError("there is no config file here", hint=hint, code="no_file")
    loaded = load(found, environ=os.environ, profile=profile)
    apps = []
    for app in loaded.apps:
        hidden = secrets(app.env)
        env = {n: "***" if n in hidden else v for n, v in app.env.items()}
        shown = replace(app, env=env, state=without_passwords(app.state))
        known = origins(app, loaded.path, os.environ, profile=profile)
        apps.append(
            {
                "name": app.name,
                "file": loaded.path,
                "profile": profile,
                "config": canonical.table(shown, everything=True),
                "origins": {
                    key: {"text": o.words(loaded.path), "kind": o.kind, "line": o.line or None}
                    for key, o in known.items()
                },
            }
        )
    return apps


def _running(settings: Settings, name: str) -> list[dict[str, Any]]:
    apps: list[dict[str, Any]] = ask(settings.home, {"type": "config", "selectors": [name]}, settings.timeout)["apps"]
    for app in apps:
        if app["changed"] and not settings.is_silent:
            file = ", ".join(os.path.basename(str(f)) for f in app.get("changed_files") or [app["file"]])
            note(
                f"{line(app['name'])}: {line(file)} was changed since; this is what runs (pyworker diff {line(app['name'])})"
            )
    return apps


def _toml(apps: list[dict[str, Any]], origin: bool) -> str:
    from pyworker.config.canonical import toml

    texts = []
    for app in apps:
        table = {k: v for k, v in app["config"].items() if k != "name"}
        comments = {key: line(o["text"]) for key, o in app["origins"].items()} if origin else {}
        texts.append(toml(table, ("apps", app["name"]), comments))
    return "\n".join(texts)


def _environment(settings: Settings, name: str, origin: bool, reveal: bool) -> int:
    body = ask(
        settings.home, {"type": "describe", "selectors": [name], "reveal": reveal, "whole": True}, settings.timeout
    )
    env = [variable for app in body["apps"] for variable in app["env"]]
    if not env:
        _running(settings, name)  # it refuses an app whose config was not read, and says so
    if settings.json:
        out(json.dumps({"v": 1, "env": env}))
        return 0
    for variable in env:
        text = f"{line(variable['name'])}={line(variable['value'])}"
        out(f"{text}  # {line(variable['origin'])}" if origin and variable["origin"] else text)
    return 0

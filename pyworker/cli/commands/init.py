"""CLI: `pyworker init`: look what is in a folder and write a short app.toml for it. Nothing is imported or executed."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys

import click

from pyworker.cli.files import as_bytes, cannot
from pyworker.cli.options import Settings, common, option
from pyworker.cli.render import argument, home, line, look, note, paint
from pyworker.config.canonical import literal
from pyworker.config.check import clean_name
from pyworker.config.environment import variable_of
from pyworker.errors import PyworkerError
from pyworker.importers.detect import FLASK_SOCKET_IO, IN_MEMORY, Found, detect, is_source, node_program
from pyworker.unix.files import open_regular, write_file

# files of other process managers: what `pyworker import` reads
_OTHERS = (
    "Procfile", "ecosystem.config.js", "ecosystem.config.cjs", "pm2.config.js", "ecosystem.json", "gunicorn.conf.py",
    "gunicorn_conf.py", "uwsgi.ini", "supervisord.conf",
)  # fmt: skip
_SCHEMA = ".app.schema.json"
_DJANGO = """
# Django imports urls.py at the first request. With this check a reload to one that is broken is refused:
# [app.health]
# path   = "/"
# host   = "localhost"    # ALLOWED_HOSTS must have it
# expect = "2xx,3xx,404"
"""
_NODE = """
# What it listens on, to have several workers behind it, and reloads that lose no request:
# bind    = "127.0.0.1:3000"
# balance = "round-robin"
"""
_ONE = "all requests of a session have to come to the same"
_MAX_FILES = 3000
_MAX_SIZE = 400_000
_UNDONE = {".git", ".venv", "venv", "env", "node_modules", "__pycache__", "site-packages", ".tox", ".nox"}


@click.command()
@click.argument("folder", default=".", metavar="[DIR]")
@option("--schema/--no-schema", default=True, help=f"Write {_SCHEMA} for editors too (default).")
@option("--force", is_flag=True, help="Overwrite an app.toml.")
@common
def cmd(settings: Settings, folder: str, schema: bool, force: bool) -> int:
    """Write an app.toml for the Django, FastAPI, Flask, Starlette, Streamlit, plain Python or Node app in a folder.

    \b
    pyworker init              this folder
    pyworker init srv/shop     another one
    """
    if not os.path.isdir(folder):
        hint = "name the folder of the app: pyworker init DIR"
        raise PyworkerError(f"{folder} is no folder", hint=hint, code="no_such_file")
    found = detect(_sources(folder)) or _node(folder)
    path = os.path.normpath(os.path.join(folder, "app.toml"))
    chosen = found[0] if found else None
    text = as_bytes(_text(folder, chosen, schema))
    try:
        write_file(path, text, new=not force)
    except FileExistsError:
        hint = f"pyworker check {argument(path)}; --force overwrites it"
        raise PyworkerError(f"{home(path)} is there already", hint=hint, code="exists") from None
    except OSError as error:
        raise cannot("write", path, error) from None
    if schema:
        _write_schema(os.path.normpath(os.path.join(folder, _SCHEMA)))
    if settings.json:
        click.echo(json.dumps({"v": 1, "ok": True, "written": path, "found": [f.__dict__ for f in found[:10]]}))
    elif not settings.quiet:
        _say(settings, path, found)
        others = [name for name in _OTHERS if os.path.isfile(os.path.join(folder, name))]
        if others:
            source = argument(os.path.normpath(os.path.join(folder, others[0])))
            note(f"{others[0]} is here, too: pyworker import {line(source)} -o - shows what it comes to.")
    return 0


def _sources(folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, below, files in os.walk(folder):
        below[:] = sorted(b for b in below if b not in _UNDONE and not variable_of(os.path.join(where, b)))
        for name in sorted(files):
            path = os.path.join(where, name)
            relative = os.path.relpath(path, folder)
            if not is_source(relative) or len(found) >= _MAX_FILES:
                continue
            try:
                if os.path.getsize(path) <= _MAX_SIZE:
                    with open_regular(path) as file:
                        found[relative] = file.read().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError):
                continue
    return found


def _node(folder: str) -> list[Found]:
    try:
        with open_regular(os.path.join(folder, "package.json")) as file:
            return node_program(file.read(_MAX_SIZE).decode(), os.listdir(folder))
    except (OSError, UnicodeDecodeError):
        return []


def _text(folder: str, chosen: Found | None, schema: bool) -> str:
    name = clean_name(os.path.basename(os.path.realpath(folder)))
    rows: list[tuple[str, str]] = []

    def row(key: str, value: object, comment: str = "") -> None:
        rows.append((f"{key:<{key_width}} = {literal(value)}", line(comment)))

    where = chosen.cwd if chosen is not None else ""
    env_file = next((e for e in (os.path.join(where, ".env"), ".env") if os.path.exists(os.path.join(folder, e))), "")
    key_width = len("env_file" if env_file else "workers")
    row("name", name, "shown by pyworker ps")
    if chosen is None:
        row("target", "main:app", "CHANGE THIS: module:attribute of your app, or script = …, command = …")
        row("workers", 1)
    elif chosen.command:
        row("command", list(chosen.command), chosen.file)
        row("workers", 1)
    elif chosen.script:
        row("script", chosen.script, f"{chosen.what}: {chosen.file}")
        row("workers", 1, _ONE if chosen.what == FLASK_SOCKET_IO else "several share the port that the script binds")
    else:
        row("target", chosen.target, f"{chosen.what}: {chosen.file}, line {chosen.line}")
        if chosen.factory:
            row("factory", True, "it is a function that returns the app")
        if chosen.cwd:
            row("cwd", chosen.cwd, "where it is imported from")
        if chosen.what in IN_MEMORY:
            row("workers", 1, _ONE)
        else:
            row("workers", "auto", "one for each usable CPU; 1 if the app keeps things in memory")
        row("bind", "127.0.0.1:8000")
    if found := _environment(folder, where):
        row("python", found, "its virtual environment")
    if env_file:
        row("env_file", os.path.relpath(env_file, where or "."), "read at every start and reload")
    width = max(len(text) for text, _ in rows)
    lines = [f"{text:<{width}}  # {comment}".rstrip() if comment else text for text, comment in rows]
    head = [f"#:schema ./{_SCHEMA}"] if schema else []
    words = "# pyworker check · pyworker start · every key: pyworker config"
    more = ""
    if chosen is not None and chosen.what.startswith("Django"):
        more = _DJANGO
    elif chosen is not None and chosen.command[:1] == ("node",):
        more = _NODE
    return "\n".join([*head, words, "", "[app]", *lines]) + "\n" + more


def _environment(folder: str, cwd: str) -> str:
    """Return the virtual environment to name, "" when the app finds its own (.venv where it runs) or there is none."""
    places = [(cwd, ".venv"), ("", ".venv"), (cwd, "venv"), ("", "venv"), (cwd, "env"), ("", "env")]
    for place, name in places:
        if variable_of(os.path.join(folder, place, name)):
            is_default = (place, name) == places[0]
            return "" if is_default else os.path.relpath(os.path.join(place, name), cwd or ".")
    return _of_workspace(os.path.realpath(folder), cwd)


def _of_workspace(folder: str, cwd: str) -> str:
    """Return the environment of uv's workspace that a folder is a member of: beside the lock file, above."""
    above = folder if os.path.exists(os.path.join(folder, "pyproject.toml")) else "/"
    while above != "/" and not os.path.exists(os.path.join(above, "uv.lock")):
        above = os.path.dirname(above)
    found = os.path.join(above, ".venv")
    is_there = above != "/" and os.path.exists(os.path.join(found, "pyvenv.cfg"))
    return os.path.relpath(found, os.path.join(folder, cwd)) if is_there else ""


def _write_schema(path: str) -> None:
    from pyworker.config.jsonschema import schema

    try:
        write_file(path, json.dumps(schema(), indent=1).encode() + b"\n")
    except OSError as error:
        later = f"app.toml is written; this later: pyworker schema -o {argument(path)}"
        raise cannot("write", path, error, later) from None


def _say(settings: Settings, path: str, found: list[Found]) -> None:
    how = look(sys.stderr, settings.color)
    where = home(path)
    if not found:
        note(f"Wrote {where}. No app was recognised: write its target into line {_line_of(path, 'target')}.", how)
        note(f"Then: pyworker check --import {argument(path)}", how)
        return
    first = found[0]
    text = paint(line(_words(first)), "bold", how)
    note(f"Found {first.what}: {text} ({line(first.file)}, line {first.line}).", how)
    for other in found[1:4]:
        note(f"  also {other.what}: {line(_words(other))}", how)
    note(f"Wrote {where}.   Next: pyworker start{'' if where == 'app.toml' else ' ' + argument(path)}", how)


def _words(found: Found) -> str:
    return found.target or found.script or shlex.join(found.command)


def _line_of(path: str, key: str) -> int:
    with open(path, encoding="utf-8") as file:
        return next((n for n, text in enumerate(file, 1) if re.match(key, text)), 1)

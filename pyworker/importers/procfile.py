"""Procfile -> apps: a name and a command line each."""

from __future__ import annotations

import re

from pyworker.config.canonical import literal
from pyworker.config.check import clean_name
from pyworker.importers.commandline import hook, understand
from pyworker.importers.result import ENVIRONMENT, CannotImport, Imported, Note, Result, settle

_LINE = re.compile(r"([A-Za-z0-9_-]+):\s*(.+)\Z")


def read(text: str) -> Result:
    result = Result("Procfile", [])
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.match(line.strip())
        if found is None:  # as Heroku, foreman and honcho do
            result.dropped.append(Note(f"line {number}", "is not NAME: COMMAND, and passed over"))
            continue
        if found[1] == "release":
            line = found[2].strip()
            reason = f"runs once at a deploy; the nearest here: hooks.pre_start = {literal(hook(line))} of the web app"
            result.dropped.append(Note("release", reason))
            continue
        app = Imported(clean_name(found[1]))
        understand(app, found[2].strip(), found[1])
        if "command" in app.table and "$PORT" in found[2]:
            app.look(found[1], "takes its port from $PORT; several workers of a command cannot share one")
        result.apps.append(app)
    if not result.apps:
        raise CannotImport("there is no process in it", "a Procfile has lines such as: web: gunicorn shop.wsgi")
    result.dropped.append(ENVIRONMENT)
    settle(result.apps)
    return result

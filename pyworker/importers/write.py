"""An import's result -> the text of app.toml, its notes as comments where they belong, and the report. Pure."""

from __future__ import annotations

from typing import Any

from pyworker.config.canonical import toml
from pyworker.importers.result import Imported, Note, Result

_ORDER = (
    "target", "script", "args", "command", "factory", "interface", "cwd", "python", "workers", "threads", "bind", "balance", "loop",
    "preload", "ready", "user", "group", "umask", "env_file", "inherit_env", "watch", "tls", "env", "restart", "stop", "reload", "limits",
    "logs", "http",
)  # fmt: skip


def document(result: Result, source: str) -> str:
    head = f"# made from {_safe(source)} by pyworker import; pyworker check looks at it, pyworker start runs it\n"
    text = "\n".join([head, *(_app(app, alone=len(result.apps) == 1) for app in result.apps)])
    return text.encode(errors="replace").decode()  # halves of characters, which \\ud800 makes in any of these languages


def _app(app: Imported, *, alone: bool) -> str:
    table = {name: app.table[name] for name in sorted(app.table, key=_rank)}
    path: tuple[str, ...] = ("app",) if alone else ("apps", app.name)
    if alone:
        table = {"name": app.name, **table}
    notes = "".join(f"# LOOK {_safe(n.key)}: {_safe(n.reason)}\n" for n in app.review)
    profiles = [
        toml(found, ("profiles", name, *path))
        if "bind" in found
        else toml(found["env"], ("profiles", name, *path, "env"))
        for name, found in app.profiles.items()
    ]
    return "\n".join([notes + toml(table, path), *profiles])


def _rank(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _safe(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _notes(notes: list[Note]) -> list[dict[str, str]]:
    return [{"key": note.key, "reason": note.reason} for note in notes]


def report(result: Result) -> dict[str, Any]:
    return {
        "kind": result.kind,
        "apps": [
            {
                "name": app.name,
                "translated": app.translated,
                "review": _notes(app.review),
                "dropped": _notes(app.dropped),
            }
            for app in result.apps
        ],
        "dropped": _notes(result.dropped),
    }

"""Which program a file is of, by its name and, where that says nothing, by its first lines. Pure."""

from __future__ import annotations

import os
import re

KINDS = ("pm2", "supervisor", "gunicorn", "uwsgi", "systemd", "procfile")


def kind_of(path: str, text: str) -> str:
    """Return one of KINDS, or "" when it cannot be told."""
    name = os.path.basename(path).lower()
    ending = os.path.splitext(name)[1]
    if name.startswith("procfile") or ending == ".procfile":
        return "procfile"
    if name == "dump.pm2" or name.endswith(".pm2") or ending in (".js", ".cjs", ".mjs"):
        return "pm2"
    if re.search(r"^\s*\[(program|fcgi-program|supervisord)[:\]]", text, re.MULTILINE):
        return "supervisor"
    if re.search(r"^\s*\[uwsgi\]", text, re.MULTILINE):
        return "uwsgi"
    if re.search(r"^ExecStart\s*=", text, re.MULTILINE):
        return "systemd"
    if ending in (".json", ".yaml", ".yml") and re.search(r"\b(apps|script)\b", text):
        return "pm2"
    if ending == ".py":
        return "gunicorn"
    if re.match(r"(\s*(#.*)?\n)*[A-Za-z0-9_-]+:\s*\S", text) and ending == "":
        return "procfile"
    return ""


def surely(path: str, text: str) -> str:
    """Return the same for a file that was taken for a config or a program of ours; "" also when it may be a program."""
    name = os.path.basename(path).lower()
    ending = os.path.splitext(name)[1]
    if ending in (".js", ".cjs", ".mjs") and not name.removesuffix(ending).endswith(".config"):
        return ""
    if ending == ".py" and not re.match(r"gunicorn[._-]?conf", name):
        return ""
    if ending == "" and not name.startswith("procfile"):
        return ""
    return kind_of(path, text)

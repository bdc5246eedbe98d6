"""CLI: what a bug report needs, as `pyworker doctor --report` prints it. It is for others: the values of secrets are masked."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from typing import TYPE_CHECKING, Any

from pyworker import __version__
from pyworker.cli.options import Settings
from pyworker.protocol.names import DAEMON_LOG

if TYPE_CHECKING:
    from pyworker.cli.commands.doctor import Found

# the end of one; bounded, or what an app prints could take minutes
_NAME = r"(?:key|token|secret|pass(?:word|wd)?|pwd|dsn|credential)[\w.-]{0,100}"
_QUOTED = r"""(?P<q>\\*["']).*?(?<!\\)(?P=q)"""  # in JSON a quote has a backslash before it, in JSON within JSON three
_MASKED = re.compile(rf"""(?i)({_NAME}\\*["']?\s*[=:]\s*)(?:{_QUOTED}|\\*["']?[^\s,;&"']+)""")
_OPTION = re.compile(rf"""(?i)(-[\w.-]{{0,60}}?{_NAME}\s+)(?:{_QUOTED}|\\*["']?[^\s"',]+)""")  # --token x
_LISTED = re.compile(rf"""(?i)(-[\w.-]{{0,60}}?{_NAME}(?P<q>\\*["']),\s*(?P=q)).*?(?<!\\)(?P=q)""")  # "--token", "x"
_BEARER = re.compile(r"""(?i)(\bbearer\s+)[^\s,;"']+""")
_URL_PASSWORD = re.compile(r"""(://[^:/@\s]*:)(?:[^\s/"']{1,4000}|[^@\s]{1,4000})(@)""")  # it may have an @, or a /


def report(settings: Settings, facts: dict[str, Any], checks: list[Found]) -> str:
    """Return what a bug report needs; `checks` are those of the doctor."""
    parts = [
        f"pyworker {__version__}, Python {sys.version.split()[0]}, {platform.platform()}",
        "\n".join(f"{c.status:<5} {c.id}: {c.message}" for c in checks),
    ]
    for app in facts["apps"]:
        keep = ("name", "state", "kind", "gen", "balance", "workers", "restarts", "last_failure", "notes", "drops")
        parts.append(json.dumps({k: app.get(k) for k in keep}))
    for config in facts.get("configs") or ():
        table = {k: v for k, v in config["config"].items() if k != "env"}
        parts.append(json.dumps({config["name"]: table, "env": sorted(config["config"].get("env") or ())}))
    parts.append("packages: " + _packages())
    parts.append("last words of pyworker.log:\n" + _tail(os.path.join(settings.home, DAEMON_LOG)))
    return masked("\n\n".join(parts))


def _packages() -> str:
    from importlib import metadata

    found = []
    for name in ("click", "uvicorn", "httptools", "uvloop", "websockets", "python-dotenv"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} is missing")
    return ", ".join(found)


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 6000))
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"({error.strerror})"


def masked(text: str) -> str:
    """Return text without what looks like the value of a secret, and with ~ for the home folder."""
    text = _OPTION.sub(r"\1***", _LISTED.sub(r"\1***\g<q>", _MASKED.sub(r"\1***", text)))
    text = _BEARER.sub(r"\1***", _URL_PASSWORD.sub(r"\1***\2", text))
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text

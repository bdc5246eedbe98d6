"""Where each value of an app's config comes from: a line of the file, [defaults], a profile, the shell, or the default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pyworker.config import canonical
from pyworker.config.apps import path_of
from pyworker.config.convert import SHORT_FORMS
from pyworker.config.load import read, root_of, table_of
from pyworker.config.report import Report
from pyworker.config.schema import AppConfig
from pyworker.config.spans import Path
from pyworker.record import record


@record
class Origin:
    """`kind`: file, defaults, profile, environment, option or default; `line` 0 where there is none."""

    kind: str
    line: int = 0
    note: str = ""

    def words(self, file: str) -> str:
        """Return it as a reader wants it: "app.toml:6", "default"."""
        name = os.path.basename(file)
        match self.kind:
            case "file":
                return f"{name}:{self.line}"
            case "defaults" | "profile":
                return f"{name}:{self.line} ({self.note})"
            case "environment":
                return f"the environment's {self.note}"
            case "option":
                return "the command line"
            case _:
                return "default"


def origins(
    app: AppConfig,
    file: str,
    environ: Mapping[str, str],
    *,
    profile: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Origin]:
    """Return an origin for each key of `canonical.flat`, and for "env.NAME" of [env]."""
    keys = [*canonical.flat(app), *(f"env.{name}" for name in app.env)]
    given = set(canonical.flatten(overrides or {}))
    if not file:
        given |= set(canonical.flatten(canonical.table(app)))
        return {k: Origin("option" if k in given else "default") for k in keys}
    _, document = read(file)
    report = Report(file, document)
    report.root, report.profile = root_of(file), profile
    own = table_of(file, app.name, document)
    found: dict[str, Origin] = {}
    for key in keys:
        parts: Path = ("env", key[4:]) if key.startswith("env.") else tuple(key.split("."))
        place = path_of(parts, own, report)
        if SHORT_FORMS.get(str(parts[0])) == parts[-1] and not report.has(place) and not report.is_table(place[:-1]):
            place = place[:-1]  # restart = "never"
        if key in given or key.split(".")[0] in given:
            found[key] = Origin("option")
        elif report.has(place) and place[-1] in parts:
            found[key] = _in_file(place, report.root, document.place(document.spans[place].key).line)
        elif key == "bind" and environ.get("PORT"):
            found[key] = Origin("environment", note="PORT")
        elif key == "workers" and environ.get("WEB_CONCURRENCY"):
            found[key] = Origin("environment", note="WEB_CONCURRENCY")
        else:
            found[key] = Origin("default")
    return found


def _in_file(place: Path, root: Path, line: int) -> Origin:
    below = place[len(root) :]
    if below[:1] == ("defaults",):
        return Origin("defaults", line, "[defaults]")
    if below[:1] == ("profiles",):
        return Origin("profile", line, f"profile {below[1]}")
    return Origin("file", line)

"""CLI: `pyworker wait`: silent until apps are ready (or stopped), for scripts. Never starts a daemon."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from pyworker.cli import render
from pyworker.cli.asking import need_names
from pyworker.cli.client import ask
from pyworker.cli.options import Settings, common
from pyworker.errors import Exit, PyworkerError

_PAUSE = 0.1


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--for", "goal", type=click.Choice(["ready", "stopped"]), default="ready", help="What to wait for.")
@common
def cmd(settings: Settings, names: tuple[str, ...], goal: str) -> int:
    """Wait until apps are ready, or stopped. Exit 1 when one has failed, 75 when --timeout is over.

    \b
    pyworker wait api --timeout 60s
    pyworker wait api --for stopped
    """
    need_names(settings, "wait", names)
    began = time.monotonic()
    while True:
        request = {"type": "ps", "selectors": list(names), "sample": False}
        apps: list[dict[str, Any]] = ask(settings.home, request)["apps"]
        open_apps = [app for app in apps if not _reached(app, goal)]
        failed = [app for app in open_apps if app["state"] == "failed"]
        if failed and goal == "ready":
            why = (failed[0].get("last_failure") or {}).get("message") or "no reason is known"
            name = render.line(failed[0]["name"])
            raise PyworkerError(f"{name} has failed: {why}", hint=f"pyworker describe {name}")
        if not open_apps:
            break
        if settings.timeout is not None and time.monotonic() - began > settings.timeout:
            left = ", ".join(f"{render.line(a['name'])} is {a['state']}" for a in open_apps)
            raise PyworkerError(
                f"not {goal} within {settings.timeout:g} s: {left}",
                hint="pyworker describe says what it waits for",
                code="timeout",
                exit=Exit.BUSY,
            )
        time.sleep(_PAUSE)
    if settings.json:
        for app in apps:
            took = round(time.monotonic() - began, 3)
            render.out(json.dumps({"v": 1, "ok": True, "app": app["name"], "state": app["state"], "took_s": took}))
    return 0


def _reached(app: dict[str, Any], goal: str) -> bool:
    if goal == "stopped":
        return bool(app["state"] in {"stopped", "failed"} and not app["workers"].get("total"))
    return bool(app["state"] in {"running", "reloading"})

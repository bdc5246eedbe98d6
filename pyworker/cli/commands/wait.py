"""CLI: `pyworker wait`: silent until apps are ready (or stopped), for scripts. Starts nothing, and says so."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import click

from pyworker.cli import render
from pyworker.cli.asking import need_names
from pyworker.cli.client import ANSWER_TIME, DaemonAway, apps_now, patience, waiting
from pyworker.cli.deadline import TURN, Deadline
from pyworker.cli.fail import is_said
from pyworker.cli.health import why_unwell
from pyworker.cli.options import Settings, common, option
from pyworker.errors import PyworkerError
from pyworker.protocol.events import names_in_words

_PAUSE = 0.1


class Goal(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """`ready`, `stopped`, or `gen=N`: ready with that generation or a later one."""

    name = "goal"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in {"ready", "stopped"} and not re.match(r"gen=\d{1,9}\Z", value):
            self.fail(f"{value!r} is nothing to wait for: write ready, stopped or gen=8", param, ctx)
        return value


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@option("--for", "goal", type=Goal(), default="ready", metavar="ready|stopped|gen=N", help="What to wait for (ready).")
@common
def cmd(settings: Settings, names: tuple[str, ...], goal: str) -> int:
    """Wait until apps are ready, or stopped. Exit 1 when one has failed, 75 when --timeout is over.

    \b
    pyworker wait api --timeout 60s
    pyworker wait api --for stopped
    pyworker wait api --for gen=8         that generation serves, or a later one
    """
    need_names(settings, "wait", names)
    began = time.monotonic()
    deadline = None if settings.timeout is None else Deadline(settings.timeout, TURN)
    apps: list[dict[str, Any]] | None = None
    has_said = settings.is_silent
    while True:
        apps = _look(settings, names, goal, deadline, is_first=apps is None)
        open_apps = [app for app in apps if not _reached(app, goal)]
        failed = [app for app in open_apps if app["state"] == "failed"]
        if failed and goal != "stopped":
            raise _failed(failed[0])
        if not open_apps:
            break
        stopped = [render.line(a["name"]) for a in open_apps if a["state"] == "stopped" and not a["started_at"]]
        if deadline is not None and deadline.left() < 0:
            left = ", ".join(_as_it_is(app) for app in open_apps)
            first = render.line(open_apps[0]["name"])
            step = f"pyworker start {stopped[0]}" if stopped else f"pyworker describe {first}   says why"
            raise PyworkerError(f"not {goal} within {settings.timeout:g} s: {left}", hint=step, code="timeout")
        if stopped and goal != "stopped" and not has_said:
            has_said = True
            step = f"pyworker start {' '.join(stopped)}"
            note = f"{names_in_words(stopped)} {'are' if stopped[1:] else 'is'} stopped; waiting for a start: {step}"
            render.note(note)
        idle = [app for app in open_apps if _why_idle(app)]
        if idle and goal != "stopped" and not has_said:
            has_said = True
            for app in idle:
                render.note(_as_it_is(app))
        time.sleep(_PAUSE)
    if not apps and not has_said:
        render.note(render.NO_APP)
    if settings.json:
        for app in apps:
            took = round(time.monotonic() - began, 3)
            render.out(json.dumps({"v": 1, "ok": True, "app": app["name"], "state": app["state"], "took_s": took}))
    return 0


def _look(
    settings: Settings, names: tuple[str, ...], goal: str, deadline: Deadline | None, *, is_first: bool
) -> list[dict[str, Any]]:
    """Return the apps as they are now; of the next daemon when this one goes away or hangs."""
    lost_at = time.monotonic()
    has_said = settings.is_silent
    while True:
        left = ANSWER_TIME if deadline is None else deadline.left()
        try:
            return apps_now(settings.home, min(ANSWER_TIME, max(1.0, left)), names, whole=True)
        except PyworkerError as error:
            now = time.monotonic()
            if now - lost_at >= patience(error) or (is_first and isinstance(error, DaemonAway)):
                raise
            if deadline is not None and deadline.left() < 0:
                message = f"not {goal} within {settings.timeout:g} s: {error.message}"
                raise PyworkerError(message, hint=error.hint, code="timeout") from None
            if not has_said:
                has_said = True
                render.note(waiting(error))
            time.sleep(_PAUSE)


def _as_it_is(app: dict[str, Any]) -> str:
    """Return the state of an app in words, and what ails it."""
    unwell = why_unwell(app) or _why_idle(app)
    return f"{render.line(app['name'])} is {app['state']}{f': {unwell}' if unwell else ''}"


def _why_idle(app: dict[str, Any]) -> str:
    """Return why an app that is started is to have no worker (scaled to 0), with what gives it one; "" of any other."""
    is_idle = app["state"] == "stopped" and app["started_at"] and not app["workers"].get("want")
    return render.line(app["notes"][-1]) if is_idle and app.get("notes") else ""


def _failed(app: dict[str, Any]) -> PyworkerError:
    failure = app.get("last_failure") or {}
    name, why = render.line(app["name"]), str(failure.get("message") or "no reason is known")
    lines = str(failure.get("traceback") or "")
    hints = [str(failure.get("hint") or ""), f"pyworker describe {name}   says more"]
    hint = "\n".join(filter(None, hints))
    return PyworkerError(f"{name} has failed: {why}", hint=hint, traceback="" if is_said(lines, why) else lines)


def _reached(app: dict[str, Any], goal: str) -> bool:
    if goal == "stopped":
        return bool(app["state"] in {"stopped", "failed"} and not app["workers"].get("total"))
    wanted = int(goal.removeprefix("gen=")) if goal.startswith("gen=") else 0
    # committed is not yet serving: the new workers have still to accept, of a command without bind even to start
    serving = {w["worker"] for w in app["pool"] if w["state"] in {"ready", "unhealthy"}}
    old = any(w["gen"] < wanted for w in app["pool"])  # while it reloads, they may accept one more
    is_open = app["state"] in {"running", "scheduled"} or (not old and len(serving) >= (app["workers"]["want"] or 0))
    return bool(app["state"] in {"running", "reloading", "scheduled"} and app["gen"] >= wanted and is_open)

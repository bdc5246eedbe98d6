"""CLI: `pyworker daemon status|start|stop`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from pyworker.cli import render
from pyworker.cli.asking import confirm
from pyworker.cli.client import DaemonAway, Lost, ask, connect, perform
from pyworker.cli.options import Settings, common
from pyworker.errors import Exit, PyworkerError
from pyworker.protocol.names import CONTROL_SOCKET

_HELP = {"help_option_names": ["-h", "--help"]}
_STOP_TIME = 120.0  # seconds for all apps to drain, unless --timeout says more


@click.group()
def cmd() -> None:
    """The daemon that keeps the apps running."""


@cmd.command(context_settings=_HELP)
@common
def status(settings: Settings) -> int:
    """Say whether it runs, and where. Exit 69 when it does not."""
    try:
        body = ask(settings.home, {"type": "status"}, settings.timeout)
    except DaemonAway:
        if not settings.json:
            raise
        render.out(json.dumps({"v": 1, "running": False}))
        return int(Exit.UNAVAILABLE)
    body["socket"] = os.path.join(str(body.get("home")), CONTROL_SOCKET)
    how = render.look(sys.stdout, settings.color)
    if settings.json:
        render.out(json.dumps({"v": 1, "running": True, **body}), how)
        return 0
    lines = [
        f"running     pid {body.get('pid')}, since {render.span(body.get('uptime_s'))}, version {body.get('version')}",
        f"home        {render.home(str(body.get('home')))}",
        f"guardian    pid {body.get('guardian_pid')}",
        f"logger      pid {body.get('logger_pid')}",
        f"apps        {body.get('apps')}",
    ]
    render.out("\n".join(map(render.clean, lines)), how)
    return 0


@cmd.command(context_settings=_HELP)
@common
def start(settings: Settings) -> int:
    """Start it; what ran before is restored. Does nothing when it runs."""
    from pyworker.cli.launch import ensure_daemon

    pid = ensure_daemon(settings.home)
    if settings.json:
        render.out(json.dumps({"v": 1, "running": True, "started": bool(pid), "guardian_pid": pid or None}))
    elif not settings.quiet:
        where = render.home(settings.home)
        text = f"Started the pyworker daemon (guardian pid {pid}, home {where})" if pid else "It runs already."
        render.note(text)
    return 0


@cmd.command(context_settings=_HELP)
@click.option("--now", is_flag=True, help="Do not wait for open requests.")
@common
def stop(settings: Settings, now: bool) -> int:
    """Stop every app, then the daemon. The next `daemon start` restores what ran."""
    try:
        apps = ask(settings.home, {"type": "ps", "selectors": [], "sample": False})["apps"]
    except DaemonAway:
        _said(settings, "The daemon is not running.")
        return 0
    running = [render.line(a["name"]) for a in apps if a["state"] not in {"stopped", "failed"}]
    if running:
        confirm(settings, f"This stops {', '.join(running)}.", "pyworker daemon stop")
    deadline = time.monotonic() + (settings.timeout or _STOP_TIME)
    timeout = settings.timeout or _STOP_TIME
    try:
        perform(settings.home, {"type": "shutdown", "now": now}, _nothing, None, timeout)
    except (Lost, DaemonAway):
        pass  # it may be gone before its answer was written; what counts is checked below
    except TimeoutError:
        raise _still_there(settings, timeout) from None
    while _answers(settings.home):
        if time.monotonic() > deadline:
            raise _still_there(settings, timeout)
        time.sleep(0.02)
    _said(settings, "The daemon has stopped.")
    return 0


def _said(settings: Settings, text: str) -> None:
    if settings.json:
        render.out(json.dumps({"v": 1, "running": False}))
    elif not settings.quiet:
        render.note(text)


def _answers(home: str) -> bool:
    try:
        connect(home).close()
    except DaemonAway:
        return False
    except PyworkerError:
        return True
    return True


def _still_there(settings: Settings, timeout: float) -> PyworkerError:
    return PyworkerError(
        f"The daemon (home {settings.home}) is still stopping after {timeout:g} s; it goes on.",
        hint="pyworker ps shows what it waits for; pyworker daemon stop --now cuts open requests",
        code="timeout",
        exit=Exit.BUSY,
    )


def _nothing(_event: dict[str, Any] | None) -> None:
    """Take no notice of the events: the end is what counts."""

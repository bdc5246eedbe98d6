"""CLI: `pyworker start`: checks what it is given, starts the daemon when none runs, then the apps.

A config file is validated here first: with a mistake in it nothing is started, the daemon included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pyworker.cli import render
from pyworker.cli.client import DaemonAway, apps_now, shell_env
from pyworker.cli.here import absolute
from pyworker.cli.operation import Header, run, who_starts
from pyworker.cli.options import Settings, common, of_profile, option
from pyworker.cli.render import line
from pyworker.cli.startable import Startable, Words, find_startable, hint_to_app, hint_to_program, split_environment
from pyworker.errors import PyworkerError


class StartCommand(click.Command):
    """Keeps what stands after `--` apart: it is the app's command line, not ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["pyworker.after"] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


class WorkersType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A whole number, or "auto"."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value if isinstance(value, int) else str(value)
        # of some thousand digits Python makes no number
        if not (str(value).isascii() and str(value).isdigit() and len(str(value)) < 1000):
            self.fail(f'{value!r:.60} is neither a whole number nor "auto"', param, ctx)
        return int(value)


_Command = TypeVar("_Command", bound=Callable[..., Any])
_STARTING = "\rStarting the pyworker daemon …"  # until there is more to say
_WHAT_IT_IS = (
    option("-w", "--workers", type=WorkersType(), metavar="N|auto", help="Number of workers."),
    option("-b", "--bind", multiple=True, metavar="ADDR", help="host:port, :port, unix:PATH; repeatable."),
    option("--name", help="Name of an app without a file."),
    option("-e", "--env", multiple=True, metavar="K=V", help="A variable of its environment; repeatable."),
    option("--env-file", multiple=True, metavar="FILE", help="A dotenv file; repeatable."),
    option("--balance", metavar="HOW", help="round-robin, shared, least-connections or proxy."),
    option("--threads", type=int, metavar="N", help="Threads of a WSGI worker."),
    option("--factory", is_flag=True, default=None, help="MODULE:APP is a function that returns the app."),
    option("--interface", metavar="KIND", help="auto, asgi or wsgi."),
    option("--cwd", metavar="DIR", help="Working directory."),
    option("--python", metavar="PATH", help="Virtual environment or interpreter of the app."),
    option("--only", multiple=True, metavar="NAME", help="Only this app of the file, and what it needs; repeatable."),
    of_profile,
    option("--watch", is_flag=True, default=None, help="Reload when a file changes (development)."),
)


def what_it_is(command: _Command) -> _Command:
    """The options that say what is started, and how it runs: those that `pyworker run` takes, too."""
    for add in reversed(_WHAT_IT_IS):
        command = add(command)
    return command


@click.command(cls=StartCommand)
@click.argument("what", nargs=-1, metavar="[FILE.toml | MODULE:APP | SCRIPT.py | NAME...] [-- COMMAND...]")
@what_it_is
@option("--wait/--no-wait", default=True, help="Return when it is ready or has failed (default).")
@option("-n", "--dry-run", is_flag=True, help="Check all and say what would start; start nothing.")
@common
def cmd(
    settings: Settings,
    what: tuple[str, ...],
    only: tuple[str, ...],
    wait: bool,
    dry_run: bool,
    name: str | None,
    profile: str,
    **options: Any,
) -> int:
    """Start an app and wait until it is ready, or say why it is not. Starts the daemon when none runs.

    Without an argument: the config file of this folder. What runs already is left alone.

    \b
    pyworker start app.toml
    pyworker start shop.main:app -w 4 -b :8000
    pyworker start server.py -- --port 9000
    pyworker start --name tick -- sh -c 'while :; do date; sleep 1; done'
    """
    after = click.get_current_context().meta.get("pyworker.after")
    found = find_startable(Words(what, after, only, name, overrides_of(options), profile))
    if dry_run:
        return _dry_run(settings, found)
    boots = {"boots": True} if _launch(settings) else {}
    request = {**found.request, "type": "start", "cwd": os.getcwd(), "shell_env": shell_env(), "wait": wait, **boots}
    try:
        return run(settings, "start", request, _header(found))
    except PyworkerError as error:
        if error.code == "no_such_app":
            found_here = next(filter(None, map(hint_to_app, what)), "")
            error.hint = found_here or "\n".join(filter(None, (hint_to_program(what), error.hint)))
        raise


def overrides_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given as config keys: relative paths are those of this shell."""
    found = {k: v for k, v in options.items() if v is not None and v != ()}
    if env := found.get("env"):
        found["env"] = split_environment(env)
    for key in ("bind", "env_file"):
        if key in found:
            found[key] = list(found[key])
    if "env_file" in found:
        found["env_file"] = [absolute(path) for path in found["env_file"]]
    if "cwd" in found:
        found["cwd"] = absolute(found["cwd"])
    python = found.get("python", "")
    if os.sep in python or os.path.exists(python):
        found["python"] = absolute(python)
    return found


def _launch(settings: Settings) -> bool:
    """Have a daemon; return whether it was started for this."""
    from pyworker.cli.launch import ensure_daemon, started_in_words

    how = render.look(sys.stderr, settings.color)
    if settings.is_silent or not render.can_rewrite(how):
        pid = ensure_daemon(settings.home)
    else:
        try:
            pid = ensure_daemon(settings.home, lambda: render.write(sys.stderr, _STARTING, how))
        finally:
            render.write(sys.stderr, "\r\x1b[J", how)
    if pid and not settings.is_silent:
        render.note(render.paint(started_in_words(settings.home, pid), "dim", how), how)
    return pid > 0


def _dry_run(settings: Settings, found: Startable) -> int:
    if not found.apps:
        message = "-n looks at a file, MODULE:APP, script or command; names are the daemon's"
        raise PyworkerError(message, hint="what a reload would change: pyworker diff NAME", code="usage")
    from pyworker.cli.commands.check import refused_here

    running = _running(settings)
    to_start = [app for app in found.apps if app.name not in running]
    refused = refused_here(to_start, found.request.get("file", ""), found.request.get("profile", ""))
    if refused:
        from pyworker.config.problem import ConfigError

        raise ConfigError(refused)
    if settings.json:
        import json

        render.out(json.dumps({"v": 1, "ok": True, "would_start": [app.name for app in to_start]}))
        return 0
    for app in found.apps:
        is_there = app.name in running
        render.out(f"{app.name} runs already" if is_there else f"would start {app.name}: {found.describe(app.name)}")
    return 0


def _running(settings: Settings) -> set[str]:
    """Return the names of apps that a start leaves alone."""
    try:
        apps = apps_now(settings.home, settings.timeout)
    except DaemonAway:
        return set()
    return {app["name"] for app in apps if app["state"] not in {"stopped", "stopping", "failed"}}


def _header(found: Startable) -> Header:
    """Return what turns app_started into the line above the workers: what it is, how many, where."""

    def header(event: dict[str, Any], tty: bool) -> str:
        app = line(event.get("app") or "")
        data = event.get("data") or {}
        listen = ", ".join(line(a).removeprefix("http://") for a in data.get("listen") or ())
        what = found.kind_and_balance(app)
        workers = who_starts(data)
        where = f" on {listen}" if listen else ""
        text = f"{line(what[0])}, {workers}{f', {what[1]}{where}' if where else ''}" if what else f"{workers}{where}"
        return f"Starting {app} — {text}" if tty else f"starting {app}: {text}"

    return header

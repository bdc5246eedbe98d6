"""CLI: `pyworker run`: the same guardian, daemon and logger, in the foreground and without a file.

This process becomes the guardian: as the first process of a container it is the one that reaps, and its exit code is
the apps' fate. A config with a mistake in it ends here, before anything is started.
"""

from __future__ import annotations

import math
import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pyworker.cli import render
from pyworker.cli.client import shell_env
from pyworker.cli.commands.start import StartCommand, overrides_of, what_it_is
from pyworker.cli.options import Settings, common, option
from pyworker.cli.startable import Startable, Words, find_startable, hint_to_app, hint_to_program
from pyworker.errors import PyworkerError

if TYPE_CHECKING:
    from pyworker.config.schema import AppConfig

_DOCKER_GRACE = 10.0  # seconds that docker and podman give by default
_MARGIN = 5.0


@click.command(cls=StartCommand)
@click.argument("what", nargs=-1, metavar="[FILE.toml | MODULE:APP | SCRIPT.py] [-- COMMAND...]")
@what_it_is
@option("--restart", metavar="POLICY", help="always, on-failure or never (a job: its exit code is ours).")
@option("--once", is_flag=True, help="Run it now and once, whatever its cron and restart say; exit with its code.")
@option("--logs", type=click.Choice(("short", "json", "plain")), help='"api.2 | line", JSON, or as printed.')
@option("--probe", metavar="ADDR", help="Serve /livez /readyz /metrics there, for example :8081.")
@option("--lame-duck", metavar="TIME", help="Serve on for this long after SIGTERM, not ready any more.")
@common
def cmd(
    settings: Settings,
    what: tuple[str, ...],
    only: tuple[str, ...],
    once: bool,
    name: str | None,
    profile: str,
    logs: str | None,
    probe: str | None,
    lame_duck: str | None,
    **options: Any,
) -> int:
    """Run apps in the foreground, for containers and service managers. Needs no folder that can be written to.

    SIGTERM drains and ends (twice: at once), SIGHUP reloads. Logs go to stdout, what happens to stderr. The exit code
    is 0 after SIGTERM, that of a job, 1 when an app has failed for good, 78 when it cannot be started as it is.

    \b
    pyworker run app.toml
    pyworker run app.toml --probe :8081 --logs json
    pyworker run shop.main:app -w auto -b :8000
    pyworker run app.toml --only nightly --once
    """
    from pyworker.protocol.run import orders

    # as process 1 they would be lost until the guardian has its handlers
    signal.pthread_sigmask(signal.SIG_BLOCK, orders(at_a_terminal=os.isatty(0)))
    after = click.get_current_context().meta.get("pyworker.after")
    is_file = after is None and (not what or what[0].endswith(".toml") or os.path.isdir(what[0]))
    overrides = _overrides(options, once=once) | ({"cron": ""} if once and is_file else {})
    found = find_startable(Words(what, after, only, name, overrides, profile, "run"))
    if not found.apps:
        message = "run takes a file, MODULE:APP, a script or a command; names are those of a daemon"
        hint = hint_to_app(what[0], "run") or hint_to_program(what, "run")
        hint = hint or "pyworker start NAME starts an app that the daemon knows"
        raise PyworkerError(message, hint=hint, code="usage")
    if not any(app.inherit_env for app in found.apps):  # the environment of a container is meant for the app
        table = found.request.setdefault("inline" if found.request.get("inline") else "overrides", {})
        table["inherit_env"] = ["*"]
    from pyworker.config.load import run_config

    given = {"logs": logs or ("json" if settings.json else None), "probe": probe, "lame_duck": lame_duck}
    config = run_config(found.request.get("file") or "", given, found.apps, is_root=os.geteuid() == 0)
    if not settings.quiet:
        apps = _with_what_they_need(found)
        _say_how_long(apps, config.lame_duck)
        _say_what_does_not_fit(apps)
    _become(settings, found, config)


def _overrides(options: dict[str, Any], *, once: bool) -> dict[str, Any]:
    found = overrides_of(options)
    if once:
        found["restart"] = "never"
    if policy := found.pop("restart", None):
        found["restart"] = {"policy": policy}
    return found


def _become(settings: Settings, found: Startable, config: Any) -> NoReturn:
    """Exec the guardian. Does not return."""
    from pyworker.cli.launch import become, check_installation, check_kernel
    from pyworker.protocol import wire
    from pyworker.protocol.run import RunSpec
    from pyworker.unix.fds import keep_from_exec, memfd

    check_kernel()
    check_installation()
    request = {**found.request, "cwd": os.getcwd(), "shell_env": shell_env()}
    request.pop("type", None)
    spec = RunSpec(request, settings.home, config.logs, config.probe or "", config.lame_duck)
    fd = memfd("pyworker-run", wire.encode(spec))
    keep_from_exec()  # hooks, of another user maybe, would have what the shell had open
    os.set_inheritable(fd, True)
    become(["pyworker.guardian", "--run", str(fd)])


def _say_what_does_not_fit(apps: list[AppConfig]) -> None:
    from pyworker.config.cpus import usable_cpus
    from pyworker.unix import oom

    limit = oom.group_limit()
    wanted = 0
    for app in apps:
        if isinstance(app.limits.memory, int):
            wanted += app.limits.memory * (usable_cpus() if app.workers == "auto" else app.workers)
    if limit is not None and wanted > limit:
        render.note(
            f"pyworker: limits.memory allows all workers {render.size(wanted)} together, and the cgroup {render.size(limit)}: "
            'the kernel may kill first; limits.memory = "auto" is a share of what there is'
        )


def _say_how_long(apps: list[AppConfig], lame_duck: float) -> None:
    if os.environ.get("INVOCATION_ID"):  # a unit of systemd, which waits 90 s unless it says otherwise
        return
    from pyworker.config.between import longest_stop

    longest = longest_stop(apps) + lame_duck
    if longest > _DOCKER_GRACE:
        needed = math.ceil(longest + _MARGIN)  # neither takes a fraction
        render.note(
            f"pyworker: a stop takes up to {longest:g} s; give docker --stop-timeout {needed}, "
            f"or terminationGracePeriodSeconds: {needed}"
        )


def _with_what_they_need(found: Startable) -> list[AppConfig]:
    """Return all that runs: of a file, with `--only`, also what these depend on."""
    from pyworker.config.between import with_dependencies
    from pyworker.config.load import load

    own = {app.name: app for app in found.apps}
    if not found.request.get("only"):
        return list(found.apps)
    every = load(found.request["file"], environ=os.environ, profile=found.request["profile"]).apps
    together = with_dependencies(every, own)
    return [own.get(app.name, app) for app in every if app.name in together]

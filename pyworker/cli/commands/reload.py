"""CLI: `pyworker reload`: new code and settings, no request lost; or nothing changes and it says why."""

from __future__ import annotations

import os

import click

from pyworker.cli.asking import looking_into_file
from pyworker.cli.client import shell_env
from pyworker.cli.here import here
from pyworker.cli.operation import run
from pyworker.cli.options import Settings, common, option
from pyworker.errors import PyworkerError


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@option("--wait/--no-wait", default=True, help="Return when the new workers accept (default).")
@option("--soak", is_flag=True, help="Return when the soak is over; exit 1 if the new version was rolled back in it.")
@option("--abort", is_flag=True, help="Give up the reload that is under way or in its soak.")
@common
def cmd(settings: Settings, names: tuple[str, ...], wait: bool, soak: bool, abort: bool) -> int:
    """Bring in new code and settings without a gap. Code that does not start leaves the old workers serving.

    Without a name: the apps of the config file in this folder, else all. A command without `bind` may hold a port of
    its own: its old workers stop first, whatever becomes of the new ones.

    \b
    pyworker reload api
    pyworker reload             what the file here describes
    pyworker reload api --soak  for a deployment that must know
    pyworker reload --abort     back to the workers from before, as long as the soak lasts
    """
    if abort and soak:
        raise click.UsageError("--abort ends what --soak waits for: give one of them")
    if abort:
        return run(settings, "abort", {"type": "abort", "selectors": list(names) or ["all"], "wait": wait})
    of_the_file = [] if names else _here()
    selectors = list(names) or of_the_file or ["all"]
    request = {"type": "reload", "selectors": selectors, "shell_env": shell_env(), "wait": wait}
    if soak:
        request["soak"] = True
    try:
        with looking_into_file(names):
            return run(settings, "reload", request)
    except PyworkerError as error:
        if of_the_file and error.code == "no_such_app":
            error.hint = f"is it new in the file? pyworker start\n{error.hint}"
        raise


def _here() -> list[str]:
    """Return the names of the apps in the config file of this folder, if there is one."""
    from pyworker.config import load

    path = load.find(here(), os.environ)
    return [app.name for app in load.load(path, environ=os.environ).apps] if path else []

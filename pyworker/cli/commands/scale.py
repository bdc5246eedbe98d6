"""CLI: `pyworker scale`: more or fewer workers, at once, kept until the config file says otherwise."""

from __future__ import annotations

import re

import click

from pyworker.cli.asking import looking_into_file
from pyworker.cli.fail import Shown
from pyworker.cli.operation import run
from pyworker.cli.options import Settings, common, option
from pyworker.cli.progress import Board
from pyworker.cli.render import line, note
from pyworker.errors import PyworkerError

_CHANGE = re.compile(r"(?:[+-]?[0-9]{1,6}|auto)\Z")
_NOT_SAVED = "No file was changed: --save again when it is done."
_NAME = re.compile(r"[a-z0-9*?\[][a-z0-9_*?\[\]-]*\Z")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("changes", nargs=-1, metavar="NAME=N...")
@option("--wait/--no-wait", default=True, help="Return when the new workers are ready (default).")
@option(
    "--save",
    is_flag=True,
    help="Write the number into the config file too, when the new workers are ready; all else in it stays as it is.",
)
@common
def cmd(settings: Settings, changes: tuple[str, ...], wait: bool, save: bool) -> int:
    """Set the number of workers of an app: a number, +N, -N, or auto (the usable CPUs).

    \b
    pyworker scale api=8
    pyworker scale api +2
    pyworker scale api=auto jobs=4
    pyworker scale api=8 --save     also in app.toml, its comments kept
    pyworker scale api=0            the port stays open: who connects waits for a worker
    """
    wanted = parse(changes)
    board = Board()
    request = {"type": "scale", "changes": wanted, "wait": wait}
    try:
        with looking_into_file(wanted):
            code = run(settings, "scale", request, board=board)
    except Shown:  # by Ctrl-C
        if save and not settings.is_silent:
            note(_NOT_SAVED)
        raise
    except PyworkerError as error:
        if save and error.code == "timeout":
            error.hint += f"\n{_NOT_SAVED}"
        raise
    if code and save and not settings.is_silent:
        note("Not all is well, so no file was changed: --save again when it is.")
    if code == 0:
        from pyworker.cli.savescale import save_workers, say_what_is_written

        if save:
            save_workers(settings, wanted, board.scaled)
        elif not settings.is_silent:
            say_what_is_written(settings, wanted, board.scaled)
    return code


def parse(words: tuple[str, ...]) -> dict[str, str]:
    """Return app -> change from "api=8", "api +2", "api=auto jobs=4"; raise PyworkerError for anything else."""
    changes: dict[str, str] = {}
    rest = list(words)
    for word in rest:  # unknown options come here as words, because -1 must
        if word.startswith("-") and not _CHANGE.match(word):
            raise _wrong(f"no such option: {line(word)}")
    while rest:
        name, equals, change = rest.pop(0).partition("=")
        if not equals and rest and _CHANGE.match(rest[0]):
            change = rest.pop(0)
        if re.match(r"[^.]+\.[0-9]+\Z", name):
            app = name.partition(".")[0]
            message = f"{line(name)} is a worker: this is done with whole apps"
            raise PyworkerError(message, hint=f"name the app: {line(app)}", code="no_such_app")
        if not _NAME.match(name):
            raise _wrong(f"{line(name)!r} is no app's name")
        if not change:
            raise _wrong(f"how many workers shall {name} have?")
        if not _CHANGE.match(change):
            raise _wrong(f"{line(change)!r} is no number of workers")
        if name in changes:
            raise _wrong(f"{name} is named twice")
        changes[name] = change
    if not changes:
        raise _wrong("scale what?")
    return changes


def _wrong(message: str) -> PyworkerError:
    hint = "pyworker scale api=8, pyworker scale api +2, pyworker scale api=auto"
    return PyworkerError(message, hint=hint, code="usage")

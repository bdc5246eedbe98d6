"""CLI: the questions before a command that concerns everything, and the answer to one that named nothing, or no app."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator

from pyworker.cli.client import ANSWER_TIME, apps_now
from pyworker.cli.fail import Shown
from pyworker.cli.options import Settings
from pyworker.cli.render import line
from pyworker.errors import Exit, PyworkerError


def app_names(settings: Settings) -> list[str]:
    # however short --timeout is: that is for what is asked for then
    patience = None if settings.timeout is None else max(settings.timeout, ANSWER_TIME)
    return [str(app["name"]) for app in apps_now(settings.home, patience)]


def need_names(settings: Settings, verb: str, names: tuple[str, ...]) -> None:
    """Refuse a command without names that would do harm to everything; the error lists what there is."""
    if names:
        return
    known = app_names(settings)
    listed = f"the apps are: {', '.join(line(n) for n in known)}" if known else "there are no apps"
    raise PyworkerError(f"{verb} what? {listed}", hint=f"pyworker {verb} NAME, or: pyworker {verb} all", code="usage")


@contextlib.contextmanager
def looking_into_file(names: Iterable[str]) -> Iterator[None]:
    """Have an error about an app that the daemon does not know say so when the config file of this folder has it."""
    try:
        yield
    except PyworkerError as error:
        if error.code == "no_such_app":
            from pyworker.cli.startable import hint_to_file

            error.hint = next(filter(None, map(hint_to_file, names)), error.hint)
        raise


def confirm(settings: Settings, what: str, command: str) -> None:
    """Ask before something that concerns everything. Without a terminal it is refused and -y named."""
    if settings.yes:
        return
    if sys.stdin.isatty() and sys.stderr.isatty() and not settings.json:
        import click

        if click.confirm(f"{what} Continue?", err=True):
            return
        raise Shown(int(Exit.FAILED))
    raise PyworkerError(f"{what} There is no terminal to ask on.", hint=f"if you mean it: {command} -y", code="usage")


def confirm_all(settings: Settings, verb: str, names: tuple[str, ...]) -> None:
    """Ask before `stop all` and `delete all`, when there is something to stop."""
    if settings.yes or not {"all", "*"} & set(names):
        return
    known = app_names(settings)
    if known:
        plural = f"{len(known)} apps" if len(known) != 1 else "1 app"
        confirm(settings, f"{verb} all concerns {plural}: {', '.join(map(line, known))}.", f"pyworker {verb} all")

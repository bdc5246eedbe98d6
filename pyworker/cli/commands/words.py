"""CLI: pm2's words: `save`, `resurrect`, `flush`, `kill` do here what their users expect of them."""

from __future__ import annotations

import os

import click

from pyworker.cli.asking import confirm, need_names
from pyworker.cli.client import ask
from pyworker.cli.files import cannot
from pyworker.cli.options import Settings, common, option, say
from pyworker.cli.render import argument, line, note
from pyworker.errors import PyworkerError

_OK = {"ok": True}


@click.command(hidden=True)
@option("--force", is_flag=True, hidden=True)
@common
def save(settings: Settings, force: bool) -> int:
    """Nothing to do: what runs is saved at every change, and restored when the daemon starts."""
    return say(settings, _OK, "Nothing to do: what runs is saved at every change, and restored when the daemon starts.")


@click.command(hidden=True)
@common
def resurrect(settings: Settings) -> int:
    """Start the daemon, which restores what ran."""
    from pyworker.cli.launch import ensure_daemon

    pid = ensure_daemon(settings.home)
    text = "The daemon is started; it restores what ran: pyworker ps" if pid else "The daemon runs already."
    return say(settings, _OK, text)


@click.command(hidden=True)
@click.argument("names", nargs=-1, metavar="NAME...")
@common
def flush(settings: Settings, names: tuple[str, ...]) -> int:
    """Empty the logs of apps; rotated files stay."""
    need_names(settings, "flush", names)
    request = {"type": "describe", "selectors": list(names), "whole": True}
    apps = ask(settings.home, request, settings.timeout)["apps"]
    if apps and {"all", "*"} & set(names):
        confirm(settings, f"This empties the logs of {', '.join(line(a['name']) for a in apps)}.", "pyworker flush all")
    for app in apps:
        path = str(app["log_file"])
        try:
            os.truncate(path, 0)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot("empty", path, error) from None
    text = f"Emptied the log of {', '.join(line(a['name']) for a in apps)}." if apps else "Nothing to do."
    return say(settings, _OK, text)


@click.command(hidden=True)
@click.argument("names", nargs=-1, metavar="")
@common
def kill(settings: Settings, names: tuple[str, ...]) -> int:
    """Stop every app and the daemon: pyworker daemon stop."""
    from pyworker.cli.commands.daemon import stop

    if names:
        message = "kill is for all apps and the daemon, as pm2 has it"
        raise PyworkerError(message, hint=f"pyworker stop {' '.join(map(argument, names))}", code="usage")
    note("kill is: pyworker daemon stop")
    code: int = click.get_current_context().invoke(stop)
    return code

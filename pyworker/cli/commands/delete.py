"""CLI: `pyworker delete`: stops apps and forgets them. Their logs stay unless --logs is given."""

from __future__ import annotations

import click

from pyworker.cli.asking import confirm_all, need_names
from pyworker.cli.operation import run
from pyworker.cli.options import Settings, common, option


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@option("--logs", is_flag=True, help="Delete the log files too.")
@option("--wait/--no-wait", default=True, help="Return when they are gone (default).")
@common
def cmd(settings: Settings, names: tuple[str, ...], logs: bool, wait: bool) -> int:
    """Stop apps and forget them: they are not restored when the daemon starts.

    \b
    pyworker delete api
    pyworker delete 'test-*' --logs
    """
    need_names(settings, "delete", names)
    confirm_all(settings, "delete", names)
    return run(settings, "delete", {"type": "delete", "selectors": list(names), "logs": logs, "wait": wait})

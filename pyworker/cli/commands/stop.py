"""CLI: `pyworker stop`: asks apps or single workers to leave, and waits until they have."""

from __future__ import annotations

import click

from pyworker.cli.asking import confirm_all, need_names
from pyworker.cli.operation import run
from pyworker.cli.options import Settings, common, option


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@option("--now", is_flag=True, help="Do not wait for open requests.")
@option("--wait/--no-wait", default=True, help="Return when they have stopped (default).")
@common
def cmd(settings: Settings, names: tuple[str, ...], now: bool, wait: bool) -> int:
    """Stop apps (api), single workers (api.2), a glob ('w*') or all. Open requests may finish first.

    \b
    pyworker stop api
    pyworker stop api.2         the slot stays empty until: pyworker start api
    """
    need_names(settings, "stop", names)
    confirm_all(settings, "stop", names)
    return run(settings, "stop", {"type": "stop", "selectors": list(names), "now": now, "wait": wait})

"""CLI: `pyworker restart`: the hard way round; a single worker (api.2) is replaced without a gap."""

from __future__ import annotations

import click

from pyworker.cli.asking import looking_into_file, need_names
from pyworker.cli.client import shell_env
from pyworker.cli.operation import run
from pyworker.cli.options import Settings, common, option


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@option("--wait/--no-wait", default=True, help="Return when they are ready (default).")
@common
def cmd(settings: Settings, names: tuple[str, ...], wait: bool) -> int:
    """Stop all workers of an app, then start all: new requests wait meanwhile. `reload` has no gap.

    \b
    pyworker restart api
    pyworker restart api.2      one worker; its successor comes first
    """
    need_names(settings, "restart", names)
    request = {"type": "restart", "selectors": list(names), "shell_env": shell_env(), "wait": wait}
    with looking_into_file(names):
        return run(settings, "restart", request)

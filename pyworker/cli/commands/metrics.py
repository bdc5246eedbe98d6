"""CLI: `pyworker metrics`: what ps knows, as Prometheus text. For a textfile collector, a cron job, a look."""

from __future__ import annotations

import json
import sys

import click

from pyworker.cli import render
from pyworker.cli.client import ask, figures
from pyworker.cli.options import Settings, common
from pyworker.protocol import metrics


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@common
def cmd(settings: Settings, names: tuple[str, ...]) -> int:
    """Print the metrics of all apps (or of those named) in Prometheus' text format.

    For a scrape target there is `pyworker web` (its /metrics) and `pyworker run` (its probe endpoint); docs/metrics.md
    lists all metrics.

    \b
    pyworker metrics
    pyworker metrics > /var/lib/node_exporter/pyworker.new     by a cron job; then mv
    """
    text = metrics.render(ask(settings.home, figures(names), settings.timeout))
    how = render.look(sys.stdout, False)
    if settings.json:
        render.out(json.dumps({"v": 1, "content_type": metrics.CONTENT_TYPE, "text": text}), how)
    elif how.tty:
        # the target is from a config file, which may be another user's
        render.write(sys.stdout, render.clean(text), how)
    else:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    return 0

"""CLI: what a `ps` document says of the health checks of an app."""

from __future__ import annotations

from typing import Any

from pyworker.cli.render import line


def failing(app: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the workers that fail their checks; what is to replace one has not passed yet, or that one would leave."""
    return [worker for worker in app["pool"] if worker["health"] == "failing"]


def why_unwell(app: dict[str, Any]) -> str:
    """Return in words which worker fails its check and how; "" when none does."""
    first = next(iter(failing(app)), None)
    return f"{line(app['name'])}.{first['worker']} fails its health check: {line(first['reason'])}" if first else ""

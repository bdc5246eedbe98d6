"""CLI: what a `ps` document says of the health checks of an app."""

from __future__ import annotations

from typing import Any

from pyworker.cli.render import line


def failing(app: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the workers that fail their checks; what is to replace one has not passed yet, or that one would leave."""
    return [worker for worker in app["pool"] if worker["health"] == "failing"]


def unchecked(app: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the workers that start and whose checks have failed so far; of one that is held the reason may be another."""
    return [worker for worker in app["pool"] if worker["state"] == "starting" and worker["reason"]]


def why_unwell(app: dict[str, Any]) -> str:
    """Return in words which worker fails its check and how; "" when none does."""
    sick = failing(app)
    for worker in (*sick, *unchecked(app)):
        words = "fails its health check" if sick else "has not passed its health check yet"
        return f"{line(app['name'])}.{worker['worker']} {words}: {line(worker['reason'])}"
    return ""

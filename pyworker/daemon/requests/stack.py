"""Daemon, request Stack: the live stacks of workers. Changes nothing; a worker that cannot answer is said in words."""

from __future__ import annotations

from typing import Any

from pyworker.daemon.client import Client
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.protocol import control as k
from pyworker.protocol.stacks import parse, parse_tasks
from pyworker.protocol.wire import to_json


def stack(desk: Desk, client: Client, request: k.Stack) -> None:
    """Every selected worker, each after the other; answered when the last one is there."""
    workers = desk.workers(request.selectors)
    wanted = list({handle.id: (app, handle) for app, handle, _ in workers if handle.is_alive}.values())
    if not wanted:
        name = request.selectors[0]
        raise Refuse("not_running", f"{name} has no worker now", f"pyworker ps -w {name}")
    found: list[dict[str, Any]] = []
    for app, handle in wanted:
        shown: dict[str, Any] = {
            "app": app.name,
            "worker": handle.id.slot,
            "pid": handle.pid or None,
            "gen": handle.id.generation,
            "state": handle.state.value,
        }
        found.append(shown)

        def then(text: str, why: str, hint: str, shown: dict[str, Any] = shown, handle: WorkerHandle = handle) -> None:
            threads = [to_json(thread) for thread in parse(text)]
            tasks = [to_json(task) for task in parse_tasks(text, handle.pid)]
            shown.update(threads=threads, tasks=tasks, error=why or None, hint=hint or None)
            if all("threads" in each for each in found) and len(found) == len(wanted):
                client.reply(True, {"v": 1, "workers": found})

        desk.brain.stacks.take(app, handle, then)

"""Daemon, request Send: a message into the channels of workers. Says of each worker whether it went."""

from __future__ import annotations

import json
from typing import Any

from pyworker.daemon.client import Client
from pyworker.daemon.messages import NotSent
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.policy.lifecycle import SERVING, State
from pyworker.protocol import control as k
from pyworker.protocol.node import MAX_TEXT


def send(desk: Desk, client: Client, request: k.Send) -> None:
    """To each worker that serves; to one that starts or leaves only when it is named."""
    value = _parse(request.text)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for app, handle, is_named in desk.workers(request.selectors):
        if not (handle.state in SERVING or (is_named and handle.state in (State.STARTING, State.HELD))):
            continue
        error = None
        try:
            desk.brain.messages.send(app, handle, value)
        except NotSent as refused:
            error = str(refused)
        found[app.name, handle.id.serial] = {
            "app": app.name,
            "worker": handle.id.slot,
            "pid": handle.pid or None,
            "gen": handle.id.generation,
            "error": error,
        }
    if not found:
        name = request.selectors[0]
        raise Refuse("not_running", f"{name} has no worker that serves now", f"pyworker ps -w {name}")
    client.reply(all(each["error"] is None for each in found.values()), {"v": 1, "workers": list(found.values())})


def _parse(text: str) -> Any:
    size = len(text.encode())
    if size > MAX_TEXT:
        message = f"the message has {size} bytes; {MAX_TEXT} are the most that is taken"
        raise Refuse("usage", message, "put the data into a file or a store, and send its name")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refuse("usage", f"the message is no JSON: {error}", "a text needs its quotes: '\"hello\"'") from None

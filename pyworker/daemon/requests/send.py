"""Daemon, request Send: a message into the channels of workers. Says of each worker whether it went."""

from __future__ import annotations

import json
from typing import Any

from pyworker.daemon.client import Client
from pyworker.daemon.dispatchers import has_read
from pyworker.daemon.handles import DispatcherHandle
from pyworker.daemon.messages import NotSent
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.policy.lifecycle import SERVING, State
from pyworker.protocol import control as k
from pyworker.protocol.node import MAX_TEXT

_LOOK_AGAIN = 0.02  # seconds
_LOOKS = 100  # ... so often: of a time in which all stand still no look counts


def send(desk: Desk, client: Client, request: k.Send) -> None:
    """To each worker that serves; to one that starts or leaves only when it is named."""
    value = _parse(request.text)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    passing: list[tuple[dict[str, Any], DispatcherHandle]] = []
    for app, handle, is_named in desk.workers(request.selectors):
        if not (handle.state in SERVING or (is_named and handle.state in (State.STARTING, State.HELD))):
            continue
        shown = found[app.name, handle.id.serial] = {
            "app": app.name,
            "worker": handle.id.slot,
            "pid": handle.pid or None,
            "gen": handle.id.generation,
            "error": None,
        }
        try:
            dispatcher = desk.brain.messages.send(app, handle, value)
        except NotSent as refused:
            shown["error"] = str(refused)
        else:
            if dispatcher is not None:
                passing.append((shown, dispatcher))
    if not found:
        name = request.selectors[0]
        raise Refuse("not_running", f"{name} has no worker that serves now", f"pyworker ps -w {name}")
    _answer(desk, client, list(found.values()), passing, _LOOKS)


def _answer(
    desk: Desk,
    client: Client,
    shown: list[dict[str, Any]],
    passing: list[tuple[dict[str, Any], DispatcherHandle]],
    looks: int,
) -> None:
    """Answer once the dispatchers have read what they are to pass on: before that it is lost with one that is killed."""
    left = []
    for each, dispatcher in passing:
        is_read = has_read(dispatcher)
        if is_read is None:
            each["error"] = "the dispatcher that was to pass it on has ended: it may not have come"
        elif not is_read:
            left.append((each, dispatcher))
    if left and looks:
        desk.brain.loop.call_later(_LOOK_AGAIN, lambda: _answer(desk, client, shown, left, looks - 1))
        return
    for each, _ in left:
        each["error"] = "the dispatcher, which has its channel, has not read it yet: it may come later"
    client.reply(all(each["error"] is None for each in shown), {"v": 1, "workers": shown})


def _parse(text: str) -> Any:
    size = len(text.encode())
    if size > MAX_TEXT:
        message = f"the message has {size} bytes; {MAX_TEXT} are the most that is taken"
        raise Refuse("usage", message, "put the data into a file or a store, and send its name")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refuse("usage", f"the message is no JSON: {error}", "a text needs its quotes: '\"hello\"'") from None

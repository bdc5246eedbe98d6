"""Daemon, request Shutdown: every app, then the daemon."""

from __future__ import annotations

from pyworker.daemon import operations as ops
from pyworker.daemon.client import Client
from pyworker.daemon.requests.change import stop_app
from pyworker.daemon.requests.desk import Desk
from pyworker.protocol import control as k


def shutdown(desk: Desk, client: Client, request: k.Shutdown) -> None:
    """Answered when the last app has ended."""
    names = shut_down(desk, now=request.now)
    desk.wait(client, {name: ops.ended() for name in names}, {}, wait=True)


def shut_down(desk: Desk, *, now: bool) -> list[str]:
    """Stop every app, then the daemon; return the apps that have to end first. What was wanted stays wanted."""
    first_time, desk.shutting_down = not desk.shutting_down, True
    if first_time:
        desk.save()
    wanted = {n for n, a in desk.brain.apps.items() if a.wanted}
    ending = [name for name, app in desk.brain.apps.items() if not app.closed]
    for name in ending:
        stop_app(desk, desk.brain.apps[name], now=now)
        desk.operations.look(desk.brain.apps[name])  # whoever waits: before it is wanted again
    for name in wanted:
        desk.brain.apps[name].wanted = True  # a later daemon brings them back
    if first_time:
        desk.on_shutdown()
    return ending

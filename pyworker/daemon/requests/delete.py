"""Daemon, request Delete: stop, then forget."""

from __future__ import annotations

import contextlib
import os

from pyworker.daemon import operations as ops
from pyworker.daemon import report
from pyworker.daemon.app import App
from pyworker.daemon.client import Client
from pyworker.daemon.requests.apps import forget
from pyworker.daemon.requests.change import stop_app
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.errors import Exit
from pyworker.protocol import control as k


def delete(desk: Desk, client: Client, request: k.Delete) -> None:
    """Stop what runs, forget it when it is closed."""
    goals: dict[str, ops.Goal] = {}
    decided: dict[str, ops.Outcome] = {}
    for s in desk.select(request.selectors):
        if s.slot is not None:
            desk.check_slot(desk.brain.apps[s.app], s)
            message = f"{s.app}.{s.slot} is a worker: only apps are deleted"
            raise Refuse("no_such_app", Exit.NO_SUCH_APP, message, f"pyworker stop {s.app}.{s.slot}")
        app = desk.brain.apps[s.app]
        app.delete_logs = request.logs
        if app.closed:
            decided[app.name] = ops.Outcome(True, "deleted")
        else:
            app.delete_when_closed = True
            stop_app(desk, app, now=False)
            goals[app.name] = ops.deleted
    gone = [desk.brain.apps[n] for n in decided]
    desk.wait(client, goals, decided, wait=request.wait)
    for app in gone:
        delete_app(desk, app)
    desk.save()


def app_closed(desk: Desk, app: App) -> None:
    """Told by the brain: the last of an app is gone."""
    if app.delete_when_closed:
        desk.brain.loop.call_soon(lambda: delete_app(desk, app))


def delete_app(desk: Desk, app: App) -> None:
    """Forget a closed app, and its logs if asked."""
    if app.name not in desk.brain.apps:
        return
    path = report.log_file(app, desk.home)
    forget(desk, app)
    if app.delete_logs:
        for name in (path, *(f"{path}.{i}" for i in range(1, 1001))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    desk.brain.emit(app, "app_deleted", None)
    desk.save()
    desk.operations.gone(app)

"""Daemon, request Delete: stop, then forget."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat

from pyworker.daemon import disks
from pyworker.daemon import operations as ops
from pyworker.daemon.app import App
from pyworker.daemon.client import Client
from pyworker.daemon.diagnosis import log_file
from pyworker.daemon.requests.apps import forget
from pyworker.daemon.requests.change import stop_app
from pyworker.daemon.requests.desk import Desk
from pyworker.protocol import control as k
from pyworker.protocol.names import ROTATED


def delete(desk: Desk, client: Client, request: k.Delete) -> None:
    goals: dict[str, ops.Goal] = {}
    decided: dict[str, ops.Outcome] = {}
    for app in desk.apps(request.selectors) if request.selectors else ():
        app.delete_logs = request.logs
        app.delete_when_closed = True
        if app.closed and not request.wait:
            decided[app.name] = ops.Outcome(True, "deleted")
        else:
            goals[app.name] = ops.deleted(desk.brain)
        stop_app(desk, app, now=False)  # one that has failed is closed, and wanted
    desk.save()
    desk.wait(client, goals, decided, wait=request.wait)
    delete_closed(desk)


def app_closed(desk: Desk, app: App) -> None:
    """Told by the brain: the last of an app is gone."""
    if app.delete_when_closed:
        desk.brain.loop.call_soon(lambda: delete_closed(desk))


def delete_closed(desk: Desk) -> None:
    """Forget the closed apps that are to be deleted, and their logs if asked: one save for all of them."""
    gone = [app for app in desk.brain.apps.values() if app.closed and app.delete_when_closed]
    if not gone:  # done for another one that closed in the same turn, or started again meanwhile
        return
    names = {app.name for app in gone}
    kept = {log_file(a, desk.home): a.name for a in desk.brain.apps.values() if a.name not in names}
    for app in gone:
        path = log_file(app, desk.home)
        if app.delete_logs and path in kept:
            desk.brain.remark(app, f"its log was not removed: it is that of {kept[path]}, too")
        elif app.delete_logs:
            try:
                disks.ask(path, functools.partial(_delete_logs, path))
            except OSError as error:  # no reason not to answer
                text = f"its logs were not all removed: {error.strerror}: {error.filename}"
                desk.brain.remark(app, text)
        desk.brain.emit(app, "app_deleted", None)  # while its hooks are known
        del desk.brain.apps[app.name]
    desk.save()  # first: a daemon after this one drops what nobody wants, and knows by the memo what is to be deleted
    for app in gone:
        forget(desk, app)
        desk.operations.look(app)


def _delete_logs(path: str) -> None:
    """Remove a log and what was rotated out of it: file.log.1, file.log.2.gz… A device (/dev/null) or a pipe is nobody's log."""
    folder, name = os.path.split(path)
    ours = re.compile(re.escape(name) + f"({ROTATED})?")
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name) and not _is_special(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.path)


def _is_special(mode: int) -> bool:
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))

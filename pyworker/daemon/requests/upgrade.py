"""Daemon, request Upgrade: other code for guardian, daemon and logger, under the workers' feet."""

from __future__ import annotations

import os
import sys

from pyworker import __version__
from pyworker.daemon.client import Client
from pyworker.daemon.preflight import Preflight, content_of
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.daemon.shortage import step_for_words
from pyworker.protocol import control as k
from pyworker.protocol.names import APPS_FILE
from pyworker.protocol.store import Upgrade

GUARDIAN_PATIENCE = 20.0  # seconds until the guardian, replaced by then, has this daemon leave
WHEN_ENDED = "try again when it has ended"


def upgrade(desk: Desk, client: Client, request: k.Upgrade) -> None:
    """Check the version that is installed, have the guardian become it; it then has daemon and logger replaced."""
    if desk.brain.logs_to_stdout:
        message = "`pyworker run` is upgraded by being started anew"
        raise Refuse("usage", message, "restart its container or service")
    if desk.upgrading or desk.shutting_down:
        what = "stopping" if desk.shutting_down else "being upgraded already"
        raise Refuse("busy", f"the daemon is {what}", "try again in a moment")
    if lost := _lost_by_it(desk):
        raise Refuse("busy", lost, WHEN_ENDED)
    python = request.python or sys.executable
    if not os.path.isabs(python):
        raise Refuse("usage", f"not the absolute path of an interpreter: {python!r:.200}", "name it from / on")
    try:
        with open(os.path.join(desk.home, APPS_FILE), "rb") as file:
            wanted = file.read()
    except OSError:
        wanted = b""
    content = content_of(desk.brain, wanted)
    desk.upgrading = True

    def checked(version: str, why: str, step: str) -> None:
        if desk.shutting_down:
            _refuse(desk, client, "nothing was replaced: the daemon is stopping", "pyworker daemon start")
            return
        if why:
            hint = step or f"mend the installation of {python}, then try again"
            if version:  # there is nothing to mend
                hint = "one that is no older than what runs can; for this one: pyworker daemon stop, then start the apps anew"
            _refuse(desk, client, f"nothing was replaced: {why}", hint)
            return
        store = desk.brain.store
        before = {"guardian": store.guardian_version, "daemon": __version__, "logger": store.logger_version}
        pids = {"guardian": store.guardian_pid, "daemon": os.getpid(), "logger": store.logger_pid}
        answer = {"from": __version__, "to": version, "versions": before, "pids": pids}
        if set(before.values()) == {version} and not request.force and python == sys.executable:
            desk.upgrading = False
            client.reply(True, {"changed": False, **answer})
            return
        if lost := _lost_by_it(desk):  # begun while the new version was tried
            _refuse(desk, client, f"nothing was replaced: {lost}", WHEN_ENDED, code="busy")
            return
        desk.handing_over = True
        desk.before_leaving = lambda: client.reply(True, {"changed": True, **answer})
        patience = desk.brain.loop.call_later(GUARDIAN_PATIENCE, no_word)

        def failed(reason: str) -> None:
            patience.cancel()  # another upgrade may be under way by then
            step = step_for_words(reason, store.guardian_pid)
            hint = step or "try again; if that stays: pyworker daemon stop, then pyworker daemon start"
            _refuse(desk, client, f"nothing was replaced: {reason}", hint)

        store.on_upgrade_failed = failed
        store.send(Upgrade(python))  # on_leave or on_upgrade_failed follows

    def no_word() -> None:
        hint = (
            "a guardian that hangs is replaced within a minute: try again then\n"
            "one that is too old for this stays: pyworker daemon stop, then pyworker daemon start"
        )
        _refuse(desk, client, f"the guardian did not do it within {GUARDIAN_PATIENCE:g} s", hint)

    Preflight(desk.brain.loop, python, content, checked)


def _lost_by_it(desk: Desk) -> str:
    """Return what is under way and no daemon after this one could end, "" if nothing is."""
    if waiting := desk.operations.under_way():
        return f"a command on {', '.join(waiting)} is under way, and would lose its answer"
    if preparing := desk.preparing():
        return f"hooks.pre_start of {', '.join(preparing)} is under way, and would be begun again beside itself"
    return ""


def _refuse(desk: Desk, client: Client, message: str, hint: str, *, code: str = "upgrade_refused") -> None:
    desk.upgrading = desk.handing_over = False
    desk.before_leaving = lambda: None
    client.refuse(k.refusal(code, message, hint))

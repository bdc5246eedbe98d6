"""Daemon: a request finds its function; what is refused is said in one form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyworker.config.load import parsed_once
from pyworker.config.problem import ConfigError
from pyworker.daemon.asked import asker
from pyworker.daemon.client import Client
from pyworker.daemon.listener import ListenFailed
from pyworker.daemon.requests.change import abort, reload, restart, saved, scale, stop
from pyworker.daemon.requests.compare import config, diff
from pyworker.daemon.requests.delete import delete
from pyworker.daemon.requests.desk import Desk, Refuse
from pyworker.daemon.requests.look import describe, follow, ps, status
from pyworker.daemon.requests.send import send
from pyworker.daemon.requests.shutdown import shutdown
from pyworker.daemon.requests.stack import stack
from pyworker.daemon.requests.start import start
from pyworker.daemon.requests.upgrade import upgrade
from pyworker.daemon.shortage import step_for
from pyworker.protocol import control as k
from pyworker.protocol.events import BY_ITSELF

# every message of protocol/control.py: Request (a test says so)
HANDLERS: dict[type, Callable[[Desk, Client, Any], None]] = {
    k.Start: start,
    k.Stop: stop,
    k.Restart: restart,
    k.Reload: reload,
    k.Abort: abort,
    k.Scale: scale,
    k.Saved: saved,
    k.Delete: delete,
    k.Ps: ps,
    k.Describe: describe,
    k.Diff: diff,
    k.Config: config,
    k.Stack: stack,
    k.Send: send,
    k.Follow: follow,
    k.Status: status,
    k.Shutdown: shutdown,
    k.Upgrade: upgrade,
}
BRINGS_UP = (k.Start, k.Restart, k.Reload, k.Scale)  # refused by a daemon that is stopping
_BEGINS = (*BRINGS_UP, k.Abort, k.Stop, k.Delete, k.Shutdown)  # the events of which say who has asked
_STOPPING = "once it has stopped, pyworker daemon start brings it back with what ran; then try again"


def handle(desk: Desk, client: Client, request: k.Request) -> None:
    """The control server's other half."""
    if desk.shutting_down and isinstance(request, BRINGS_UP):
        client.refuse(k.refusal("busy", "the daemon is stopping", _STOPPING))
        return
    if desk.handing_over and isinstance(request, _BEGINS) and not isinstance(request, k.Shutdown):
        client.refuse(k.refusal("busy", "the daemon is being upgraded", "try again in a moment"))
        return
    desk.seq = desk.brain.events.seq
    try:
        with (
            parsed_once(),
            desk.brain.events.begun_by(asker(client) if isinstance(request, _BEGINS) else BY_ITSELF),
        ):
            HANDLERS[type(request)](desk, client, request)
    except ConfigError as error:
        client.refuse(k.refusal("config_invalid", error.message, error.hint, error.as_json()))
    except ListenFailed as error:
        client.refuse(k.refusal(error.code, error.message, error.hint))
    except Refuse as refuse:
        client.refuse(refuse.answer)
    except Exception as error:
        for app in desk.brain.apps.values():
            desk.brain.poke(app)  # what was changed before it failed is wanted now
        if not isinstance(error, OSError) or not (step := step_for(error.errno)):
            raise
        client.refuse(k.refusal("busy", f"the daemon cannot do this now: {error.strerror}", step))

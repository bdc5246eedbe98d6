"""CLI: `pyworker send`: a JSON message to the workers of an app, over the channel that pyworker.process reads."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from pyworker.cli import render
from pyworker.cli.client import Lost, Silent, tell
from pyworker.cli.options import Settings, common
from pyworker.cli.render import line, paint
from pyworker.errors import Exit, PyworkerError

_MOST = 64 * 1024


@click.command()
@click.argument("name", metavar="NAME[.N]")
@click.argument("message", metavar="JSON")
@common
def cmd(settings: Settings, name: str, message: str) -> int:
    """Send a JSON message to each worker of an app, or to one. `-` reads it from stdin.

    Workers get it by pyworker.process.on("message"), Node programs by process.on("message"). What they send comes as
    an event: pyworker events -f. The command succeeds when every worker's channel has taken the message; whether the
    worker has read it, only the worker knows.

    \b
    pyworker send api '{"flush": true}'
    pyworker send api.2 '"reload-cache"'
    generate | pyworker send api -
    """
    data = sys.stdin.buffer.read(_MOST + 1) if message == "-" else os.fsencode(message)
    if len(data) > _MOST:
        hint = "put the data into a file or a store, and send its name"
        raise PyworkerError(f"the message has more than {_MOST} bytes", hint=hint, code="usage")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        hint = "bytes travel in a text: base64, say"
        raise PyworkerError(f"the message is not UTF-8: {error}", hint=hint, code="usage") from None
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = f"pyworker send {line(name)} '{{\"flush\": true}}'   a text needs its quotes: '\"hello\"'"
        raise PyworkerError(f"the message is no JSON: {error}", hint=hint, code="usage") from None
    try:
        body = tell(settings.home, {"type": "send", "selectors": [name], "text": text}, settings.timeout)
    except (Lost, Silent) as error:
        hint = "workers may have the message, or get it yet: send it again if it may come twice"
        raise PyworkerError(error.message, hint=f"{hint}\n{error.hint}", code=error.code) from None
    workers: list[dict[str, Any]] = body.get("workers") or []
    how = render.look(sys.stdout, settings.color)
    if settings.json:
        render.out_json(body, how, indent=2 if how.tty else None)
    else:
        render.write(sys.stdout, "".join(_sentence(worker, how) + "\n" for worker in workers), how)
    return int(Exit.FAILED) if any(worker.get("error") for worker in workers) else 0


def _sentence(worker: dict[str, Any], how: render.Look) -> str:
    name = f"{line(worker.get('app'))}.{worker.get('worker')}"
    if worker.get("error"):
        return paint(f"{name} not sent: {line(worker['error'])}", "red", how)
    return f"{name} sent"

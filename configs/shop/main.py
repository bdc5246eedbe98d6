"""A web shop in one file: who answers, what is for sale, a slow page to watch a reload with.

/             the shop as HTML, and which worker answered
/api/whoami   app, worker, generation and pid as JSON
/api/items    what is for sale
/slow?s=2     answers after that many seconds (60 at most)
/healthz      for health checks
"""

from __future__ import annotations

import asyncio
import html
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import pyworker

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

NAME = os.environ.get("SHOP_NAME", "The Shop")
CURRENCY = os.environ.get("SHOP_CURRENCY", "EUR")
ITEMS = {"apple": 0.4, "bread": 3.2, "coffee": 7.9}

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{name}</title>
<style>body {{ font: 16px/1.5 system-ui; max-width: 36em; margin: 3em auto }} code {{ background: #eee }}</style>
<h1>{name}</h1>
<ul>{items}</ul>
<p>Answered by worker <b>{worker}</b> of <b>{app}</b>, generation <b>{generation}</b>, pid {pid}.
Load it again: another worker answers. Then try <code>pyworker reload {app}</code>.</p>
"""


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The ASGI app."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        await answer(scope, send)


async def answer(scope: Message, send: Send) -> None:
    match scope["path"]:
        case "/":
            await reply(send, 200, "text/html; charset=utf-8", page())
        case "/api/whoami":
            await reply_json(send, 200, whoami())
        case "/api/items":
            await reply_json(send, 200, ITEMS)
        case "/slow":
            await asyncio.sleep(seconds(scope["query_string"]))
            await reply_json(send, 200, whoami())
        case "/healthz":
            await reply(send, 200, "text/plain", "ok\n")
        case path:
            await reply_json(send, 404, {"error": f"no page {path}"})


def whoami() -> dict[str, Any]:
    """Which worker this is; looked up at each request, for the module is imported before the workers are born."""
    worker = pyworker.worker
    return {"app": worker.app, "worker": worker.id, "generation": worker.generation, "pid": os.getpid()}


def page() -> str:
    items = "".join(
        f"<li>{html.escape(name)}: {price:.2f} {html.escape(CURRENCY)}</li>" for name, price in ITEMS.items()
    )
    return PAGE.format(name=html.escape(NAME), items=items, **whoami())


def seconds(query: bytes) -> float:
    given = parse_qs(query.decode("latin-1")).get("s", ["1"])[0]
    try:
        return min(max(float(given), 0.0), 60.0)
    except ValueError:
        return 1.0


async def reply_json(send: Send, status: int, value: object) -> None:
    await reply(send, status, "application/json", json.dumps(value) + "\n")


async def reply(send: Send, status: int, content_type: str, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Receive, send: Send) -> None:
    """What a worker does once at its start and at its end."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            print(f"{NAME} opens, pid {os.getpid()}", flush=True)
            await send({"type": "lifespan.startup.complete"})
        else:
            print(f"{NAME} closes, pid {os.getpid()}", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
            return

"""The app under chaos: each reply begins with the worker's pid, a moment before the rest of it."""

from __future__ import annotations

import asyncio
import os
from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"16")]})
    await send({"type": "http.response.body", "body": b"%07d\n" % os.getpid(), "more_body": True})
    await asyncio.sleep(0.005)
    await send({"type": "http.response.body", "body": b"%07d\n" % len(body)})

"""The app under chaos and under reloads: each answer begins with the worker's pid, a moment before the rest of it.

`/` answers 16 bytes: the pid, then the length of the body it was sent. `/stream` goes on for a while in chunks; `/ws` is a
websocket that says its pid and echoes. The header `x-version` is the code's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

try:
    from version import VERSION  # written beside the config by who reloads
except ImportError:
    VERSION = "none"

PAUSE = 0.002
CHUNKS = 4


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    elif scope["type"] == "websocket":
        await _websocket(receive, send)
    elif scope["path"] == "/stream":
        headers = [(b"x-version", VERSION.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": b"%07d\n" % os.getpid(), "more_body": True})
            await asyncio.sleep(PAUSE)
        await send({"type": "http.response.body", "body": b""})
    else:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [(b"content-length", b"16"), (b"x-version", VERSION.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"%07d\n" % os.getpid(), "more_body": True})
        await asyncio.sleep(PAUSE)
        await send({"type": "http.response.body", "body": b"%07d\n" % len(body)})


async def _websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"x-version", VERSION.encode())]})
    await send({"type": "websocket.send", "text": f"{os.getpid():07d}"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": message["text"]})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    pid = b"%07d\n" % os.getpid()
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", [("x-version", VERSION)])
        for _ in range(CHUNKS):
            yield pid
            time.sleep(PAUSE)
    else:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", "16"), ("x-version", VERSION)])
        yield pid
        time.sleep(PAUSE)
        yield b"%07d\n" % len(body)

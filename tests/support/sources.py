"""Sources of small apps that tests write into their folder, change and break."""

from __future__ import annotations

ASGI = """
import asyncio, os, time
VERSION = "one"
hoard = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path = scope["path"]
    if path == "/slow":
        await asyncio.sleep(1)
    elif path == "/block":
        open("blocked", "w").close()
        while not os.path.exists("unblock"):
            time.sleep(0.01)
    elif path == "/grow":
        hoard.append(os.urandom(1 << 20))
    elif path == "/crash":
        os._exit(3)
    body = f"{VERSION} {os.getpid()}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""

WSGI = """
import os, time
VERSION = "one"

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(1)
    elif path == "/block":
        open("blocked", "w").close()
        while not os.path.exists("unblock"):
            time.sleep(0.01)
    body = f"{VERSION} {os.getpid()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


# before a source: what is imported as long as the test wants, that of a new version while the old one serves
WAITS = """
import os, time
while not os.path.exists("go"):
    time.sleep(0.01)
"""


def version(source: str, name: str) -> str:
    """The same app, answering with another version."""
    return source.replace('VERSION = "one"', f'VERSION = "{name}"')

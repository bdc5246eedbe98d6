"""Apps that say what they were asked: JSON of the request, and its body. The same answers from asgi and wsgi."""

from __future__ import annotations

import json
from typing import Any


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    said = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "client": list(scope["client"])[:1] if scope["client"] else None,
        "scheme": scope["scheme"],
        "server": list(scope["server"]) if scope["server"] else None,
        "root": scope["root_path"],
        "headers": {name.decode(): value.decode("latin-1") for name, value in scope["headers"]},
        "body": body.decode("latin-1") if len(body) < 1000 else len(body),
    }
    answer = json.dumps(said).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": answer})


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    said = {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"].encode("latin-1").decode(),
        "query": environ["QUERY_STRING"],
        "client": [environ["REMOTE_ADDR"]] if environ["REMOTE_ADDR"] else None,
        "scheme": environ["wsgi.url_scheme"],
        "server": [environ["SERVER_NAME"], environ["SERVER_PORT"]],
        "root": environ["SCRIPT_NAME"],
        "headers": {k[5:].lower().replace("_", "-"): v for k, v in environ.items() if k.startswith("HTTP_")},
        "body": body.decode("latin-1") if len(body) < 1000 else len(body),
        "length": environ.get("CONTENT_LENGTH"),
    }
    answer = json.dumps(said).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [answer]

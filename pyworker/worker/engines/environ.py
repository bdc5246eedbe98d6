"""Worker: a request as WSGI's environ (PEP 3333). Names with an underscore are dropped: they could pose as another's.

SCRIPT_NAME is the root path; PATH_INFO is the path without it, whether or not the proxy has taken it off.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from pyworker.worker.engines.body import Body
from pyworker.worker.engines.exchange import Exchange, split_target
from pyworker.worker.engines.files import FileWrapper

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection

_REMEMBERED = 1024
(_ESCAPE,) = b"%"  # as in exchange
_keys: dict[bytes, str] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    b"transfer-encoding": "",
}


def static_part(connection: Connection, root_path: str, threads: bool) -> dict[str, Any]:
    """Return what is the same for all requests of a connection."""
    local = connection.local
    host, port = (local[0], local[1]) if local is not None and local[1] is not None else ("localhost", "")
    return {
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_SOFTWARE": "pyworker",
        "SCRIPT_NAME": root_path.encode().decode("latin-1"),
        "GATEWAY_INTERFACE": "CGI/1.1",
        "wsgi.version": (1, 0),
        "wsgi.multithread": threads,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
    }


def environ(exchange: Exchange, static: dict[str, Any]) -> dict[str, Any]:
    """Return the environ of one request; raises BadTarget for a request target that is none."""
    made = static.copy()
    raw_path, query = split_target(exchange.target)
    path = (unquote_to_bytes(raw_path) if _ESCAPE in raw_path else raw_path).decode("latin-1")
    root = made["SCRIPT_NAME"]
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        path = path[len(root) :]
    client = exchange.client
    body = exchange.body
    made["REQUEST_METHOD"] = exchange.method
    made["PATH_INFO"] = path
    made["QUERY_STRING"] = query.decode("latin-1")
    made["REQUEST_URI"] = exchange.target.decode("latin-1")
    made["SERVER_PROTOCOL"] = "HTTP/" + exchange.version
    made["wsgi.url_scheme"] = exchange.scheme
    if not made["SERVER_PORT"]:  # a Unix socket
        made["SERVER_PORT"] = "443" if exchange.scheme == "https" else "80"
    made["wsgi.errors"] = sys.stderr
    made["wsgi.input"] = body.rewound() if isinstance(body, Body) else io.BytesIO()
    if client is None:
        made["REMOTE_ADDR"] = ""  # a Unix socket's peer has no address
    else:
        made["REMOTE_ADDR"] = client[0]
        made["REMOTE_PORT"] = str(client[1])
    for name, value in exchange.headers:
        key = _keys.get(name)
        if key is None:
            key = _learn(name)
        if not key:
            continue
        text = value.decode("latin-1")
        if key in made:
            if key == "CONTENT_TYPE":
                continue
            text = made[key] + ("; " if key == "HTTP_COOKIE" else ",") + text
        made[key] = text
    if isinstance(body, Body) and "CONTENT_LENGTH" not in made:
        made["CONTENT_LENGTH"] = str(body.size)  # it came in chunks, but is here as a whole
    return made


def _learn(name: bytes) -> str:
    text = name.decode("latin-1")
    key = "" if "_" in text else "HTTP_" + text.upper().replace("-", "_")
    if len(_keys) < _REMEMBERED and len(name) < 64:  # clients choose them: a name may be as long as a head
        _keys[name] = key
    return key

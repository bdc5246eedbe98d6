"""A WSGI app without a framework: says hello, and which process said it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI app."""
    text = f"hello from pid {os.getpid()}, {threading.current_thread().name}: {environ['PATH_INFO']}\n"
    body = text.encode("utf-8", "replace")
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]

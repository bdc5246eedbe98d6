"""Worker: the access log, one write a request to stdout, from where the logger takes it. It rotates and stamps nothing.

text: `203.0.113.9 "GET /cart?x=1 HTTP/1.1" 200 512 3.1ms 5f0c…-00001a`; json: one object a line with ts, method, path,
status, ms, bytes, client, request_id. What the client sent is escaped: it can neither end the line nor move a cursor.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from typing import Literal

_in_json = json.JSONEncoder(separators=(",", ":")).encode  # an app may put another library in the place of json's


class AccessLog:
    """Writes the lines of one worker."""

    def __init__(self, format: Literal["text", "json"]) -> None:
        self._json = format == "json"

    def write(
        self, client: str, method: str, target: bytes, version: str, status: int, size: int, us: int, request_id: bytes
    ) -> None:
        """Write one line. `target` as the client sent it, `size` of the body in bytes, `us` microseconds."""
        path = _printable(target)
        ident = request_id.decode("ascii", "replace")
        if self._json:
            now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = _in_json(
                {
                    "ts": now, "method": method, "path": path, "status": status, "ms": round(us / 1000, 3),
                    "bytes": size, "client": client, "request_id": ident,
                }
            )  # fmt: skip
        else:
            quoted = path.replace("\\", "\\\\").replace('"', '\\"')
            line = (
                f'{client or "-"} "{method} {quoted} HTTP/{version}" {status} {size} {us / 1000:.1f}ms {ident or "-"}'
            )
        try:
            os.write(1, line.encode("ascii", "backslashreplace") + b"\n")
        except OSError:
            pass  # nobody reads stdout any more: that must not fail the request


def _printable(target: bytes) -> str:
    text = target.decode("latin-1")
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in text)

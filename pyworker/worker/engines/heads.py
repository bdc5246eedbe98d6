"""Worker: the bytes of a response's head, and the short answers the server gives by itself. Knows no connection.

A header that could split the response is refused here (names are checked once and remembered; a head is checked as
a whole by counting its line ends). Nothing is guessed about the app's meaning.
"""

from __future__ import annotations

import http
import re
import time
from collections.abc import Iterable

CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, DATE, SERVER, REQUEST_ID, UPGRADE, HOP = range(1, 9)
_CODES = {
    "content-length": CONTENT_LENGTH,
    "transfer-encoding": TRANSFER_ENCODING,
    "connection": CONNECTION,
    "date": DATE,
    "server": SERVER,
    "x-request-id": REQUEST_ID,
    "keep-alive": HOP,
    "proxy-connection": HOP,
    "upgrade": UPGRADE,
}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_REMEMBERED = 1024  # names; an app that invents new ones for ever must not fill the memory

_names: dict[bytes | str, tuple[bytes, int]] = {}


class InvalidHeader(ValueError):
    """The app gave a header that must not be sent."""


def _status_line(code: int) -> bytes:
    try:
        phrase = http.HTTPStatus(code).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {code} {phrase}\r\n".encode()


STATUS_LINES = {code: _status_line(code) for code in range(100, 600)}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def field(name: bytes | str) -> tuple[bytes, int]:
    """Return (b"name: ", code) of a header name; code 0 = nothing special. Raises InvalidHeader."""
    known = _names.get(name)
    return known if known is not None else _learn(name)


def _learn(name: bytes | str) -> tuple[bytes, int]:
    raw = name.encode("latin-1") if isinstance(name, str) else bytes(name)
    if not _TOKEN.match(raw):
        raise InvalidHeader(f"invalid header name {name!r:.80}")
    lower = raw.lower()
    known = lower + b": ", _CODES.get(lower.decode("ascii"), 0)
    if len(_names) < _REMEMBERED:
        _names[name if isinstance(name, str) else raw] = known
    return known


def check(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise InvalidHeader for a header that could split a response which is not made here."""
    for name, value in headers:
        field(name)
        if b"\n" in value or b"\r" in value or b"\0" in value:
            raise InvalidHeader("a header value holds a line break or a NUL")


def chunk(data: bytes, head: bytes = b"") -> bytes:
    """Return a part of a chunked body, behind `head`.

    Joined, not formatted: `%` gives back what it took too much for a large one, and the kernel clears that memory anew each time.
    """
    return b"".join((head, b"%x\r\n" % len(data), data, b"\r\n"))


def date_line(seconds: float) -> bytes:
    """Return the Date line of a moment; its names are English in every locale."""
    year, month, day, hour, minute, second, weekday = time.gmtime(seconds)[:7]
    name, month_name = _DAYS[weekday], _MONTHS[month - 1]
    return f"date: {name}, {day:02d} {month_name} {year:04d} {hour:02d}:{minute:02d}:{second:02d} GMT\r\n".encode()


def says_close(value: bytes) -> bool:
    """True when a Connection header's value has the token "close"."""
    return any(token.strip() == b"close" for token in value.lower().split(b","))


REASONS = {
    400: b"The request is malformed.\n",
    408: b"The request did not arrive in time.\n",
    413: b"The request's body is larger than this server takes.\n",
    417: b"Unknown expectation.\n",
    431: b"The request's header is larger than this server takes.\n",
    500: b"Internal Server Error\n",
    501: b"Not implemented.\n",
    503: b"The server is stopping.\n",
    505: b"HTTP version not supported.\n",
}


def short_answer(status: int, lines: Iterable[bytes] = (), *, head_only: bool = False) -> bytes:
    """Return a complete response that closes the connection; `lines` are further header lines with their CRLF."""
    body = REASONS.get(status, b"")
    return b"".join(
        (
            STATUS_LINES[status],
            *lines,
            b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body),
            b"" if head_only else body,
        )
    )

"""Worker: a head that is sent again, for the same or another target, is not parsed again.

Most who keep a connection send the same lines with each request: programs that ask an API, load balancers that check. What the
parser has made of them holds for the next ones, too, as long as it is between two messages: `connection` knows whether it is.
"""

from __future__ import annotations

import re

from pyworker.worker.engines import request_id
from pyworker.worker.engines.exchange import Exchange

LONGEST = 2048  # bytes of a head: each connection may keep one

# a request with one of these is more than its head, or has an id that no other has
_OWN = {b"content-length", b"transfer-encoding", b"expect", b"upgrade", request_id.HEADER}
_is_target = re.compile(rb"/[!$-~]*").fullmatch  # those that the parser takes as they are: nearly all


class Again:
    """A head that was sent twice, and what it meant."""

    __slots__ = ("_begin", "_end", "client", "counted", "headers", "method", "scheme")

    def __init__(self, exchange: Exchange, begin: bytes, end: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self._begin, self._end = begin, end
        self.headers = headers
        self.method = exchange.method
        self.client, self.scheme, self.counted = exchange.client, exchange.scheme, exchange.counted

    def target(self, data: bytes) -> bytes:
        """Return what is asked for by bytes that are this head and nothing else; b"" for any others."""
        if not (data.endswith(self._end) and data.startswith(self._begin)):
            return b""
        target = data[len(self._begin) : -len(self._end)]
        return target if _is_target(target) else b""


def learn(data: bytes, exchange: Exchange) -> Again | None:
    """Return what these bytes mean, which the parser has made this request of; None when they have to be parsed each time.

    To be called before the app has the request. That the bytes are all of it, and nothing else, is seen by what was made of them.
    """
    begin = exchange.method.encode() + b" "
    end = data[len(begin) + len(exchange.target) :]
    line, *fields = end.removesuffix(b"\r\n\r\n").split(b"\r\n")
    pairs = [field.partition(b":")[::2] for field in fields]
    headers = [(name.lower(), value.strip(b" \t")) for name, value in pairs]
    made = exchange.headers[:-1] if exchange.request_id else exchange.headers  # the last one is ours then
    if (
        end.endswith(b"\r\n\r\n")
        and (data.startswith(begin + exchange.target), line, headers) == (True, b" HTTP/1.1", made)
        and not any(name in _OWN for name, _ in headers)
    ):
        return Again(exchange, begin, end, headers)
    return None

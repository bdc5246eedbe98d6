"""Worker: one request and its answer, as far as asgi and wsgi have it in common: what was asked, head, framing, accounts.

Parses nothing and writes nothing by itself: `connection` does the one, `asgi` and `wsgi` the other.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import httptools

from pyworker.worker import say
from pyworker.worker.ending import end_forked
from pyworker.worker.engines import heads

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection

# as numbers: to look for bytes in bytes, `in` raises an exception inside and forgets it, at ten times the cost
_FRAGMENT, _NUL = b"#\0"
_field = heads._names.get
_monotonic_ns = time.monotonic_ns


class BadTarget(ValueError):
    """What is asked for is no request target."""


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return (raw path, query) of a request target; raises BadTarget for what is none."""
    if target[:1] == b"/" and _FRAGMENT not in target:
        path, _, query = target.partition(b"?")
        return path, query
    if target == b"*":
        return target, b""
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserError as error:
        raise BadTarget(str(error)) from None
    return parsed.path or b"/", parsed.query or b""


def authority(target: bytes) -> bytes:
    """Return host and port of a target with a scheme, as a Host header has them."""
    rest = target.partition(b"://")[2]
    return re.split(rb"[/?#]", rest, maxsplit=1)[0]


class Exchange:
    """A request in a connection's order of answers. Subclasses say how the app is run.

    `complete`: the whole body has arrived. `done`: the answer is written, or never will be. `gone`: nobody is there
    to write to any more.
    """

    __slots__ = (
        "at", "body", "chunked", "client", "complete", "connection", "counted", "disconnected", "done", "expects",
        "gone", "headers", "keep_alive", "method", "nobody", "remaining", "request_id", "scheme", "sent", "server",
        "started", "status", "target", "version", "waiter",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: bytes,
        version: str,
        headers: list[tuple[bytes, bytes]],
        keep_alive: bool,
        client: tuple[str, int] | None,
        scheme: str,
        request_id: bytes,
        expects: bool,
        counted: bool,
    ) -> None:
        self.connection = connection
        self.server = connection.server
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.client = client
        self.scheme = scheme
        self.request_id = request_id
        self.expects = expects
        self.counted = counted
        self.complete = self.started = self.done = self.gone = self.disconnected = False
        self.body: Any = b""  # what has arrived and was not taken yet
        self.waiter: Any = None
        self.at = _monotonic_ns()
        self.status = 0
        self.sent = 0  # bytes of body
        self.chunked = self.nobody = False
        self.remaining: int | None = 0  # bytes of body that the head announced and that are still to come

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client who takes his time, not the app."""
        return self.connection.write_paused

    @property
    def waits_for_body(self) -> bool:
        """Whether nothing happens before the client has sent more of the body."""
        return not self.started

    # ---- what the connection tells ---------------------------------------------------------------
    def try_start(self) -> None:
        """This request's turn has come, or more of it has: run the app as soon as it can be run."""
        raise NotImplementedError

    def on_body(self, data: bytes) -> None:
        raise NotImplementedError

    def on_complete(self) -> None:
        """The body is whole."""

    def on_eof(self) -> None:
        """The client will send nothing more, but may still read."""

    def on_lost(self) -> None:
        self.gone = True

    def on_writable(self) -> None:
        """The client has read enough for more to be written."""

    def refuse(self, status: int) -> None:
        """Give up on this request: answer `status` if nothing was answered yet, and close."""
        is_alone, self.gone = self.gone, True
        if self.done:
            return
        self.keep_alive = False
        if is_alone:  # its client has left before: uvloop's transport refuses to be written to
            self.finish()
        elif self.status == 0:
            self.status = status
            lines = self.own_lines()
            self.connection.write(heads.short_answer(status, lines, head_only=self.method == "HEAD"))
            self.finish()
        else:
            self.abort()

    def cancel(self) -> None:
        """The drain time-out is over."""
        self.refuse(503)

    # ---- for the subclasses ----------------------------------------------------------------------
    def own_lines(self) -> list[bytes]:
        """The header lines that the server adds to each answer."""
        server = self.server
        if _monotonic_ns() >= server.date_until:
            server.renew_date()
        lines = [server.date_line, server.server_line]
        if self.request_id:
            lines.append(b"x-request-id: %b\r\n" % self.request_id)
        return lines

    def make_head(
        self, status: int, line: bytes, headers: Iterable[tuple[bytes | str, bytes]], size: int | None
    ) -> bytes:
        """Return the bytes of the head and set how the body is framed. `size`: of the whole body, when known.

        Raises InvalidHeader for what must not be sent.
        """
        server = self.server
        if _monotonic_ns() >= server.date_until:
            server.renew_date()
        parts = [line]
        count = 1
        length: int | None = None
        date = product = True
        ident = self.request_id
        keep_alive = self.keep_alive
        for name, value in headers:
            known = _field(name)
            prefix, code = known if known is not None else heads.field(name)
            if code:
                if code == heads.CONTENT_LENGTH:
                    if length is not None or not value.isdigit():
                        raise heads.InvalidHeader(f"invalid Content-Length {value!r:.40}")
                    length = int(value)
                    if status == 204:
                        continue
                elif code == heads.CONNECTION:
                    if heads.says_close(value):
                        keep_alive = False
                    continue
                elif code in (heads.TRANSFER_ENCODING, heads.HOP):
                    continue  # framing is the server's
                elif code == heads.UPGRADE:
                    if status != 426:
                        continue
                    parts.append(b"connection: upgrade\r\n")  # 426 has to name what it asks for (RFC 9110, 15.5.22)
                    count += 1
                elif code == heads.DATE:
                    date = False
                elif code == heads.SERVER:
                    product = False
                elif code == heads.REQUEST_ID:
                    ident = b""
            parts += (prefix, value, b"\r\n")
            count += 1
        head = b"".join(parts)
        if head.count(b"\n") != count or head.count(b"\r") != count or _NUL in head:
            raise heads.InvalidHeader("a header value holds a line break or a NUL")
        tail = [head]
        if self.method == "HEAD" or status in (204, 304):
            self.nobody = True
        elif length is not None:
            self.remaining = length
        elif size is not None:
            self.remaining = size
            tail.append(b"content-length: %d\r\n" % size)
        elif self.version == "1.1":
            self.chunked = True
            tail.append(b"transfer-encoding: chunked\r\n")
        else:
            self.remaining = None  # until the connection's end
            keep_alive = False
        if date:
            tail.append(server.date_line)
        if product:
            tail.append(server.server_line)
        if ident:
            tail += (b"x-request-id: ", ident, b"\r\n")
        if not self.complete and (self.connection.vast or (self.expects and not self.body)):
            # said now: a proxy that has sent all of it would have its next request on its way when we end the connection.
            # Or it was told to send no body and may still do so: nobody could tell that from its next request
            keep_alive = False
        if keep_alive and (server.closes_always or self.connection.last_answer()):
            keep_alive = False
        if not keep_alive:
            tail.append(b"connection: close\r\n\r\n")
        elif self.version == "1.1":
            tail.append(b"\r\n")
        else:
            tail.append(b"connection: keep-alive\r\n\r\n")
        self.keep_alive = keep_alive
        self.status = status
        return b"".join(tail)

    def finish(self) -> None:
        """The answer is written: account for it and let the connection go on."""
        if self.done:
            return
        self.done = True
        try:
            self.server.finished(self)
        finally:  # the handler of a signal may have raised
            self.connection.answered(self)

    def abort(self) -> None:
        """The answer cannot be completed: the connection ends behind what was written of it. The client knows by its framing."""
        if self.done:
            return
        self.keep_alive = False
        if self.remaining is None and self.connection.scheme_is_tls():
            self.connection.abort()  # there is no framing, and TLS says at its end that this was all
        self.remaining = None  # until the connection's end
        self.finish()

    def report(self, error: BaseException) -> None:
        """Print an app's exception to stderr, where the log is."""
        text = "".join(traceback.format_exception(error))
        say.write(f"{self._where()}:\n{text}")

    def leave_forked(self, error: BaseException | None = None) -> NoReturn:
        """End this process: `server.forked`. It raised `error`, or answers (None): a second time, to its parent's client."""
        end_forked(self._where(), error)

    def complain(self, text: str) -> None:
        say.write(f"{self._where()}: {text}\n")

    def _where(self) -> str:
        return f"error in {self.method} {self.target.decode('ascii', 'backslashreplace')}"

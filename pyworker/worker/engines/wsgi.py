"""Worker: a WSGI app (PEP 3333) and one request to it. Where it runs is `inline`'s matter (threads = 1) or `pool`'s.

The body is collected before the app runs, so a slow client never occupies it. What the app yields is written at once;
when the client reads too slowly the app is not asked for more. A file holds up nobody: the app is done with it at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pyworker.worker.engines import heads
from pyworker.worker.engines.body import Body
from pyworker.worker.engines.environ import environ, static_part
from pyworker.worker.engines.exchange import BadTarget, Exchange
from pyworker.worker.engines.files import PIECE, FileRest, FileWrapper

SLICE = 0.02  # seconds that one answer may have the loop before others have their turn

_statuses: dict[str, tuple[int, bytes]] = {}


class WsgiExchange(Exchange):
    """One request and the call of the app that answers it. Subclasses say who calls it, and what becomes of its output."""

    __slots__ = ("answer", "cut_short", "iterable", "rest", "scheduled", "sends_rest", "steps")

    in_thread = False

    def try_start(self) -> None:
        connection = self.connection
        server = self.server
        if not self.complete:
            if connection.deaf:
                return
            if self.expects:
                self.expects = False
                connection.write(heads.CONTINUE)
            connection.await_body()
            return
        if connection.write_paused:
            return  # on_writable comes back: the answers of one who reads none must not pile up
        self.started = True
        self.answer: tuple[int, bytes, list[tuple[str, bytes]]] | None = None
        self.iterable: Any = None
        self.steps: Iterator[bytes] | None = None
        self.rest: FileRest | None = None  # of a file that is the body
        self.cut_short = self.scheduled = self.sends_rest = False
        try:
            server.begin(self)
            server.pool.submit(self)
        except BaseException:  # of a signal's handler, before the app was called
            self.abort()
            raise

    @property
    def waits_for_client(self) -> bool:
        return self.connection.write_paused or self.sends_rest

    # ---- the app, wherever it runs ---------------------------------------------------------------
    def _call(self) -> bytes | None:
        """Call the app. Return the whole answer when it is there at once, or all of it before `rest`, else None: `steps` has it."""
        connection = self.connection
        static = connection.static
        if static is None:
            static = connection.static = static_part(connection, self.server.root_path, self.in_thread)
        result = self.iterable = self.server.application(environ(self, static), self.start_response)
        if (type(result) is list or type(result) is tuple) and not self.status:
            body = result[0] if len(result) == 1 else b"".join(result)
            whole = self._part(body, len(body))
            end = self._end()
            return whole + end if end else whole
        if type(result) is FileWrapper and not self.status and self.answer is not None:
            try:
                rest = result.rest()
            except OSError:  # for a descriptor: it is read as anything else
                rest = None
            if rest is not None:
                return self._of_file(rest)
        self.steps = self._steps(result)
        return None

    def _of_file(self, rest: FileRest) -> bytes:
        """Return the whole answer if it is no more than a piece, else its head: the file is the `rest` then."""
        try:
            is_small = rest.left <= PIECE
            data = rest.read(PIECE) if is_small else b""  # which may be less than its size says: of /sys
            head = self._part(b"", len(data) if is_small else rest.left)
            assert self.remaining is not None
            if is_small or self.nobody or self.gone:
                return head + self._part(data[: self.remaining], None) + self._end()
            rest.left = min(rest.left, self.remaining)  # PEP 3333: until its end, or so many bytes
            self.rest = rest
            return head
        finally:
            if self.rest is None:
                rest.close()

    def _steps(self, result: Any) -> Iterator[bytes]:
        for part in result:
            if part or not isinstance(part, bytes):
                yield self._part(part, None)
            if self.nobody:
                break
        end = self._end()
        if end:
            yield end

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """PEP 3333's start_response."""
        if exc_info is not None:
            try:
                if self.status:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.answer is not None:
            raise AssertionError("start_response was called twice without exc_info")
        code, line = _statuses.get(status) or _status(status)
        try:
            self.answer = code, line, [(name, value.encode("latin-1")) for name, value in headers]
        except AttributeError:
            raise TypeError(f"header names and values must be str: {headers!r:.200}") from None
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333's write()."""
        if data:
            self.put(self._part(data, None))

    def put(self, part: bytes) -> None:
        """Have this part of the answer written, although the app was not asked for it."""
        raise NotImplementedError

    def _part(self, data: bytes, size: int | None) -> bytes:
        """Return the wire's bytes of one part of the body, with the head before the first."""
        if self.server.forked:
            self.leave_forked()
        if not isinstance(data, bytes):
            raise TypeError(f"the app's body has {type(data).__name__} in it, not bytes")
        if self.gone:
            return b""  # a thread that was given up: somebody else has answered
        head = b""
        if not self.status:
            if self.answer is None:
                raise AssertionError("the app did not call start_response")
            code, line, pairs = self.answer
            head = self.make_head(code, line, pairs, size)
        if self.nobody:
            return head
        length = len(data)
        if self.chunked:
            self.sent += length
            return heads.chunk(data, head)
        if self.remaining is not None:
            if length > self.remaining:
                self.complain("the body is longer than its Content-Length: cut")
                data = data[: self.remaining]
                length = self.remaining
            self.remaining -= length
        self.sent += length
        return head + data if head else data

    def _end(self) -> bytes:
        """Return what ends the body on the wire."""
        if self.server.forked:
            self.leave_forked()
        if self.gone:
            return b""
        if not self.status:
            if self.answer is None:
                raise AssertionError("the app did not call start_response")
            code, line, pairs = self.answer
            return self.make_head(code, line, pairs, 0)
        if self.chunked:
            return b"0\r\n\r\n"
        if self.remaining and not self.nobody:
            self.cut_short = True
            self.complain("the body is shorter than its Content-Length: connection cut")
        return b""

    def _status_for(self, error: BaseException) -> int:
        """Report what the app has raised (SystemExit too: it ends one request only); return what is answered then."""
        if self.server.forked:
            self.leave_forked(error)
        if isinstance(error, BadTarget):
            return 400
        self.report(error)
        return 500

    def _close(self) -> None:
        """Call the iterable's close(), whatever happened, and free the request's body."""
        iterable, self.iterable = self.iterable, None
        try:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()
        except BaseException as error:  # noqa: BLE001 - it is the app's, and its answer was given already
            self.report(error)
        body, self.body = self.body, b""
        if isinstance(body, Body):
            body.close()

    # ---- in the loop: what needs no app any more --------------------------------------------------
    def _send_rest(self) -> None:
        """Write of the file until the client cannot take more, or others have their turn."""
        rest, connection = self.rest, self.connection
        assert rest is not None
        self.sends_rest = True
        until = time.monotonic() + SLICE
        try:
            while not self.done and not self._has_left():
                if connection.write_paused:
                    return  # on_writable goes on
                sent = rest.send(connection)
                if not sent:
                    break
                self.sent += sent
                if self.remaining is not None:
                    self.remaining -= sent
                if time.monotonic() > until:
                    self._go_on_soon()
                    return
            self._end()
        except OSError as error:
            self.cut_short = True
            self.report(error)
        self.rest = None
        rest.close()
        self._over()

    def _has_left(self) -> bool:
        """Whether nobody is there to write to: its end may be known before the loop has had the time to tell."""
        self.gone = self.gone or self.connection.transport.is_closing()
        return self.gone

    def _over(self) -> None:
        if self.cut_short:
            self.abort()
        else:
            self.finish()

    def _go_on_soon(self) -> None:
        self.scheduled = True
        self.server.loop.call_soon(self.go_on)

    def go_on(self) -> None:
        """Do what waited for the client, or for others to have had their turn."""
        self.scheduled = False
        if self.rest is not None:
            self._send_rest()

    # ---- what the connection tells ---------------------------------------------------------------
    def on_body(self, data: bytes) -> None:
        if not isinstance(self.body, Body):
            self.body = Body()
        self.body.append(data)

    def on_writable(self) -> None:
        if not self.started:
            if self.complete:
                self.connection.start_soon()
        elif not self.scheduled:
            self._go_on_soon()  # asyncio's transport ends twice, with a traceback, when it is in here that a write fails

    def on_lost(self) -> None:
        self.gone = True
        if self._let_go():
            self.go_on()  # now: a server that drains looks next whether this was its last request

    def refuse(self, status: int) -> None:
        super().refuse(status)
        if self._let_go() and not self.scheduled:
            self._go_on_soon()  # its answer is over, and others wait for its end

    def _let_go(self) -> bool:
        """Nobody is there any more to answer to. Return whether it is for `go_on` to end this."""
        if not self.started and isinstance(self.body, Body):
            self.body.close()
        return self.started


def _status(status: str) -> tuple[int, bytes]:
    """Check a status of the app: "200 OK". Raises ValueError."""
    if not isinstance(status, str):
        raise TypeError(f"the status must be a str: {status!r:.60}")
    if len(status) < 3 or not status[:3].isdigit() or status[3:4] not in ("", " ") or not 200 <= int(status[:3]) < 600:
        raise ValueError(f"not a status: {status!r:.60}")
    if "\n" in status or "\r" in status or "\0" in status:
        raise ValueError("the status holds a line break or a NUL")
    code = int(status[:3])
    line = b"HTTP/1.1 %b\r\n" % (status if len(status) > 3 else status + " ").encode("latin-1")
    if len(_statuses) < 256:
        _statuses[status] = code, line
    return code, line

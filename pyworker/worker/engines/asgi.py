"""Worker: runs an ASGI app for one request. Head and first part of the body leave in one write.

It follows ASGI 3 (HTTP spec version 2.3): a send after the client has left is ignored; a client that has only closed
its sending side is reported as http.disconnect, and still gets its answer.
"""

from __future__ import annotations

import asyncio
import inspect
import urllib.parse
from typing import Any

from pyworker.worker.engines import heads
from pyworker.worker.engines.exchange import BadTarget, Exchange, split_target

HIGH_WATER = 64 * 1024  # bytes of body that wait for the app before reading stops
COALESCE = 64 * 1024  # larger parts of a body are not copied behind their head
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_DISCONNECT = "http.disconnect"


class AsgiExchange(Exchange):
    """One request and the coroutine that answers it."""

    __slots__ = ("background", "cut", "head", "heard", "task", "told")

    def try_start(self) -> None:
        self.started = True
        self.cut = self.told = self.heard = self.background = False
        server = self.server
        try:
            raw_path, query = split_target(self.target)
        except BadTarget:
            self.refuse(400)
            return
        path = raw_path.decode("latin-1")
        if "%" in path or not path.isascii():
            path = urllib.parse.unquote_to_bytes(raw_path).decode("utf-8", "replace")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": self.version,
            "server": self.connection.local,
            "client": self.client,
            "scheme": self.scheme,
            "method": self.method,
            "root_path": server.root_path,
            "path": server.root_path + path,
            "raw_path": server.root_path_bytes + raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": server.state.copy(),
        }
        self.head: tuple[int, Any] | None = None  # said by the app, not yet written
        server.begin(self)
        self.task = server.loop.create_task(self._run(scope))

    # ---- what the connection tells ---------------------------------------------------------------
    def on_body(self, data: bytes) -> None:
        self.body = self.body + data if self.body else data
        if len(self.body) > HIGH_WATER:
            self.connection.hold(True)
        self._wake()

    def on_complete(self) -> None:
        self._wake()

    def on_eof(self) -> None:
        self.disconnected = True
        self._wake()

    def on_lost(self) -> None:
        self.gone = self.disconnected = True
        self._wake()
        if not self.done:
            self.done = True
            if self.started:
                self.server.finished(self)
                self._to_background()

    def refuse(self, status: int) -> None:
        self.disconnected = True
        running = self.started and not self.done and not self.cut and hasattr(self, "task")
        super().refuse(status)
        self._wake()
        if running:
            self._to_background()

    def abort(self) -> None:
        super().abort()
        self._wake()

    def cancel(self) -> None:
        self.cut = True
        self.task.cancel()
        coroutine: Any = self.task.get_coro()
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:  # it never takes its first step
            self._give_up(503)
            self._end()

    @property
    def waits_for_client(self) -> bool:
        return self.connection.write_paused or self._wants_body

    @property
    def waits_for_body(self) -> bool:
        return self._wants_body and self.head is None  # once it answers it may be a stream both ways, silent in one

    @property
    def _wants_body(self) -> bool:
        return not self.complete and any(not each.done() for each in self.waiter or ())

    def _wake(self) -> None:
        waiters, self.waiter = self.waiter, None
        if waiters:
            self.server.client_came(self)
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _to_background(self) -> None:
        """The answer is over, the coroutine is not: a stopping server waits for it, too."""
        self.background = True
        self.server.background.add(self)

    # ---- the app ---------------------------------------------------------------------------------
    async def _run(self, scope: dict[str, Any]) -> None:
        try:
            result = await self.server.application(scope, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - whatever an app raises (SystemExit too) ends one request only
            if self.server.forked:
                self.leave_forked(error)
            cancelled = isinstance(error, asyncio.CancelledError)
            if not (cancelled and self.cut) and not (self.gone and isinstance(error, OSError)):
                self.report(error)
            self._give_up(503 if self.cut else 500)
        else:
            if self.server.forked:
                self.leave_forked()
            if not self.done:
                if result is not None:
                    self.complain(f"the app returned {result!r:.100} instead of None")
                elif self.heard:
                    pass  # it stopped because its client has left: Starlette's streams do
                elif self.status or self.head is not None:
                    self.complain("the app returned before its response was complete")
                else:
                    self.complain("the app returned without a response")
                self._give_up(500)
        self._end()

    def _end(self) -> None:
        if self.background:
            self.background = False
            self.server.background_done(self)

    def _give_up(self, status: int) -> None:
        if not self.done:
            Exchange.refuse(self, status)
            self._wake()  # a task that the app has made may still wait for its client

    async def receive(self) -> dict[str, Any]:
        """ASGI receive()."""
        if self.expects:
            self.expects = False
            if not (self.complete or self.body or self.status or self.gone):
                self.connection.write(heads.CONTINUE)
        while True:
            body = self.body
            if body and not self.done:
                self.body = b""
                self.connection.hold(False)
                self.told = self.complete
                return {"type": "http.request", "body": body, "more_body": not self.complete}
            if self.done or (self.disconnected and (self.told or not self.complete)):
                self.heard = True
                return {"type": _DISCONNECT}
            if self.complete and not self.told:
                self.told = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if self.server.forked:
                self.leave_forked()
            # several tasks may wait at once: Starlette's stream does while the app asks is_disconnected()
            waiter = self.server.loop.create_future()
            others = self.waiter
            self.waiter = [waiter] if others is None else [*(each for each in others if not each.done()), waiter]
            if not self.complete:
                self.connection.await_body()
            await waiter

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI send()."""
        kind = message["type"]
        connection = self.connection
        if kind == "http.response.start":
            if self.head is not None or self.status:
                if self.gone:
                    return
                raise RuntimeError("http.response.start was sent already")
            if self.gone:
                self.head = message["status"], ()
                return
            status = message["status"]
            if status not in heads.STATUS_LINES or status < 200:
                raise RuntimeError(f"not a status that a response can have: {status!r:.40}")
            self.head = status, message.get("headers", ())
            return
        if kind != "http.response.body":
            raise RuntimeError(f"unexpected message {kind!r:.60}")
        if self.server.forked:
            self.leave_forked()
        if connection.write_paused and not self.gone:
            await connection.writable()
        if self.gone:
            await asyncio.sleep(0)  # it may wait for nothing else, and would have the loop to itself
            return
        if self.done:
            raise RuntimeError("http.response.body after the response was complete")
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if not isinstance(body, bytes):
            memoryview(body)  # TypeError for a text or a list: found here, nothing is written yet
        size = len(body)
        start = b""
        if not self.status:
            if self.head is None:
                raise RuntimeError("http.response.body before http.response.start")
            status, headers = self.head
            try:
                start = self.make_head(status, heads.STATUS_LINES[status], headers, None if more else size)
            except heads.InvalidHeader:
                self.head = None
                raise
        elif connection.transport.is_closing():  # its client has left, which the loop has not had the time to tell
            await asyncio.sleep(0)
            return
        if self.nobody:
            body = b""
        elif size:
            self.sent += size
            if self.chunked:
                body = heads.chunk(body)
            elif self.remaining is not None:
                if size > self.remaining:
                    if start:
                        connection.write(start)
                    self.abort()
                    raise RuntimeError("the response's body is longer than its Content-Length")
                self.remaining -= size
        if not more:
            if self.chunked:
                body = b"".join((body, b"0\r\n\r\n"))
            elif self.remaining:
                if start:
                    connection.write(start)
                self.abort()
                raise RuntimeError("the response's body is shorter than its Content-Length")
        if not start:
            if body:
                connection.write(body)
        elif len(body) <= COALESCE:
            connection.write(start + body)
        else:
            connection.write(start)
            connection.write(body)
        if not more:
            self._to_background()
            self.finish()
            self._wake()

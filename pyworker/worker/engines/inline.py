"""Worker: runs a wsgi app in the loop (threads = 1), for one request at a time.

The app is called as in one thread: it does not see the loop, all requests share one context, and none begins while
another's answer has not been yielded to its end (Django closes its connections at the end of each). Other workers take the
new connections meanwhile, and so that a slow client holds up few others the app is asked ahead of what it has read (`ahead`).
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable

from pyworker.worker.engines.ahead import Ahead
from pyworker.worker.engines.exchange import Exchange
from pyworker.worker.engines.wsgi import SLICE, WsgiExchange


class Inline:
    """In the place of a ThreadPool. `on_change()` is called when `is_full` may be another."""

    pending = 0  # nothing is left of an answer that is over

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: contextvars.Context, on_change: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._context = context
        self._on_change = on_change
        self._streaming: InlineExchange | None = None  # whose answer the app has not yielded to its end
        self._queued: deque[InlineExchange] = deque()  # what has to wait for that

    @property
    def is_full(self) -> bool:
        return self._streaming is not None

    def submit(self, exchange: InlineExchange) -> None:
        """Run the exchange, at once if it can be."""
        exchange.ahead = None
        exchange.queued = self._streaming is not None or bool(self._queued)
        if exchange.queued:
            self._queued.append(exchange)
        else:
            self.run_hidden(exchange.run)

    def run_hidden(self, step: Callable[[], None]) -> None:
        """Run a step as if no loop ran in this thread: Django's ORM, async views and asyncio.run refuse to work in one."""
        _set_running_loop(None)
        try:
            self._context.run(step)
        finally:
            _set_running_loop(self._loop)

    def begin_stream(self, exchange: InlineExchange) -> None:
        """The app will go on with this answer before it is called for another request."""
        if self._streaming is None:
            self._streaming = exchange
            self._on_change()

    def end_stream(self, exchange: InlineExchange) -> None:
        """It has yielded all of this answer. What comes next is not called from within it."""
        if self._streaming is exchange:
            self._streaming = None
            self._loop.call_soon(self._run_queued)

    def _run_queued(self) -> None:
        if self._queued and self._streaming is None:
            exchange = self._queued.popleft()
            exchange.queued = False
            if not exchange.done:
                exchange.server.client_came(exchange)
                self.run_hidden(exchange.run)
            self._loop.call_soon(self._run_queued)
        else:
            self._on_change()

    def close(self) -> None:
        """It has no threads to end."""


class InlineExchange(WsgiExchange):
    """One request to an app in the loop."""

    __slots__ = ("ahead", "queued")

    ahead: Ahead | None
    queued: bool  # it has to wait for the end of another's answer

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client who takes his time, this one's or that of the answer before."""
        return self.connection.write_paused or self.queued or self.sends_rest

    def run(self) -> None:
        """Call the app, and write what it says as far as its client takes it. Runs in the context of all requests."""
        try:
            whole = self._call()
            if whole is not None:
                if not self.gone:
                    self.connection.write(whole)
                if self.iterable.__class__ is not list or self.body:
                    self._close()
                if self.rest is None:
                    self._over()
        except BaseException as error:  # noqa: BLE001 - see _status_for
            self._failed(error)
            return
        if whole is None:
            self._pump()
        elif self.rest is not None:
            self._send_rest()

    def _pump(self) -> None:
        """Write until the app has nothing more or the client cannot take more."""
        connection = self.connection
        until = time.monotonic() + SLICE
        try:
            while not self._has_left():
                if self.ahead is not None and not connection.write_paused:
                    self._write_ahead(self.ahead)
                    continue
                if self.steps is None:
                    if self.ahead is None:
                        self._over()
                    return  # on_writable goes on
                if connection.write_paused and self.ahead is not None and not self.ahead.may_grow():
                    self.server.pool.begin_stream(self)
                    return  # on_writable goes on
                part = next(self.steps, None)
                if part is None:
                    self._close()
                    self._has_ended()
                    continue
                if connection.write_paused or self.ahead is not None:  # the app may just have called write()
                    self._keep(part)
                else:
                    connection.write(part)
                if time.monotonic() > until:
                    self.server.pool.begin_stream(self)
                    self._go_on_soon()
                    return
        except BaseException as error:  # noqa: BLE001 - as above
            self._failed(error)
            return
        self._close()
        self._over()
        self._release()

    def put(self, part: bytes) -> None:
        if self.ahead is not None or self.connection.write_paused:
            self._keep(part)  # the app cannot be stopped here
        elif not self._has_left():
            self.connection.write(part)

    def _keep(self, part: bytes) -> None:
        """Have a part of the answer wait for its client."""
        if self.ahead is None:
            self.ahead = Ahead()
        self.ahead.put(part)

    def _write_ahead(self, ahead: Ahead) -> None:
        piece = ahead.take()
        if piece:
            self.connection.write(piece)
        else:
            self.ahead = None
            ahead.close()

    def go_on(self) -> None:
        self.scheduled = False
        if self.rest is not None:
            self._send_rest()
        elif self.ahead is not None or (self.steps is not None and not (self.done and self.iterable is None)):
            self.server.pool.run_hidden(self._pump)

    def _failed(self, error: BaseException) -> None:
        status = self._status_for(error)
        self._close()
        if self.ahead is not None and self.connection.write_paused and not self.gone:
            self.cut_short = True
            self._has_ended()  # on_writable goes on with what the client has not taken yet
            return
        if not self.done:
            if self.gone:
                self._over()
            else:
                Exchange.refuse(self, status)
        self._release()

    def _release(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None
        self._has_ended()

    def _has_ended(self) -> None:
        """The app has yielded all of it: others may be asked for theirs."""
        self.steps = None
        self.server.pool.end_stream(self)

    def _let_go(self) -> bool:
        if self.started and self.queued:
            self._close()
            self.finish()
            return False
        return super()._let_go()

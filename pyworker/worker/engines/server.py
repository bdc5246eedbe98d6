"""Worker: the HTTP server of one worker: takes accepted connections, runs the app, counts, drains.

It accepts nothing and speaks to no daemon: the worker's main program does. All of it runs in one event loop, wsgi
apps with threads aside. An idle server has no timer at all; one with connections ticks once a second.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import ssl
import time
import traceback
from asyncio import sslproto
from collections.abc import Callable
from typing import Any, Literal

from pyworker.config.schema import AppConfig
from pyworker.policy.pulse import NOTICED
from pyworker.protocol.scoreboard import LATENCY_BUCKETS, F
from pyworker.protocol.worker import CHECK_HEADER
from pyworker.record import record
from pyworker.worker import say
from pyworker.worker.engines import forwarded, heads, prepare, request_id, stall
from pyworker.worker.engines.access_log import AccessLog
from pyworker.worker.engines.asgi import AsgiExchange
from pyworker.worker.engines.connection import Connection
from pyworker.worker.engines.early import Early, close_socket, first_read
from pyworker.worker.engines.exchange import Exchange
from pyworker.worker.engines.inline import Inline, InlineExchange
from pyworker.worker.engines.lifespan import Lifespan, LifespanFailed
from pyworker.worker.engines.lobby import Lobby
from pyworker.worker.engines.pool import ThreadExchange, ThreadPool
from pyworker.worker.row import Row

__all__ = ["DrainReport", "LifespanFailed", "Server"]

ANOTHER_WORD = 0.5  # seconds until a drain whose end came late is over all the same
MARGIN = 1.0  # an idle connection is kept this much longer than its time-out while draining
TLS_READ = 64 * 1024  # bytes that asyncio has room for, for each connection: its own 256 KiB are most of what one costs
TLS_END = 86400.0  # the loops cut a TLS client after so many seconds of closing; ours is the one that knows the slow from the dead
AFTER_CUT = 1.0  # seconds between cancelling requests and cutting what is left

_IN_FLIGHT, _REQUESTS, _SUM, _BUCKET_0 = int(F.IN_FLIGHT), int(F.REQUESTS), int(F.LATENCY_SUM_US), int(F.LATENCY_0)
_CLASS_0 = int(F.STATUS_1XX) - 1
_OLDEST = int(F.OLDEST_AT)
_OPEN, _ACCEPTED = int(F.OPEN), int(F.ACCEPTED)
_LAST_BUCKET = LATENCY_BUCKETS - 1
_monotonic_ns = time.monotonic_ns


@record
class DrainReport:
    """How a drain ended."""

    requests: int  # finished since it began
    cancelled: int  # cut at its time-out


class Server:
    """One per worker; may be made before the fork, and lives in the loop that `start` runs in.

    `on_saturation(True)` = no thread is free for another request.
    """

    on_saturation: Callable[[bool], None] | None = None
    loop: asyncio.AbstractEventLoop
    row: Row

    def __init__(
        self,
        app: AppConfig,
        application: Any,
        interface: Literal["asgi", "wsgi"],
        *,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        http = app.http
        self.application = application
        self.interface = interface
        self._ssl = ssl_context
        if ssl_context is not None:
            sslproto.SSLProtocol.max_size = TLS_READ
        self._threads = app.threads if interface == "wsgi" else 1
        self._limits = app.limits
        self._recycle_at = 0
        # read by connections and exchanges
        self.check_header = CHECK_HEADER.lower().encode()
        self.header_timeout = http.header_timeout
        self.idle_timeout = http.keepalive_timeout
        self.closes_always = http.keepalive_timeout <= 0
        self.max_header_size = http.max_header_size
        self.max_body_size = http.max_body_size
        self.root_path = http.root_path.rstrip("/")
        self.root_path_bytes = self.root_path.encode()
        self.trust = forwarded.Trust(http.forwarded_allow_ips)
        self.schemes = forwarded.SCHEMES
        self._gives_ids = http.request_id
        self.new_id: Callable[[], bytes] | None = None
        self.server_line = b"server: pyworker\r\n" if http.server_header else b""
        self.date_line = b""
        self.date_until = 0
        wsgi = ThreadExchange if self._threads > 1 else InlineExchange
        self.exchange: Any = AsgiExchange if interface == "asgi" else wsgi
        self.pool: Any = None  # who calls a wsgi app: Inline or a ThreadPool
        self._context = contextvars.copy_context()  # of such an app in the loop
        self.state: dict[str, Any] = {}
        self.draining = False
        self.forked = False  # this process is one that the app has forked in a request: everything here is its parent's
        self.background: set[Exchange] = set()
        self._log = AccessLog(http.access_log) if http.access_log != "off" else None
        self._lifespan = Lifespan(application) if interface == "asgi" else None
        self._websockets: Any = None  # made for the first one
        self._websocket_max_size = http.websocket_max_size
        self.takes_websockets = interface == "asgi" and prepare.has_websockets()
        self._running: dict[Exchange, int] = {}  # since when it is the app that takes its time; in that order
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[Any]] = set()
        self._tick_every = max(0.05, min(1.0, http.header_timeout / 4, http.keepalive_timeout / 4 or 1.0))
        self._ticking: asyncio.TimerHandle | None = None
        self._next_look = 0.0  # for clients that take nothing
        self._requests = 0
        self._drained_from = 0
        self._cut_at: int | None = None  # how many requests it had answered by then
        self._cancelled = 0
        self._empty: asyncio.Future[None] | None = None
        self._given_up = False  # what is left is waited for no longer
        self._cut_timers: list[asyncio.TimerHandle] = []

    # ---- life ------------------------------------------------------------------------------------
    async def start(self, row: Row, on_recycle: Callable[[str], None]) -> None:
        """Make the app ready to serve in this process: lifespan startup, threads. Raises LifespanFailed."""
        self.loop = asyncio.get_running_loop()
        os.register_at_fork(after_in_child=self._on_fork)
        self.row = row
        self._lobby = Lobby(self.loop, self._first_arrived)
        self._cells = row.cells
        self._on_recycle = on_recycle
        # what is random is chosen after the fork, or all workers would have the same
        limits = self._limits
        if limits.max_requests:
            import random  # as few need it, and it costs every start

            # not the one that all use: an app that seeds it at its import has all workers draw the same
            jitter = random.SystemRandom().randint(0, limits.max_requests_jitter)
            self._recycle_at = limits.max_requests + jitter
        if self._gives_ids:
            self.new_id = request_id.ids().__next__
        if self._lifespan is not None:
            await self._lifespan.startup()
            self.state = self._lifespan.state
        elif self._threads > 1:
            self.pool = ThreadPool(self._threads, self.loop, self._on_jobs)
        else:
            self.pool = Inline(self.loop, self._context, self._tell_saturation)

    def _on_fork(self) -> None:
        self.forked = True

    def begin_drain(self, timeout: float, *, to_empty: bool = False) -> None:
        """Stop being a server: finish, announce `Connection: close`, and after `timeout` seconds cut what is left.

        `to_empty`: nobody else serves, so there is no reason to spread who will come back.
        """
        if self.draining:
            return
        self.draining = True
        self._drained_from = self._requests
        deadline = time.monotonic() + self.idle_timeout + MARGIN
        for waiting in self._lobby.close():
            self._give_to_loop(*waiting)
        for connection in self._connections:
            connection.drain(deadline)
        if self._websockets is not None:
            self._websockets.drain(0.0 if to_empty else timeout)
        self._cut_after(timeout)

    def cut_in(self, timeout: float) -> None:
        """Cut what is left of a drain after so many seconds, and not when it was said at first."""
        if self.draining and self._cut_at is None:
            for timer in self._cut_timers:
                timer.cancel()
            self._cut_after(timeout)

    def _cut_after(self, timeout: float) -> None:
        self._cut_timers = [self.loop.call_at(due := self.loop.time() + timeout, self._cut_at_last, due)]

    def _cut_at_last(self, due: float) -> None:
        if self.loop.time() - due > NOTICED:
            # and perhaps the whole machine: then the daemon gives more time, in a moment
            self._cut_timers = [self.loop.call_later(ANOTHER_WORD, self._cut)]
        else:
            self._cut()

    async def drained(self) -> None:
        """Wait until nothing is open any more (or was cut)."""
        self._empty = self.loop.create_future()
        self.check_empty()
        await self._empty
        for timer in self._cut_timers:
            timer.cancel()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    async def shut_down(self) -> DrainReport:
        """Let the app shut down, after its drain."""
        if self.pool is not None:
            self.pool.close()
        if self._lifespan is not None:
            await self._lifespan.shutdown()
        until = self._requests if self._cut_at is None else self._cut_at
        return DrainReport(until - self._drained_from, self._cancelled)

    @property
    def open_connections(self) -> int:
        return len(self._connections) + (self._websockets.open if self._websockets is not None else 0)

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def saturated(self) -> bool:
        """True when a wsgi app takes no further request now: another worker should take the next connection."""
        return self.pool is not None and self.pool.is_full

    # ---- connections -----------------------------------------------------------------------------
    def serve(
        self,
        connection: socket.SocketType,
        unix: bool,
        addresses: tuple[Any, Any] | None = None,
        early: bool = False,
        *,
        tls: bool = True,
        check: bool = False,
    ) -> None:
        """Serve an accepted, non-blocking connection, which is the server's from here on. Never raises for a bad one.

        `tls=False`: plain HTTP even when the app has TLS. `check`: requests with the check header are not counted.
        `addresses`: the peer's and, unless None, our own, when they are known. `early`: answer now what came with it.
        """
        try:
            if unix:
                client = local = None  # the kernel knows the name that our socket had for a moment, before its own
            else:
                peer, here = addresses or (None, None)
                if peer is None:
                    peer = connection.getpeername()
                client = peer if len(peer) == 2 else (forwarded.plain_host(peer[0]), peer[1])  # 4 parts: IPv6
                if here is None:
                    here = connection.getsockname()
                local = here if len(here) == 2 else (forwarded.plain_host(here[0]), here[1])
        except OSError:
            close_socket(connection)  # the client left before we came to it
            return
        context = self._ssl if tls else None
        trusted = self.trust.unix if client is None else self.trust.host(client[0])
        made = Connection(self, client, local, "http" if context is None else "https", trusted, check)
        if not check:
            cells = self._cells
            cells[_OPEN] += 1
            cells[_ACCEPTED] += 1
        if self.draining:
            made.deadline = min(made.deadline, time.monotonic() + self.idle_timeout + MARGIN)
        if self._ticking is None:
            self._schedule_tick()
        self._connections.add(made)  # last: the handler of a signal may raise, and nobody would end it
        if context is not None:
            task = self.loop.create_task(self._open(made, connection, context))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            return
        if not early:
            self._give_to_loop(made, connection)
            return
        self._take_first(made, connection, self._give_to_loop if self.draining else self._wait_for_first)

    def _take_first(
        self, made: Connection, sock: socket.SocketType, nothing_yet: Callable[[Connection, socket.SocketType], None]
    ) -> None:
        """Answer what has arrived with a connection."""
        try:
            first = first_read(sock)
        except OSError:
            first = b""
        except BaseException:  # of a signal's handler
            self._discard(made, sock)
            raise
        if first:
            self._serve_early(made, sock, first)
        elif first is None:
            nothing_yet(made, sock)
        else:
            self._discard(made, sock)  # the client has left, and has asked for nothing

    def _wait_for_first(self, made: Connection, sock: socket.SocketType) -> None:
        try:
            self._lobby.add(made, sock)
        except OSError:
            self._give_to_loop(made, sock)

    def _first_arrived(self, made: Connection, sock: socket.SocketType) -> None:
        self._take_first(made, sock, self._give_to_loop)

    def _discard(self, made: Connection, sock: socket.SocketType) -> None:
        close_socket(sock)
        self.lost(made)

    def _serve_early(self, made: Connection, sock: socket.SocketType, first: bytes) -> None:
        stand_in = Early(sock, made)
        try:
            made.connection_made(stand_in)
            made.data_received(first)
        except BaseException as error:  # noqa: BLE001 - as in _open; of a signal's handler, too, as in a call of the app
            self._report(error)
            stand_in.abort()
        if stand_in.over:
            made.connection_lost(None)
        elif made.current is None:
            self._settle(made, stand_in)
        else:
            self.loop.call_soon(self._settle, made, stand_in)  # after the app's first step

    def _settle(self, made: Connection, stand_in: Early) -> None:
        """Put an early connection away, or let the loop wait for what is still to come."""
        if not stand_in.over:
            stand_in.flush()
        if stand_in.over:
            made.connection_lost(None)
        else:
            self._give_to_loop(made, stand_in.begin_hand_over())

    def _give_to_loop(self, made: Connection, connection: socket.SocketType) -> None:
        # without a handshake there is one step before the loop is asked and one after it: no task is needed for that
        opening: Any = self.loop.connect_accepted_socket(lambda: made, connection)  # type: ignore[arg-type]
        try:
            waiter = opening.send(None)
            waiter.add_done_callback(lambda _: self._opened(made, connection, opening))
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - as in _open
            self._not_opened(made, connection, error)

    def _opened(self, made: Connection, sock: socket.SocketType, opening: Any) -> None:
        try:
            opening.send(None)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - as in _open
            self._not_opened(made, sock, error)

    async def _open(self, made: Connection, sock: socket.SocketType, context: ssl.SSLContext) -> None:
        try:
            await self.loop.connect_accepted_socket(
                lambda: made,
                sock,  # type: ignore[arg-type]  # neither loop asks for more than a SocketType
                ssl=context,
                ssl_handshake_timeout=self.header_timeout,
                ssl_shutdown_timeout=TLS_END,
            )
        except Exception as error:  # noqa: BLE001 - one connection that cannot be served must not disturb the rest
            self._not_opened(made, sock, error)

    def _not_opened(self, made: Connection, sock: socket.SocketType, error: Exception) -> None:
        if not isinstance(error, (OSError, EOFError)):  # those are failed handshakes: the client's affair
            self._report(error)
        close_socket(sock)
        if made.transport is None:
            self.lost(made)
        else:
            made.connection_lost(error)

    def _report(self, error: BaseException) -> None:
        say.write("error in the HTTP server:\n" + "".join(traceback.format_exception(error)))

    def lost(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            if not connection.check:
                self._cells[_OPEN] -= 1
            self.check_empty()

    def upgraded(self, connection: Connection, head: bytes, rest: bytes) -> None:
        self._connections.discard(connection)
        if connection.check:
            self._cells[_OPEN] += 1
        if self._websockets is None:
            try:
                made = prepare.websockets()
            except Exception as error:  # noqa: BLE001 - packages of the app's environment: their import may raise anything
                say.write(f"websockets cannot be served: {error}\n")
                self._cells[_OPEN] -= 1
                self.refused(501)
                connection.transport.write(heads.short_answer(501))
                connection.transport.close()
                self.check_empty()
                return
            self._websockets = made(self, self.application, self._websocket_max_size)
        self._websockets.take(connection, head, rest)

    def websocket_lost(self) -> None:
        self._cells[_OPEN] -= 1
        self.check_empty()

    # ---- requests --------------------------------------------------------------------------------
    def begin(self, exchange: Exchange) -> None:
        """The app is about to be called."""
        running = self._running
        running[exchange] = began = _monotonic_ns()  # not `exchange.at`: that is before a wsgi request's upload
        cells = self._cells
        cells[_IN_FLIGHT] = len(running)
        if self.interface == "wsgi" and not cells[_OLDEST]:
            cells[_OLDEST] = began  # an app in the loop may keep the tick from coming

    def client_came(self, exchange: Exchange) -> None:
        """The app may have waited for its client: what it takes its time for begins anew."""
        began = self._running.pop(exchange, 0)
        if began:
            self._running[exchange] = _monotonic_ns()
            if self._cells[_OLDEST] == began:
                self._cells[_OLDEST] = 0

    def finished(self, exchange: Exchange) -> None:
        """An answer is written, or never will be."""
        cells = self._cells
        running = self._running
        began = running.pop(exchange, 0)
        if began:
            cells[_IN_FLIGHT] = len(running)
            if cells[_OLDEST] == began:
                cells[_OLDEST] = 0  # until the tick finds the next one
        if not exchange.counted:
            return
        us = (_monotonic_ns() - exchange.at) // 1000
        self._requests += 1
        cells[_REQUESTS] = self._requests
        cells[_SUM] += us
        bucket = us.bit_length()
        # min() costs as much as all of the rest of this
        cells[_BUCKET_0 + (bucket if bucket < _LAST_BUCKET else _LAST_BUCKET)] += 1  # noqa: FURB136
        status = exchange.status
        if status:
            cells[_CLASS_0 + status // 100] += 1
        if self._log is not None:
            client = exchange.client[0] if exchange.client is not None else "unix"
            self._log.write(
                client, exchange.method, exchange.target, exchange.version, status or 499, exchange.sent, us, exchange.request_id
            )  # fmt: skip
        if self._requests == self._recycle_at:
            self._on_recycle(f"max_requests {self._recycle_at}")

    def refused(self, status: int) -> None:
        """A request was refused before it was one: counted by its class only."""
        self._cells[_CLASS_0 + status // 100] += 1

    def background_done(self, exchange: Exchange) -> None:
        """The app's coroutine has ended after its answer."""
        self.background.discard(exchange)
        if self.draining:
            self.check_empty()

    def _tell_saturation(self) -> None:
        if self.on_saturation is not None:
            self.on_saturation(self.saturated)

    def _on_jobs(self) -> None:
        self._tell_saturation()
        if self.draining:
            self.check_empty()

    # ---- time ------------------------------------------------------------------------------------
    def renew_date(self) -> None:
        """Make the Date line of this second."""
        now = time.time()
        self.date_line = heads.date_line(now)
        self.date_until = _monotonic_ns() + int((1.0 - now % 1.0) * 1e9)

    def _schedule_tick(self) -> None:
        self._ticking = self.loop.call_later(self._tick_every, self._tick)

    def _tick(self) -> None:
        self._schedule_tick()  # first: the handler of a signal may raise
        now = time.monotonic()
        for late in self._lobby.take_late(now):
            self._take_first(*late, self._discard)  # an app may have kept the loop busy: its request may be there
        for connection in [c for c in self._connections if c.deadline <= now]:
            connection.expire()
        if now >= self._next_look:
            self._next_look = now + stall.SEND_STALL / stall.LOOKS
            for connection in list(self._connections):
                stall.look(connection, now)
                connection.look_for_end()
            if self._websockets is not None:
                self._websockets.look(now)
        self._cells[_OLDEST] = next((at for each, at in self._running.items() if not each.waits_for_client), 0)
        if not (self.open_connections or self._running) and self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    # ---- the end ---------------------------------------------------------------------------------
    def _cut(self) -> None:
        """The drain's time is over: cancel what runs, close what idles."""
        self._cut_at = self._requests
        for exchange in list(self._running):
            self._cancelled += 1
            exchange.cancel()
        for exchange in list(self.background):
            self._cancelled += 1
            exchange.cancel()
        for connection in list(self._connections):
            if connection.current is None:
                connection.close(linger=False)
            elif not connection.current.started:  # its body is still arriving
                connection.current.refuse(503)
        self._cut_timers.append(self.loop.call_later(AFTER_CUT, self._abort))

    def _abort(self) -> None:
        for task in list(self._opening):
            task.cancel()
        for connection in list(self._connections):
            connection.abort()
        if self._websockets is not None:
            self._cancelled += self._websockets.abort()
        self._given_up = True
        self.check_empty()

    def check_empty(self) -> None:
        """Wake `drained` when nothing is left, or no more is waited for."""
        if self._empty is not None and not self._empty.done() and (self._given_up or self._is_empty()):
            self._empty.set_result(None)

    def _is_empty(self) -> bool:
        if self._connections or self._running or self.background:
            return False
        if self._websockets is not None and self._websockets.busy:
            return False
        return self.pool is None or not self.pool.pending

"""Worker: one client connection: bytes -> requests in order, limits, time-outs, keep-alive, and how it ends.

The order of answers is the order of requests; errors take their turn, too. It never runs an app itself
(`asgi`, `wsgi`) and decides nothing about the server's life (`server`). What a client sends can end its own
connection only. Deadlines are looked at by the server's tick: none is ever early, each may be a tick late.
"""

from __future__ import annotations

import asyncio
import string
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

import httptools

from pyworker.worker import say
from pyworker.worker.engines import heads, request_id
from pyworker.worker.engines.again import LONGEST, Again, learn
from pyworker.worker.engines.early import Early
from pyworker.worker.engines.exchange import BadTarget, Exchange, authority, split_target
from pyworker.worker.engines.stall import Stall, bytes_taken, has_left, unread, unsent

if TYPE_CHECKING:
    from pyworker.worker.engines.server import Server

NEVER = float("inf")
LINGER = 2.0  # seconds that a connection is still read after our last byte, so that no reset destroys the answer
BODY_STALL = 60.0  # seconds without a byte of a body that is waited for
DISCARD = 1024 * 1024  # bytes of a body that nobody wants, read to keep the connection

IDLE, HEAD, BODY, LINGERING = range(4)

HOST, EXPECT, LENGTH, CODING, UPGRADE, IDENT, FORWARDED_FOR, FORWARDED_PROTO = range(1, 9)
NOTED = {
    b"host": HOST,
    b"expect": EXPECT,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"upgrade": UPGRADE,
    request_id.HEADER: IDENT,
    b"x-forwarded-for": FORWARDED_FOR,
    b"x-forwarded-proto": FORWARDED_PROTO,
}
_noted = NOTED.get
_IN_HOST = (string.ascii_letters + string.digits + "-._~%!$&'()*+,;=:[]").encode()  # RFC 3986: host and port
_hosts: set[bytes] = set()  # some that were looked at
_monotonic = time.monotonic


def _is_host(value: bytes) -> bool:
    if value.translate(None, _IN_HOST):
        return False
    if len(_hosts) < 64 and len(value) < 256:
        _hosts.add(value)
    return True


class Refusal(Exception):
    """Raised inside the parser to stop it; the status is in `Connection.refusal`."""


class Connection(asyncio.Protocol):
    """Owned by the loop's transport once `connection_made` was called; counted by the server from before that."""

    # what most connections never change is the class's: setting it for each would cost more than taking the connection
    transport: Any = None
    write: Any = None
    static: dict[str, Any] | None = None  # what wsgi's environ has in common for all requests
    url = b""
    in_head = False
    completed = False
    again: Again | None = None  # a head that has come twice
    mark = 0  # of the last one that was parsed
    carry = fed = 0  # bytes of the head so far: before this chunk, with it
    parsing: Exchange | None = None  # its body is arriving
    current: Exchange | None = None  # its answer is the next one on the wire
    body_size = 0
    vast = False  # more of that body may come than is read when nobody wants it
    framing = 0  # bytes of trailers since the last of the body; -1: there was some of it in this chunk
    body_head = b""  # for the next parser: how the body is framed that this one will not read
    refusal = 0
    upgrade: tuple[str, bytes, list[tuple[bytes, bytes]]] | None = None
    rest = b""  # what came behind it
    upgraded_client: tuple[str, int] | None = None
    upgraded_scheme = ""
    deaf = False  # nothing that arrives is looked at any more
    eof = False
    hold_queue = hold_body = False
    paused = False
    write_paused = False
    stall: Stall | None = None  # something written waits for the client to take it
    waiting: tuple[asyncio.Future[None], ...] = ()
    reading = IDLE  # what `deadline` is about
    taken: int | None = -1  # by a TLS client whose connection is closing, when that was last looked at

    def __init__(
        self,
        server: Server,
        client: tuple[str, int] | None,
        local: tuple[str, int | None] | None,
        scheme: str,
        trusted: bool,
        check: bool,
    ) -> None:
        self.server = server
        self.loop = server.loop
        self.client = client
        self.local = local
        self.scheme = scheme
        self.trusted = trusted
        self.check = check
        self.parser: Any = httptools.HttpRequestParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.queue: deque[Exchange] = deque()
        self.deadline = _monotonic() + server.header_timeout

    # ---- transport -------------------------------------------------------------------------------
    def connection_made(self, transport: Any) -> None:
        before, self.transport = self.transport, transport
        self.write = transport.write
        if before is not None:
            before.hand_over(transport)
            if self.paused:  # not before this returns: uvloop begins to read then, whatever it is told in here
                self.paused = False
                self.loop.call_soon(self._update_reading)
            if self.upgrade is not None and not self.deaf:
                self._to_websocket(self.rest)
        elif self.deaf:  # given up before it began
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.deaf = True
        self.parser = None  # it refers to this object
        self.deadline = NEVER
        self.write_paused = False
        if self.waiting:
            self._wake_writers()
        current, self.current = self.current, None
        try:
            if current is not None:
                current.on_lost()
        finally:  # the handler of a signal may have raised
            self.queue.clear()
            self.parsing = None
            self.server.lost(self)

    def eof_received(self) -> bool | None:
        self.eof = True
        if self.scheme_is_tls():  # there is no half of it: the loop closes
            self._linger()
            return None
        if self.current is None:
            return None
        if self.parsing is not None:  # it can never be completed
            return None
        self.current.on_eof()
        return True  # a client that has said all may still be waiting for its answer

    def scheme_is_tls(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._wake_writers()
        if self.current is not None:
            self.server.client_came(self.current)
            self.current.on_writable()

    def _wake_writers(self) -> None:
        waiting, self.waiting = self.waiting, ()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def writable(self) -> None:
        """Wait until the client has read enough (or is gone)."""
        while self.write_paused:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self.waiting = (*self.waiting, waiter)
            await waiter

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        again = self.again
        if again is not None and self.current is None and self.parsing is None and not self.in_head:
            target = again.target(data)
            if target and len(data) <= self.server.max_header_size:
                self._ask_again(again, target)
                return
        while True:
            self.completed = False
            self.fed = self.carry + len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as pause:
                data = data[pause.args[0] :]
                if self.upgrade is not None:
                    self._take_upgrade(data)
                    return
                self.parser = httptools.HttpRequestParser(self)  # the upgrade was not taken: what follows is HTTP
                self.carry = 0
                if self.body_head:
                    self.parser.feed_data(self.body_head)
                if data:
                    continue
            except httptools.HttpParserError as error:
                self._malformed(error)
                return
            break
        if self.parsing is not None:
            self._body_incomplete(len(data))
        current = self.current
        if self.in_head:
            self._head_incomplete()
        elif current is not None:
            self.carry = 0
            if self.framing < 1:  # else a body is waited for as before: not a byte of it has come
                self.deadline = NEVER
        elif self.completed or (self.parsing is not None and self.framing < 1):
            # a body that nobody wants: its request was answered, and the client may look at that when it has sent all
            self.deadline = _monotonic() + self.server.idle_timeout
        if current is not None and not current.started:
            if current.keep_alive and current.complete and not current.body and len(data) <= LONGEST:
                self._note(data, current)
            if current.complete or self.framing < 1:
                current.try_start()

    def _note(self, data: bytes, exchange: Exchange) -> None:
        """Learn a head that comes a second time: most come once."""
        mark = hash(data[len(exchange.method) + 1 + len(exchange.target) :])
        if mark == self.mark and exchange.version == "1.1":
            self.again = learn(data, exchange)
        self.mark = mark

    def _ask_again(self, again: Again, target: bytes) -> None:
        """Do what the parser's callbacks do for such a request, whose head is known."""
        server = self.server
        headers = again.headers.copy()
        ident = b""
        if server.new_id is not None:
            ident = server.new_id()
            headers.append((request_id.HEADER, ident))
        self.deadline = NEVER
        exchange = self.current = server.exchange(
            self, again.method, target, "1.1", headers, True, again.client, again.scheme, ident, False, again.counted
        )
        exchange.complete = True
        exchange.try_start()

    def _head_incomplete(self) -> None:
        if self.reading != HEAD:
            self.reading = HEAD
            self.deadline = _monotonic() + self.server.header_timeout
        # what came with an earlier message in the same chunk does not count: only what can be seen of this head
        self.carry = self._head_size() if self.completed else self.fed
        if self.carry > self.server.max_header_size:
            self._refuse(431)

    def _body_incomplete(self, size: int) -> None:
        """The parser keeps a trailer until it is whole: it is limited as a head is."""
        self.framing = self.framing + size if self.framing >= 0 else 0
        if self.framing > self.server.max_header_size:
            self._refuse(431)

    def _head_size(self, headers: list[tuple[bytes, bytes]] | None = None, url: bytes | None = None) -> int:
        fields = self.headers if headers is None else headers
        return len(self.url if url is None else url) + sum(len(name) + len(value) + 4 for name, value in fields)

    # ---- parser callbacks ------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        self.in_head = not self.body_head

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.headers.append((name.lower(), value.rstrip(b" \t")))  # llhttp leaves what follows a value
        elif name.lower() in (b"connection", b"proxy-connection"):
            # of all trailers, which nobody asked for, the parser heeds these: a proxy's next request would be refused for it
            self._stop(400)

    def on_headers_complete(self) -> None:
        if self.body_head:
            self.body_head = self.url = b""
            return
        self.in_head = False
        self.reading = IDLE
        headers = self.headers
        self.headers = []
        url = self.url
        self.url = b""
        server = self.server
        parser = self.parser
        if self.fed > server.max_header_size and self._head_size(headers, url) > server.max_header_size:
            self._stop(431)
        version: str = parser.get_http_version()
        hosts = 0
        client, scheme = self.client, self.scheme
        ident = b""
        length = b""
        expects = coded = upgrade = switches = False
        counted = True
        forwarded: list[bytes] | None = None
        for name, value in headers:
            code = _noted(name)
            if code is None:
                continue
            if code == HOST:
                hosts += 1
                if value not in _hosts and not _is_host(value):
                    self._stop(400)
            elif code == LENGTH:
                length = value
                if len(value) > 20:  # zeros before a number; int() takes 4300 digits at most
                    self._stop(400)
                if server.max_body_size and int(value) > server.max_body_size:
                    self._stop(413)
            elif code == EXPECT:
                if value.lower() != b"100-continue":
                    self._stop(417)
                expects = True
            elif code == CODING:
                coded = True
                if value.lower() != b"chunked":
                    self._stop(501)
            elif code == UPGRADE:
                switches = True
                upgrade = value.lower() == b"websocket"
            elif code == IDENT:
                ident = value
            elif self.trusted:
                if code == FORWARDED_FOR:
                    forwarded = [value] if forwarded is None else [*forwarded, value]
                elif code == FORWARDED_PROTO:
                    scheme = server.schemes.get(value.strip().lower(), scheme)
        if version == "1.1":
            if hosts != 1:
                self._stop(400)
        elif version == "1.0":
            if hosts > 1 or coded:
                self._stop(400)
            expects = False
        else:
            self._stop(505)
        keep_alive = parser.should_keep_alive()
        if url[:1] != b"/" and b"://" in url:
            headers = self._of_named_host(url, headers)
        if forwarded is not None:
            client = server.trust.client(forwarded) or client
        if server.new_id is not None:
            if not ident or not self.trusted or not request_id.acceptable(ident):
                if ident:
                    headers = [pair for pair in headers if pair[0] != request_id.HEADER]
                ident = server.new_id()
                headers.append((request_id.HEADER, ident))
        else:
            ident = b""
        if self.check:
            counted = all(name != server.check_header for name, _ in headers)
        method: str = parser.get_method().decode("ascii")
        if upgrade and server.takes_websockets and method == "GET" and parser.should_upgrade():
            self._note_upgrade(method, url, headers, client, scheme)
            return
        if method == "CONNECT":
            self._stop(501)
        exchange = server.exchange(
            self, method, url, version, headers, keep_alive, client, scheme, ident, expects, counted
        )
        if switches and (coded or length) and parser.should_upgrade():
            # the parser stops here, as if there were no body
            framing = b"transfer-encoding: chunked" if coded else b"content-length: " + length
            self.body_head = b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing
        self.parsing = exchange
        self.vast = coded or (length != b"" and int(length) > DISCARD)
        self.body_size = 0
        self.framing = -1
        if self.current is None:
            self.current = exchange
        else:
            self.queue.append(exchange)
            if not self.hold_queue:
                self.hold_queue = True
                self._update_reading()

    def _of_named_host(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The target names the host itself, and that counts (RFC 9112, 3.2.2): return the headers with it."""
        host = authority(url)
        if not _is_host(host):
            self._stop(400)
        return [(b"host", host), *(pair for pair in headers if pair[0] != b"host")]

    def _note_upgrade(
        self, method: str, url: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None, scheme: str
    ) -> None:
        """The request is to become a websocket: the parser pauses behind it."""
        if self.current is not None:
            self._stop(400)
        try:
            path, query = split_target(url)
        except BadTarget:
            self._stop(400)
        self.upgrade = method, path + b"?" + query if query else path, headers
        self.upgraded_client, self.upgraded_scheme = client, scheme

    def on_body(self, body: bytes) -> None:
        exchange = self.parsing
        if exchange is None:
            return
        self.framing = -1
        limit = self.server.max_body_size
        if limit:
            self.body_size += len(body)
            if self.body_size > limit:
                self._stop(413)
        if not (exchange.done or exchange.gone):
            exchange.on_body(body)

    def on_message_complete(self) -> None:
        if self.body_head:
            return  # it is not: its body is still to be read
        exchange = self.parsing
        self.completed = True
        if exchange is not None:
            self.parsing = None
            exchange.complete = True
            exchange.on_complete()

    def _stop(self, status: int) -> NoReturn:
        self.refusal = status
        raise Refusal

    # ---- what can go wrong -----------------------------------------------------------------------
    def _malformed(self, error: Exception) -> None:
        """The parser stopped: by one of our refusals, or because this is not HTTP."""
        status = self.refusal
        if not status:
            status = 400
            cause = error.__context__
            if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
                status = 500  # a bug of ours: the connection pays for it, the worker does not
                say.write("error in the HTTP server:\n" + "".join(traceback.format_exception(cause)))
        self._refuse(status)

    def _refuse(self, status: int) -> None:
        """Answer `status` when its turn has come, and close. Nothing that arrives later is looked at."""
        self.deaf = True
        self.refusal = status
        self.deadline = NEVER
        broken, self.parsing = self.parsing, None
        if broken is not None:
            if broken.done:  # it was answered before its body was here
                self.close(linger=True)
                return
            if broken is self.current:
                broken.refuse(status)  # its end closes the connection
                return
            self.queue.remove(broken)
        current = self.current
        if current is None:
            self._answer_refusal()
        elif not current.started:
            self.start_soon()  # not now: the app would find the parser's error in sys.exc_info()

    def _answer_refusal(self) -> None:
        server = self.server
        if time.monotonic_ns() >= server.date_until:
            server.renew_date()
        server.refused(self.refusal)
        self.write(heads.short_answer(self.refusal, (server.date_line, server.server_line)))
        self.close(linger=True)

    def _take_upgrade(self, rest: bytes) -> None:
        """The parser has paused after a request that becomes a websocket."""
        if isinstance(self.transport, Early):  # a websocket is for the loop: when that has the connection
            self.rest = rest
        else:
            self._to_websocket(rest)

    def _to_websocket(self, rest: bytes) -> None:
        assert self.upgrade is not None
        method, url, headers = self.upgrade
        lines = [method.encode(), b" ", url, b" HTTP/1.1\r\n"]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n")
        self.deaf = True
        self.deadline = NEVER
        self.parser = None
        self.server.upgraded(self, b"".join(lines), rest)

    # ---- order of answers ------------------------------------------------------------------------
    def last_answer(self) -> bool:
        """True when the answer that is about to be written should be this connection's last one."""
        return (self.eof and not self.queue) or (self.server.draining and not self.queue and not self.in_head)

    def answered(self, exchange: Exchange) -> None:
        """The current exchange is over: its answer is written."""
        if exchange is not self.current:
            return
        self.current = None
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            linger = self.deaf or not exchange.complete or self.server.draining or bool(self.queue)
            if exchange.remaining is None and self.scheme_is_tls():
                linger = False  # the client waits for our close to know the answer's end
            self.close(linger=linger)
            return
        if self.hold_body:
            self.hold_body = False
            self._update_reading()
        if self.queue:
            self.current = self.queue.popleft()
            if not self.queue:
                self.hold_queue = False
                self._update_reading()
            self.start_soon()
        elif self.deaf:
            self._answer_refusal()
        elif self.eof:
            self.close(linger=False)
        elif self.in_head:
            self.deadline = _monotonic() + self.server.header_timeout
        else:
            self.reading = IDLE
            self.deadline = _monotonic() + self.server.idle_timeout

    def start_soon(self) -> None:
        """Have the current request start, if it has not, when the loop turns."""
        self.loop.call_soon(self._start_next)

    def _start_next(self) -> None:
        if self.current is not None and not self.current.started:
            self.deadline = NEVER
            self.current.try_start()

    def hold(self, reading: bool) -> None:
        """Stop (or go on) reading because a body is not taken as fast as it comes."""
        if self.hold_body is reading:
            return
        self.hold_body = reading
        self._update_reading()

    def _update_reading(self) -> None:
        wanted = self.hold_body or self.hold_queue
        if wanted is self.paused or self.transport is None or self.transport.is_closing():
            return
        self.paused = wanted
        if wanted:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def await_body(self) -> None:
        """A request waits for the rest of its body: not for ever."""
        if not self.in_head:
            self.reading = BODY
            self.deadline = _monotonic() + BODY_STALL

    # ---- the end ---------------------------------------------------------------------------------
    def expire(self) -> None:
        """The deadline has passed. What came before that, while an app kept the loop busy, is read first."""
        came_in_time = self.deadline > 0.0 and self.transport is not None and unread(self.transport)
        self.deadline = NEVER
        if self.transport is None:  # in its TLS handshake, which has a time-out of its own
            self.deadline = _monotonic() + self.server.header_timeout
        elif self.reading == LINGERING:
            self._linger_on()
        elif came_in_time:
            self.deadline = 0.0  # once: the loop reads it before the next tick
        elif self.hold_queue:
            return  # it is we who do not read on; when the queue is empty it has its time again
        elif self.reading == HEAD or (
            self.reading == BODY and self.current is not None and self.current.waits_for_body
        ):
            self._refuse(408)
        elif self.current is None:
            self.close(linger=self.parsing is not None)

    def look_for_end(self) -> None:
        """Tell an app that its client has left although nothing is read, as requests wait behind this one."""
        if self.hold_queue and self.current is not None and has_left(self.transport):
            self.current.on_eof()

    def drain(self, deadline: float) -> None:
        """The server is stopping: stay open for one more request until `deadline`, then go."""
        if self.current is None and not self.in_head and not self.deaf:
            self.reading = IDLE
            self.deadline = deadline

    def close(self, *, linger: bool) -> None:
        """Close after what was written. `linger`: the client may still be sending, and must not be reset for it."""
        self.deaf = True
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        tls = self.scheme_is_tls()
        if not linger or self.eof:
            transport.close()
            if tls:
                self._linger()
            return
        self.hold_body = self.hold_queue = False
        self._update_reading()
        self._linger()
        if tls:
            return  # it has no half of a close, and asyncio's cuts a client that sends behind a whole one
        try:
            transport.write_eof()
        except OSError:  # asyncio's asks the kernel at once; the client has left
            transport.abort()

    def _linger(self) -> None:
        self.reading = LINGERING
        self.deadline = _monotonic() + LINGER

    def _linger_on(self) -> None:
        """The time to linger is over. A TLS client is closed then, and cut if it does not answer that with its own close."""
        transport = self.transport
        if unsent(transport):  # our last byte is still to come
            self._linger()
        elif not self.scheme_is_tls():
            transport.abort()
        elif not transport.is_closing():
            transport.close()
            self.deadline = 0.0
        else:
            before, self.taken = self.taken, bytes_taken(transport)
            if self.taken == before:
                transport.abort()
            else:  # a loop that was late may have more to write, which it has done when it is here again
                self.deadline = 0.0

    def abort(self) -> None:
        """Cut the connection: the client must see that the answer is not whole."""
        self.deaf = True
        if self.transport is not None:
            self.transport.abort()

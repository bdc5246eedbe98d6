"""Worker: websockets, by uvicorn's class. Ours are the accounts, the peer's address behind a proxy, what comes before the
handshake is answered, and the drain (1012).
"""

from __future__ import annotations

import asyncio
import functools
import math
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.protocol import State

from pyworker.worker.ending import end_forked
from pyworker.worker.engines import heads
from pyworker.worker.engines.stall import Stall, look, unread, unsent

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection
    from pyworker.worker.engines.server import Server

_WHERE = "error in a websocket"
CLOSE_TIMEOUT = 5.0  # seconds for the peer to answer our close frame
AT_ONCE = 50  # websockets that a drain closes without a pause
PAUSE = 0.05  # seconds
PART = 4096  # bytes that are parsed at a time: unpacked they may be a thousand times as many
UNTAKEN = 64 * 1024  # bytes of messages that wait for the app; past them no more is read, a ping neither
PER_MESSAGE = 256  # bytes that one takes besides its own


class ClosedOnce:
    """A TLS transport that may be closed twice, as uvicorn does: asyncio's forgets its connection then, and cannot even be
    aborted.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.write = transport.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()


class WebSocket(WebSocketsSansIOProtocol):
    """One websocket; its transport was an HTTP connection's."""

    leaving = False  # no message of the peer's goes to the app any more
    ahead = b""  # what is not parsed yet: the app has not taken what came before, or not answered the handshake
    untaken = 0  # bytes of messages, since last none waited for the app
    heard = False  # something has come since the last ping
    pong = b""  # waits until the peer has taken what was written
    stall: Stall | None = None
    ended = False  # nothing is left but the peer's answer to the end of TLS

    def leave(self) -> None:
        """Close with 1012 (service restart) and wait for the peer's answer, as RFC 6455 wants it.

        uvicorn's shutdown() closes the connection right behind the close frame: what the peer has just sent then resets
        it, and the frame may never arrive. One whose handshake the app has not answered yet is answered first; uvicorn's
        would get status 500.
        """
        if not self.leaving and not self.close_sent:
            self.leaving = True
            # a peer that has closed is open here until it has taken our answer, and is told nothing more
            if self.handshake_complete and self.conn.state is State.OPEN:
                self._say_goodbye(1012)

    def end(self, code: int) -> None:
        """Close behind the app, which has ended without: uvicorn's would cut the connection, and its peer report a failure."""
        if not self.close_sent:
            self.initial_response = None  # of a refusal that was begun nothing is sent: uvicorn answers 500 instead
        if self.handshake_complete and self.conn.state is State.OPEN and not self.transport.is_closing():
            self.leaving = True
            self._say_goodbye(code)

    def _say_goodbye(self, code: int) -> None:
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code})
        self.conn.send_close(code)
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
            self._parse()
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.close)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self.ahead = self.ahead + data if self.ahead else data
        self._parse()

    def _parse(self) -> None:
        """Parse what has come until the app has something to take: uvicorn's would unpack a whole read before it looks.

        Frames that came before the handshake was answered wait for that: the library would answer them before it.
        """
        data, self.ahead = self.ahead, b""
        at = 0
        while at < len(data) and not self.transport.is_closing():
            unanswered = self.handshake_initiated and not self.handshake_complete
            if unanswered or self.read_paused:
                self.ahead = data[at:]
                if unanswered:
                    self.transport.pause_reading()
                return
            super().data_received(data[at : at + PART])
            at += PART

    async def receive(self) -> Any:
        message = await super().receive()
        if self.ahead and not self.read_paused:
            self._parse()
        return message

    async def run_asgi(self) -> None:
        scope = self.scope
        worker = self.worker
        scope["root_path"] = worker.root_path  # uvicorn's would have to be ASCII
        scope["path"] = worker.root_path + scope["path"]
        scope["raw_path"] = worker.root_path_bytes + scope["raw_path"]
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        if self.worker.forked:
            end_forked(_WHERE)
        if message["type"] in ("websocket.accept", "websocket.http.response.start"):
            # the library looks at values at most
            headers = list(message.get("headers", ()))  # it may be possible to go through them once only
            protocol = message.get("subprotocol") or ""
            heads.check([*headers, (b"sec-websocket-protocol", protocol.encode("latin-1"))])
            message = {**message, "headers": headers}
        elif message["type"] == "websocket.http.response.body":
            message = {"body": b"", **message}  # uvicorn's insists on it
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # or uvicorn says in the log that it was not answered
        if self.ahead and message["type"] in ("websocket.accept", "websocket.close"):
            if not self.transport.is_closing():
                self.transport.resume_reading()
            self._parse()
        if self.leaving and message["type"] == "websocket.accept" and not self.transport.is_closing():
            self._say_goodbye(1012)

    def send_receive_event_to_app(self) -> None:
        if self.leaving and self.handshake_complete:
            self.frames = []
        elif self.curr_msg_data_type == "text" and not _is_utf8(self.frames[0]):  # uvicorn's would print a traceback
            self.frames = []
            if self.conn.state is State.OPEN:  # it is closed already if this is the second, or a close came with it
                self.conn.send_close(1007)
                self.handle_parser_exception()
        else:
            untaken = 0 if self.queue.empty() else self.untaken
            self.untaken = untaken + sum(map(len, self.frames)) + PER_MESSAGE
            # uvicorn's stops reading at each message, and a client's ping waits for as long as the app takes for the one before
            reads_on = not self.read_paused and self.untaken < UNTAKEN
            if reads_on:
                self.read_paused = True
            super().send_receive_event_to_app()
            if reads_on:
                self.read_paused = False

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        # or the app's next message would be a mistake of its own: one behind its close
        self.disconnected = True

    def send_keepalive_ping(self) -> None:
        self.heard = False
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self.read_paused or self.heard or unread(self.transport):
            # the answer may wait behind what the app has not taken or behind a long message that is still on its way, or be
            # there, as an app keeps the loop busy. Another one keeps proxies from taking this for an idle connection, and one
            # whose client has left is cut by it
            self.send_keepalive_ping()
            return
        closed = self.close_sent
        super().keepalive_timeout()
        self.disconnected = self.disconnected or self.close_sent is not closed  # as above

    def handle_ping(self) -> None:
        """Answer, or keep the answer to the last one (RFC 6455, 5.5.3): pongs that nobody takes would fill the memory."""
        answers = self.conn.data_to_send()  # to all that came together; to a close behind them, too
        if self.writable.is_set() or self.conn.state is not State.OPEN:
            self.transport.write(b"".join(answers))
        elif answers:
            self.pong = answers[-1]

    def resume_writing(self) -> None:
        pong, self.pong = self.pong, b""
        if pong and self.conn.state is State.OPEN and not self.transport.is_closing():
            self.transport.write(pong)
        super().resume_writing()

    def handle_cont(self, event: Any) -> None:
        """Join the parts of a message as they come: kept as they are, those of one byte take 36 times its size."""
        parts: list[Any] = self.frames
        if not isinstance(parts[0], bytearray):
            parts[0] = bytearray(parts[0])
        parts[0] += event.data
        if event.fin:
            self.frames = [bytes(parts[0])]
            self.send_receive_event_to_app()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.worker.websocket_lost()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        del self.app  # which refers to this
        self.worker.check_empty()

    def abort(self) -> None:
        self.transport.abort()

    def look(self, now: float) -> None:
        """Cut a peer that takes nothing, or that does not answer the end of TLS."""
        ended, self.ended = self.ended, self.transport.is_closing() and not unsent(self.transport)
        if ended and self.ended:
            self.abort()
        else:
            look(self, now)

    worker: Any = None  # the Server; `server` is its address


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def closed_at_once(count: int, timeout: float) -> int:
    """Return how many to close before each pause, so that all are within half of the time that they have to end."""
    return max(AT_ONCE, math.ceil(count * PAUSE / max(timeout / 2, PAUSE)))


class WebSockets:
    def __init__(self, server: Server, application: Any, max_size: int) -> None:
        self._server = server
        self._application = application
        self._config = uvicorn.Config(
            application, log_config=None, lifespan="off", interface="asgi3", proxy_headers=False,
            ws_max_size=max_size, server_header=False, date_header=False,
        )  # fmt: skip
        self._config.loaded = True  # its load() would call the app to see whether it is a factory
        self._config.loaded_app = None  # each websocket has its own
        self._state = ServerState()
        self._cut = False

    @property
    def open(self) -> int:
        return len(self._state.connections)

    @property
    def busy(self) -> bool:
        return bool(self._state.connections or self._state.tasks)

    def take(self, connection: Connection, head: bytes, rest: bytes) -> None:
        """Take over the connection's transport; `head` is its upgrade request, `rest` what came after it."""
        protocol = WebSocket(self._config, self._state, self._server.state)
        protocol.app = functools.partial(self._run, protocol)
        protocol.worker = self._server
        transport: Any = connection.transport
        if connection.scheme_is_tls():
            transport = ClosedOnce(transport)
        protocol.connection_made(transport)
        protocol.client = connection.upgraded_client
        protocol.scheme = "wss" if connection.upgraded_scheme == "https" else "ws"
        protocol.server = connection.local
        connection.transport.set_protocol(protocol)
        if connection.write_paused:  # by the answer before, which its client has not taken
            protocol.pause_writing()
        protocol.data_received(head)
        if not protocol.handshake_initiated:
            # a head that the library does not take, for its length mostly: uvicorn neither answers nor closes then
            self._server.refused(400)
            connection.transport.write(heads.short_answer(400))
            connection.transport.close()
            return
        if rest:
            protocol.data_received(rest)
        if self._server.draining:
            protocol.leave()

    async def _run(self, protocol: WebSocket, scope: Any, receive: Any, send: Any) -> Any:
        try:
            result = await self._application(scope, receive, send)
        except BaseException as error:
            if self._server.forked:
                end_forked(_WHERE, error)
            protocol.end(1011)
            if self._cut and isinstance(error, asyncio.CancelledError):
                raise ClientDisconnected from None  # as of a request that is cut, there is nothing to report
            raise
        if self._server.forked:
            end_forked(_WHERE)
        protocol.end(1000)
        return result

    def drain(self, timeout: float) -> None:
        """Close all with 1012 (service restart); of many some after the other, as most clients come back at once."""
        left = self._all()
        at_once = closed_at_once(len(left), timeout)

        def close_some() -> None:
            now, left[:] = left[:at_once], left[at_once:]
            for protocol in now:
                if protocol in self._state.connections:
                    protocol.leave()
            if left:
                self._server.loop.call_later(PAUSE, close_some)

        close_some()

    def look(self, now: float) -> None:
        """Cut those whose peers are gone, or as good as."""
        for protocol in self._all():
            protocol.look(now)

    def abort(self) -> int:
        """Cut what is left; return how many there were."""
        self._cut = True
        left = self._all()
        for protocol in left:
            protocol.abort()
        for task in list(self._state.tasks):
            task.cancel()
        return len(left)

    def _all(self) -> list[WebSocket]:
        return [protocol for protocol in self._state.connections if isinstance(protocol, WebSocket)]

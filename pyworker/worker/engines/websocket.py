"""Worker: websockets, by uvicorn's class. Ours are the accounts, the peer's address behind a proxy, and the drain (1012)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from pyworker.worker.engines import heads

if TYPE_CHECKING:
    from pyworker.worker.engines.connection import Connection
    from pyworker.worker.engines.server import Server

CLOSE_TIMEOUT = 5.0  # seconds for the peer to answer our close frame


class WebSocket(WebSocketsSansIOProtocol):
    """One websocket; its transport was an HTTP connection's."""

    leaving = False  # no message of the peer's goes to the app any more

    def leave(self) -> None:
        """Close with 1012 (service restart) and wait for the peer's answer, as RFC 6455 wants it.

        uvicorn's shutdown() closes the connection right behind the close frame: what the peer has just sent then resets
        it, and the frame may never arrive. One whose handshake the app has not answered yet is answered first; uvicorn's
        would get status 500.
        """
        if not self.leaving and not self.close_sent:
            self.leaving = True
            if self.handshake_complete:
                self._say_goodbye()

    def _say_goodbye(self) -> None:
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1012})
        self.conn.send_close(1012)
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.close)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.leaving and message["type"] == "websocket.accept" and not self.transport.is_closing():
            self._say_goodbye()

    def send_receive_event_to_app(self) -> None:
        if self.leaving and self.handshake_complete:
            self.frames = []
        else:
            super().send_receive_event_to_app()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.on_lost()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.on_ended()

    on_lost: Any = None
    on_ended: Any = None


class WebSockets:
    """All websockets of one worker."""

    def __init__(self, server: Server, application: Any, root_path: str, max_size: int) -> None:
        self._server = server
        self._config = uvicorn.Config(
            application, log_config=None, lifespan="off", interface="asgi3", proxy_headers=False,
            root_path=root_path, ws_max_size=max_size, server_header=False, date_header=False,
        )  # fmt: skip
        self._config.loaded = True  # its load() would call the app to see whether it is a factory
        self._config.loaded_app = application
        self._state = ServerState()

    @property
    def open(self) -> int:
        return len(self._state.connections)

    @property
    def busy(self) -> bool:
        return bool(self._state.connections or self._state.tasks)

    def take(self, connection: Connection, head: bytes) -> None:
        """Take over the connection's transport; `head` is its upgrade request and what came after it."""
        protocol = WebSocket(self._config, self._state, self._server.state)
        protocol.on_lost = self._server.websocket_lost
        protocol.on_ended = self._server.check_empty
        protocol.connection_made(connection.transport)
        protocol.client = connection.upgraded_client
        protocol.scheme = "wss" if connection.upgraded_scheme == "https" else "ws"
        protocol.server = connection.local
        connection.transport.set_protocol(protocol)
        protocol.data_received(head)
        if not protocol.handshake_initiated:
            # a head that the library does not take, for its length mostly: uvicorn neither answers nor closes then
            self._server.refused(400)
            connection.transport.write(heads.short_answer(400))
            connection.transport.close()
        elif self._server.draining:
            protocol.leave()

    def drain(self) -> None:
        """Close all with 1012 (service restart)."""
        for protocol in list(self._state.connections):
            if isinstance(protocol, WebSocket):
                protocol.leave()

    def abort(self) -> int:
        """Cut what is left; return how many there were."""
        left = list(self._state.connections)
        for protocol in left:
            if protocol.transport is not None:
                protocol.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        return len(left)

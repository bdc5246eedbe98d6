"""Dispatcher: its end of the channel to the daemon. Never blocks: what a daemon does not read now is kept and sent later.

What a message asks for is main.py's. What came without its descriptors, for want of them, is asked for once more.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable

from pyworker import __version__
from pyworker.dispatcher.loop import IN, Loop
from pyworker.protocol import dispatcher as d
from pyworker.protocol.wire import WireError, decode, encode
from pyworker.unix import stderr
from pyworker.unix.fds import close_all, recv_packet, send_packet

MESSAGES_A_TURN = 64
MAX_WAITING = 1000  # messages that a daemon has not read; what is more is dropped
SEND_AGAIN = 0.1  # seconds
ASK_AGAIN = 1.0  # ... until all is asked for again, of which a part came without its descriptors


class Channel:
    """Gives each message, and the fds that came with it (then the receiver's), to `on_message`; its end to `on_end`."""

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        on_message: Callable[[d.ToDispatcher, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._on_message = on_message
        self._on_end = on_end
        self._outbox: deque[bytes] = deque()
        self._sends_later = False
        self._asks_later = False
        self._ended = False
        loop.add(sock.fileno(), IN, self._on_readable)

    def say(self, message: d.FromDispatcher) -> None:
        """Send, or keep for a daemon that does not read now."""
        if len(self._outbox) < MAX_WAITING:
            self._outbox.append(encode(message))
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(OSError):
            while self._outbox and send_packet(self._sock, self._outbox[0]):
                self._outbox.popleft()
        if self._outbox and not self._ended and not self._sends_later:
            self._sends_later = True
            self._loop.later(SEND_AGAIN, self._flush_again)

    def _flush_again(self) -> None:
        self._sends_later = False
        self._flush()

    def _on_readable(self, _: int) -> None:
        self._flush()
        for _turn in range(MESSAGES_A_TURN):
            try:
                packet = recv_packet(self._sock, d.MAX_TOLD, 2)
            except OSError:
                self._end()
                return
            if packet is None:
                return
            if not packet.data and not packet.fds:
                self._end()
                return
            if packet.truncated:  # no number was free for what came with it: have all of it said again
                close_all(packet.fds)
                if not self._asks_later:
                    self._asks_later = True
                    self._loop.later(ASK_AGAIN, self._ask_again)
                continue
            try:
                message: d.ToDispatcher = decode(d.ToDispatcher, packet.data, limit=d.MAX_TOLD)
            except WireError as error:
                stderr.write(f"dispatcher: ignored a message of the daemon: {error}\n")
                close_all(packet.fds)
                continue
            self._on_message(message, packet.fds)

    def _ask_again(self) -> None:
        self._asks_later = False
        self.say(d.Up(__version__))

    def _end(self) -> None:
        self._loop.remove(self._sock.fileno())
        self._ended = True
        self._on_end()

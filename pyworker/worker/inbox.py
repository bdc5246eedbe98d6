"""Worker: takes the connections that the dispatcher puts into its slot's inbox. Has the face of accept.AcceptLoop.

The inbox is the slot's, not ours: what we do not take, our successor does.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from pyworker.policy.faults import Faults
from pyworker.protocol.dispatcher import LAST
from pyworker.unix.fds import close_all, recv_packet
from pyworker.worker.accept import EMPTY_ROUNDS, PAUSE, STREAM, Addresses, how_connections_are_made
from pyworker.worker.say import say

_A_TURN = 16  # connections taken at once, before the loop looks at its other sockets


class InboxLoop:
    """Takes from `inbox` (owned: `stop` closes it) and gives each connection to `serve`, as AcceptLoop does."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inbox: socket.socket,
        serve: Callable[[socket.SocketType, bool, Addresses | None, bool], None],
    ) -> None:
        inbox.setblocking(False)
        self._loop = loop
        self._must_unblock, self._made = how_connections_are_made(loop)
        self._inbox = inbox
        self._serve = serve
        self._held = False
        self._paused: asyncio.TimerHandle | None = None
        self._faults = Faults()
        self._was_last = False
        self.accepting = False
        self._stopped = False

    async def start(self) -> None:
        self.accepting = True
        self._watch()

    start_shared = start

    def hold(self, held: bool) -> None:
        """Leave new connections where they are while `held`; the dispatcher gives them to siblings that are free."""
        self._held = held
        if self.accepting:
            self._watch()

    def try_once(self) -> None:
        """Nobody is woken in our stead here: nothing to do."""

    async def stop(self, *, to_empty: bool) -> None:
        """Take no more; with `to_empty` all that the dispatcher still has for us (at most one second)."""
        was_accepting, self.accepting, self._stopped = self.accepting, False, True
        self._watch()
        if to_empty and was_accepting:
            for _ in range(EMPTY_ROUNDS):
                while self._take(early=False):
                    pass
                if self._was_last:
                    break
                await asyncio.sleep(0.05)
        self._inbox.close()

    def _watch(self) -> None:
        self._loop.remove_reader(self._inbox.fileno())
        if self.accepting and not self._held and self._paused is None:
            try:
                self._loop.add_reader(self._inbox.fileno(), self._on_readable)
            except OSError as error:  # this user may wait for no more (fs.epoll.max_user_watches), or no memory
                self._pause(str(error.strerror))

    def _on_readable(self) -> None:
        if self._is_full():
            self._pause()
            return
        for _ in range(_A_TURN):
            if not self.accepting or self._held or not self._take(early=True):
                return

    def _is_full(self) -> bool:
        """True when this process has no descriptors left for a turn's connections: one that comes anyway is lost."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            lowest_free = os.dup(self._inbox.fileno())
        except OSError:
            return True
        os.close(lowest_free)
        return 0 <= most <= lowest_free + min(_A_TURN, most // 4)

    def _take(self, *, early: bool) -> bool:
        """Take and serve one connection; False when there is none now."""
        packet = recv_packet(self._inbox, 16, 1)
        if packet is None:
            return False
        if packet.truncated:  # no number was free for it, and the kernel has closed it
            close_all(packet.fds)
            self._pause()
            return False
        if not packet.fds:
            self._was_last = self._was_last or packet.data == LAST
            return bool(packet.data)
        connection, local = _connection(packet.fds[0], self._made)
        if self._must_unblock or connection.timeout:  # socket.setdefaulttimeout() of the app: to look would be to wait
            connection.setblocking(False)
        self._serve(connection, local is None, None if local is None else (None, local), early)
        return True

    def _pause(self, why: str = "too many open files") -> None:
        if self._faults.is_new(why, self._loop.time()):
            say(f"cannot take connections: {why}; trying again")
        if self._paused is None:
            self._paused = self._loop.call_later(PAUSE, self._resume)
            self._watch()

    def _resume(self) -> None:
        self._paused = None
        if not self._stopped:
            self._watch()


def _connection(fd: int, made: type[socket.SocketType]) -> tuple[socket.SocketType, Any]:
    """Return a connection that came without a word of its kind, and our own address; None for a Unix socket.

    Nearly all are of IPv4, so it is taken for one: `socket.socket` would ask the kernel for family, type and protocol.
    """
    connection = made(socket.AF_INET, STREAM, 0, fileno=fd)
    local = connection.getsockname()
    if isinstance(local, tuple) and len(local) == 2:
        return connection, local
    connection.detach()
    if isinstance(local, tuple):
        connection = made(socket.AF_INET6, STREAM, 0, fileno=fd)
        return connection, connection.getsockname()  # as of IPv4 it was cut after the first part
    return made(socket.AF_UNIX, STREAM, 0, fileno=fd), None

"""What workers ask to listen on: bound, accepted on and closed by their primary. Who gets a connection is primary.py's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

from pyworker.protocol.nodecluster import Query
from pyworker.record import replace

_PAUSE = 0.1  # seconds without accepting when this process or the machine is out of files


class Listeners:
    """By key. Each connection goes to `accepted(key, connection)`; `later(delay, function)` is how a pause ends."""

    def __init__(
        self, accepted: Callable[[str, socket.socket], None], later: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self._accepted = accepted
        self._later = later
        self._sockets: dict[str, socket.socket] = {}
        self._paths: dict[str, str] = {}
        self._watched: set[str] = set()  # or will be, when a pause is over

    def __bool__(self) -> bool:
        return bool(self._sockets)

    def __getitem__(self, key: str) -> socket.socket:
        return self._sockets[key]

    def open(self, key: str, query: Query) -> tuple[str | None, int | None, str | None]:
        """Bind what was asked for; return address, port and family, as Node names them. OSError says why not."""
        listener = self._sockets[key] = open_listener(query)
        if query.kind == "unix":
            if not str(query.address).startswith("\0"):  # an abstract one has no file
                self._paths[key] = str(query.address)
            return None, None, None
        host, port = listener.getsockname()[:2]
        return host, port, "IPv6" if listener.family == socket.AF_INET6 else "IPv4"

    def close(self, key: str) -> None:
        self.watch(key, on=False)
        if (listener := self._sockets.pop(key, None)) is not None:
            listener.close()
        if (path := self._paths.pop(key, None)) is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def watch(self, key: str, *, on: bool) -> None:
        """Accept, or leave connections in the kernel's queue."""
        listener = self._sockets.get(key)
        if listener is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())
        if not on:
            self._watched.discard(key)
            return
        self._watched.add(key)
        try:
            loop.add_reader(listener.fileno(), self._accept, key)
        except OSError:  # this user may wait for no more (fs.epoll.max_user_watches), or no memory
            self._pause(key)

    def _pause(self, key: str) -> None:
        asyncio.get_running_loop().remove_reader(self._sockets[key].fileno())
        self._later(_PAUSE, lambda: self.watch(key, on=key in self._watched))

    def _accept(self, key: str) -> None:
        try:
            connection, _ = self._sockets[key].accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # out of files: the kernel keeps the connection until there is room
            self._pause(key)
            return
        connection.setblocking(False)
        self._accepted(key, connection)


def open_listener(query: Query) -> socket.socket:
    """Bind (and listen on) what a worker has asked for; OSError says why not."""
    kind = socket.SOCK_DGRAM if query.is_udp else socket.SOCK_STREAM
    if query.kind == "unix":
        sock = socket.socket(socket.AF_UNIX, kind)
    else:
        v6 = query.kind in ("tcp6", "udp6") or query.kind == "any"
        try:
            sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind)
        except OSError:
            if query.kind != "any":
                raise
            return open_listener(replace(query, kind="tcp4", address="0.0.0.0"))
    try:
        # O_NONBLOCK belongs to all who share it. Listeners are waited for; how a UDP socket is read is the program's choice.
        sock.setblocking(query.is_udp)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(query.ipv6_only))
        if query.kind == "unix":
            sock.bind(str(query.address))
        else:
            if not query.is_udp or query.reuse_address:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            everywhere = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"
            where = (query.address or everywhere, query.port)
            if "%" in where[0]:  # bind would not look at the link of "fe80::1%eth0"
                flags = socket.AI_NUMERICHOST
                where = socket.getaddrinfo(*where, socket.AF_INET6, kind, flags=flags)[0][4]  # type: ignore[assignment]
            sock.bind(where)
        if not query.is_udp:
            sock.listen(query.backlog)
    except BaseException as error:
        sock.close()
        without_v6 = isinstance(error, OSError) and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
        if without_v6 and query.kind == "any" and sock.family == socket.AF_INET6:
            return open_listener(replace(query, kind="tcp4", address="0.0.0.0"))
        raise
    return sock

"""uvloop listens and accepts in C, unseen: here its servers are made from sockets that binding.py has adopted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pyworker.cluster.binding import Binding


def teach(uvloop: Any, binding: Binding) -> None:
    """uvloop's create_server(host, port) binds in C; let it bind sockets of Python, which are adopted, instead."""
    original = uvloop.Loop.create_server

    async def create_server(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        if sock is not None and sock in binding.inboxes:
            sockets = [sock]
        elif sock is not None or not port or not binding.is_own_process:
            return await original(self, protocol_factory, host, port, sock=sock, **options)
        else:
            sockets = await _bound_sockets(self, host, port, options)
        servers: list[Any] = []
        for each in sockets:
            if each in binding.inboxes:
                servers.append(_InboxServer(self, binding, each, protocol_factory, options))
                if options.get("start_serving", True):
                    await servers[-1].start_serving()
            else:
                servers.append(await original(self, protocol_factory, sock=each, **options))
                if each in binding.adopted:
                    binding.on_listen(each)
        return servers[0] if len(servers) == 1 else _Servers(servers)

    uvloop.Loop.create_server = create_server
    original_unix = uvloop.Loop.create_unix_server

    async def create_unix_server(
        self: Any, protocol_factory: Any, path: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        if sock is None and path and binding.is_own_process:
            sock, path = _bound_unix_socket(path), None
        if sock is None or sock not in binding.inboxes:
            made = await original_unix(self, protocol_factory, path, sock=sock, **options)
            if sock is not None and sock in binding.adopted:
                binding.on_listen(sock)
            return made
        server = _InboxServer(self, binding, sock, protocol_factory, options)
        if options.get("start_serving", True):
            await server.start_serving()
        return server

    uvloop.Loop.create_unix_server = create_unix_server


async def _bound_sockets(loop: Any, host: Any, port: int, options: dict[str, Any]) -> list[socket.socket]:
    family, flags = options.pop("family", 0), options.pop("flags", socket.AI_PASSIVE)
    options.pop("reuse_address", None)
    reuse_port = options.pop("reuse_port", None)
    hosts = [host or None] if host is None or isinstance(host, str) else list(host)
    made: list[socket.socket] = []
    try:
        seen = set()
        for each in hosts:
            found = await loop.getaddrinfo(each, port, family=family, type=socket.SOCK_STREAM, flags=flags)
            for kind, _, _, _, address in found:
                if address in seen:
                    continue
                seen.add(address)
                sock = socket.socket(kind, socket.SOCK_STREAM)
                made.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if reuse_port:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if kind == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
                sock.setblocking(False)
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def _bound_unix_socket(path: Any) -> socket.socket:
    """As uvloop itself does it: what was left over by a server before this one is removed."""
    with contextlib.suppress(OSError, ValueError):  # an abstract one has no file
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.remove(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path if isinstance(path, (str, bytes)) else os.fspath(path))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class _Servers:
    """Several servers that are closed and waited for as one, as asyncio's own Server is for several addresses."""

    def __init__(self, servers: list[Any]) -> None:
        self._servers = servers

    @property
    def sockets(self) -> tuple[Any, ...]:
        return tuple(sock for server in self._servers for sock in server.sockets)

    def is_serving(self) -> bool:
        return any(server.is_serving() for server in self._servers)

    def get_loop(self) -> Any:
        return self._servers[0].get_loop()

    def close(self) -> None:
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        for server in self._servers:
            await server.wait_closed()

    async def start_serving(self) -> None:
        for server in self._servers:
            await server.start_serving()

    async def serve_forever(self) -> None:
        for server in self._servers[1:]:
            await server.start_serving()
        await self._servers[0].serve_forever()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()


class _InboxServer:
    """A server of uvloop whose connections come through an inbox: its own would accept in C."""

    def __init__(
        self, loop: Any, binding: Binding, sock: socket.socket, factory: Callable[[], Any], options: dict[str, Any]
    ) -> None:
        self._loop = loop
        self._binding = binding
        self._sock = sock
        self._factory = factory
        wanted = ("ssl", "ssl_handshake_timeout", "ssl_shutdown_timeout")
        self._options = {name: options[name] for name in wanted if options.get(name) is not None}
        self._serving = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = asyncio.Event()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return () if self._closed.is_set() else (self._sock,)

    def is_serving(self) -> bool:
        return self._serving

    def get_loop(self) -> Any:
        return self._loop

    async def start_serving(self) -> None:
        if not self._serving and not self._closed.is_set():
            self._serving = True
            self._sock.setblocking(False)
            self._binding.on_listen(self._sock)
            self._loop.add_reader(self._sock.fileno(), self._take)

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._serving = False
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def serve_forever(self) -> None:
        await self.start_serving()
        try:
            await self._closed.wait()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    def _take(self) -> None:
        try:
            connection, _ = self._binding.accept(self._sock)
        except OSError:
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._factory, connection, **self._options))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._served(done, connection))

    def _served(self, task: asyncio.Task[Any], connection: socket.socket) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None:  # a failed TLS handshake, most of all
            connection.close()

"""Sockets whose listener comes from elsewhere: `bind` of an unmodified program is answered with a shared one.

Used by the daemon's scripts (worker/script.py asks the daemon) and by cluster workers (cluster/child.py asks the primary).
The rules:
1. Only a socket that binds a Unix path or a port other than 0 is touched, and only when whoever is asked knows that
   address. It is done at bind, not at listen: the servers of uvloop and of other C code listen unseen.
2. The program's descriptor becomes the listener (dup2), so C code sees it too. It belongs to all workers:
   its O_NONBLOCK never changes, and who wants to block in accept waits in poll instead.
3. Where connections are handed out one by one (round robin), the descriptor becomes an `Inbox` instead: readable
   when there is one, and `accept` takes it out. C code that accepts for itself cannot be served so.
4. To drain is to take the listener out of every epoll of the process and to let accepted connections end.
   Connections accepted by C code are not known.
5. A process that the program forks is none of ours: nothing is adopted there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from pyworker.unix.epoll import unregister_everywhere

_FOR_EVER = 2_000_000.0  # seconds; the longest time-out a socket takes is 24 days

_bind = socket.socket.bind
_listen = socket.socket.listen
_accept = socket.socket.accept
_setblocking = socket.socket.setblocking
_settimeout = socket.socket.settimeout
_getsockname = socket.socket.getsockname
_setsockopt = socket.socket.setsockopt


class Address(NamedTuple):
    """What a program binds."""

    family: int  # AF_INET, AF_INET6, AF_UNIX
    type: int  # SOCK_STREAM, SOCK_DGRAM
    host: str  # a number where the name resolves, "" for all addresses; the path of a Unix socket
    port: int  # 0 for a Unix socket
    only6: bool = False  # an IPv6 socket that takes no IPv4


class Grant(NamedTuple):
    """The answer to `ask`: a descriptor to use (then ours), or an inbox, or an error."""

    errno: int = 0
    message: str = ""
    fd: int = -1
    inbox: Inbox | None = None


class Inbox:
    """Connections that somebody hands us one by one, as a thing that can be waited for like a listener.

    `put` is called by a thread, `take` by the program. `answer(token, taken)` is told of each, once.
    """

    def __init__(self, sockname: Any, answer: Callable[[Any, bool], None]) -> None:
        self.sockname = sockname
        self._answer = answer
        self._waiting: deque[tuple[Any, socket.socket]] = deque()
        self._lock = threading.Lock()
        self._closed = False
        # a stream socket, so that socket options and getsockopt(SO_TYPE) work on it; one byte for each connection
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._bell = ours
        self._end = theirs

    def give_end(self, fd: int) -> None:
        """Make `fd` the end that is readable when there is a connection."""
        os.dup2(self._end.fileno(), fd, inheritable=False)
        self._end.close()

    def put(self, token: Any, connection: socket.socket) -> None:
        """Add a connection; refused at once when nobody will take it any more."""
        with self._lock:
            if not self._closed:
                self._waiting.append((token, connection))
                try:
                    self._bell.send(b"x")
                    return
                except OSError:  # the program has closed its socket (a full buffer cannot be: one is offered at a time)
                    self._waiting.pop()
        connection.close()
        self._answer(token, False)

    def take(self, sock: socket.socket) -> socket.socket:
        """Take the next one; BlockingIOError when there is none."""
        with self._lock:
            try:
                heard = os.read(sock.fileno(), 1)  # not recv: it would wait as long as the program lets accept wait
            except BlockingIOError:
                heard = b""
            if not heard or not self._waiting:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            token, connection = self._waiting.popleft()
        self._answer(token, True)  # it is in the program's hands now: never offered to another
        return connection

    def close(self) -> None:
        """Refuse what waits and what comes."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for token, connection in waiting:
            connection.close()
            self._answer(token, False)


class Binding:
    """The one per process. `install` changes socket.socket for good; a subclass says where listeners come from."""

    datagrams = False  # UDP sockets are shared, too

    def __init__(self) -> None:
        self.adopted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.inboxes: weakref.WeakKeyDictionary[socket.socket, Inbox] = weakref.WeakKeyDictionary()
        self.draining = False
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._taking: set[int] = set()  # threads inside an accept that returns at once
        self._wake_reader, self._wake_writer = -1, -1  # readable = draining
        self._pid = os.getpid()

    # ---- what a subclass says ------------------------------------------------------------------------
    def ask(self, address: Address) -> Grant | None:
        """Return the listener for an address; None when it is none of ours."""
        raise NotImplementedError

    def on_listen(self, sock: socket.socket) -> None:
        """The program listens on an adopted socket."""

    def on_accepted(self) -> None:
        """The program has accepted a connection."""

    # ---- for the runtime -----------------------------------------------------------------------------
    def install(self) -> None:
        """Put our methods in place of socket.socket's."""
        binding = self

        def bind(self: socket.socket, address: Any) -> None:
            if not binding.adopt(self, address):
                _bind(self, address)

        def listen(self: socket.socket, *backlog: int) -> None:
            if self not in binding.adopted:
                _listen(self, *backlog)
            else:
                binding.on_listen(self)

        def accept(self: socket.socket) -> tuple[socket.socket, Any]:
            if self not in binding.adopted:
                return _accept(self)
            return binding.accept(self)

        def setblocking(self: socket.socket, flag: bool) -> None:
            if flag and self in binding.adopted:
                settimeout(self, None)
            else:
                _setblocking(self, flag)

        def settimeout(self: socket.socket, value: float | None) -> None:
            if value is None and self in binding.adopted:
                # the real call would make the listener block for every worker that shares it
                if self.gettimeout() is not None:
                    _settimeout(self, _FOR_EVER)
            else:
                _settimeout(self, value)

        def getsockname(self: socket.socket) -> Any:
            inbox = binding.inboxes.get(self)
            return _getsockname(self) if inbox is None else inbox.sockname

        def setsockopt(self: socket.socket, *args: Any) -> None:
            if self not in binding.inboxes:
                _setsockopt(self, *args)  # an inbox has no TCP: its listener is elsewhere

        methods = [bind, listen, accept, setblocking, settimeout, getsockname, setsockopt]
        for method in methods:
            method.__doc__ = getattr(socket.socket, method.__name__).__doc__
            setattr(socket.socket, method.__name__, method)
        _when_imported("uvloop", lambda module: _teach_uvloop(module, self))

    def adopt(self, sock: socket.socket, address: Any) -> bool:
        """Make `sock` the listener that we are given for this address; False when it is none of ours. OSError as bind's."""
        asked = self._question(sock, address)
        grant = None if asked is None else self.ask(asked)
        if grant is None:
            return False
        if grant.errno:
            raise OSError(grant.errno, grant.message or os.strerror(grant.errno))
        if self._wake_reader < 0:
            self._wake_reader, self._wake_writer = os.pipe()
        if grant.inbox is not None:
            grant.inbox.give_end(sock.fileno())
            self.inboxes[sock] = grant.inbox
        else:
            os.dup2(grant.fd, sock.fileno(), inheritable=False)
            os.close(grant.fd)
        if sock.type == socket.SOCK_STREAM:
            self.adopted.add(sock)
        elif sock.gettimeout() is not None:
            os.set_blocking(sock.fileno(), False)  # the program has said so before, of the descriptor that is gone
        return True

    def accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept on an adopted socket, waiting as its time-out says."""
        waits = sock.gettimeout()
        for_ever = waits is None or waits >= _FOR_EVER
        inbox = self.inboxes.get(sock)
        deadline = 0.0 if for_ever or waits is None else time.monotonic() + waits
        while True:
            if waits is None or waits == 0 or inbox is not None:
                self._taking.add(threading.get_ident())  # before the look at `draining`: the drain waits for us
            if self.draining:
                self._taking.discard(threading.get_ident())
                if not for_ever:
                    raise BlockingIOError(errno.EAGAIN, "this worker drains")
                time.sleep(60)  # the stop signal ends it
                continue
            try:
                if inbox is None:
                    connection, address = _accept(sock)
                else:
                    connection = inbox.take(sock)
                    address = _peer(connection)
                self._open.add(connection)
            except BlockingIOError:
                if waits == 0:
                    raise
                self._taking.discard(threading.get_ident())
                if not for_ever and time.monotonic() >= deadline:
                    raise TimeoutError("timed out") from None
                poll = select.poll()
                poll.register(sock, select.POLLIN)
                poll.register(self._wake_reader, select.POLLIN)
                poll.poll(None if for_ever else max(0.0, deadline - time.monotonic()) * 1000)
                continue
            except TimeoutError:
                if not for_ever:
                    raise
                continue
            finally:
                self._taking.discard(threading.get_ident())
            if for_ever:
                _setblocking(connection, True)
            self.on_accepted()
            return connection, address

    def count_open(self) -> int:
        """How many connections that were accepted here are open."""
        return sum(1 for connection in list(self._open) if connection.fileno() >= 0)

    def stop_accepting(self) -> None:
        """Accept nothing more, whatever loop the program runs."""
        self.draining = True
        if self._wake_writer >= 0:
            os.write(self._wake_writer, b"x")
        for inbox in list(self.inboxes.values()):
            inbox.close()
        unregister_everywhere({sock.fileno() for sock in list(self.adopted)} - {-1})

    def wait_for_connections(self, deadline: float) -> int:
        """Wait until what was accepted has ended; return how many have not by the deadline."""
        while (self._taking or self.count_open()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.count_open()

    @property
    def is_own_process(self) -> bool:
        """False in a process that the program has forked."""
        return os.getpid() == self._pid

    # ---- inside --------------------------------------------------------------------------------------
    def _question(self, sock: socket.socket, address: Any) -> Address | None:
        families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        if sock.family not in families or sock in self.adopted or not self.is_own_process:
            return None
        if sock.type != socket.SOCK_STREAM and not (self.datagrams and sock.type == socket.SOCK_DGRAM):
            return None
        if sock.family == socket.AF_UNIX:
            path = os.fsdecode(address) if isinstance(address, (str, bytes)) else ""
            if not path or path[0] == "\0" or sock.type != socket.SOCK_STREAM:
                return None
            return Address(sock.family, sock.type, os.path.abspath(path), 0)
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[1], int) or not address[1]:
            return None
        host = os.fsdecode(address[0])
        if host:
            with contextlib.suppress(OSError):  # a name that does not resolve: the real bind says so best
                host = str(socket.getaddrinfo(host, address[1], sock.family, socket.SOCK_STREAM)[0][4][0])
        only6 = sock.family == socket.AF_INET6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        return Address(sock.family, sock.type, host, address[1], only6)


def _peer(connection: socket.socket) -> Any:
    try:
        return connection.getpeername()
    except OSError:  # it has gone already; accept() would have known its name
        return ("", 0) if connection.family != socket.AF_INET6 else ("", 0, 0, 0)


def _when_imported(name: str, then: Callable[[Any], None]) -> None:
    """Call `then(module)` right after the script's own import of `name`."""

    class Finder:
        @staticmethod
        def find_spec(fullname: str, path: Any, target: Any = None) -> Any:
            if fullname != name:
                return None
            sys.meta_path.remove(Finder)
            from importlib.util import find_spec

            spec = find_spec(name)
            if spec is not None and spec.loader is not None:
                real = spec.loader.exec_module

                def exec_module(module: Any) -> None:
                    real(module)
                    then(module)

                spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder)


def _teach_uvloop(uvloop: Any, binding: Binding) -> None:
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

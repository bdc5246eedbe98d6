"""Worker, for scripts that bind for themselves: `bind` gives them the shared listener, as Node's cluster does.

The rules:
1. Only a stream socket that binds a Unix path or a port other than 0 is touched, and only when the daemon knows that
   address. It is done at bind, not at listen: the servers of uvloop and of other C code listen unseen.
2. The script's descriptor becomes the listener (dup2), so C code sees it too. It belongs to all workers of the app:
   its O_NONBLOCK never changes, and who wants to block in accept waits in poll instead.
3. To drain is to take the listener out of every epoll of the process, let accepted connections end, then send
   ourselves the app's stop signal. Connections accepted by C code are not known: there the signal comes at once.
4. A process that the script forks is none of ours: nothing is adopted there.

A thread reads the channel from the first bind on; none is started before, so that scripts that fork first may.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Self

from pyworker.protocol.scoreboard import F
from pyworker.protocol.worker import Accepting, Bind, Bound, Check, Drain, Drained, Failed, Go, Kick, Ready
from pyworker.worker import api
from pyworker.worker.accept import registered
from pyworker.worker.channel import Channel, Closed
from pyworker.worker.row import Row
from pyworker.worker.say import say

_FOR_EVER = 2_000_000.0  # seconds; the longest time-out a socket takes is 24 days
_LONELY_DRAIN = 30.0  # seconds, when the daemon is gone and can name none
_FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6", socket.AF_UNIX: "unix"}

_bind = socket.socket.bind
_listen = socket.socket.listen
_accept = socket.socket.accept
_setblocking = socket.socket.setblocking
_settimeout = socket.socket.settimeout


class Runtime:
    """The one per process. `install` changes socket.socket for good."""

    def __init__(self, channel: Channel, row: Row, stop_signal: str) -> None:
        self._channel = channel
        self._row = row
        self._stop_signal = getattr(signal, f"SIG{stop_signal}")
        self._lock = threading.Lock()  # one bind at a time, one answer each
        self._answers: queue.SimpleQueue[tuple[int, str, int]] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None
        self._adopted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._taking: set[int] = set()  # threads inside an accept that returns at once
        self._wake_reader, self._wake_writer = -1, -1  # readable = draining; made with the thread
        self._said_ready = False
        self._pid = os.getpid()
        self.bound = False
        self.draining = False

    def install(self) -> None:
        """Put our methods in place of socket.socket's."""
        runtime = self

        def bind(self: socket.socket, address: Any) -> None:
            if not runtime.adopt(self, address):
                _bind(self, address)

        def listen(self: socket.socket, *backlog: int) -> None:
            if self not in runtime._adopted:
                _listen(self, *backlog)

        def accept(self: socket.socket) -> tuple[socket.socket, Any]:
            if self not in runtime._adopted:
                return _accept(self)
            return runtime.accept(self)

        def setblocking(self: socket.socket, flag: bool) -> None:
            if flag and self in runtime._adopted:
                settimeout(self, None)
            else:
                _setblocking(self, flag)

        def settimeout(self: socket.socket, value: float | None) -> None:
            if value is None and self in runtime._adopted:
                # the real call would make the listener block for every worker that shares it
                if self.gettimeout() is not None:
                    _settimeout(self, _FOR_EVER)
            else:
                _settimeout(self, value)

        for method in (bind, listen, accept, setblocking, settimeout):
            method.__doc__ = getattr(socket.socket, method.__name__).__doc__
            setattr(socket.socket, method.__name__, method)
        api.set_ready(lambda: self._say_ready(serving=True))
        _when_imported("uvloop", lambda module: _teach_uvloop(module, self))

    def fail(self, failure: Failed) -> None:
        """Say why the script ended before it served."""
        self._channel.send(failure)

    # ---- called by the script ------------------------------------------------------------------------
    def adopt(self, sock: socket.socket, address: Any) -> bool:
        """Make `sock` the shared listener of this address; False when it is none of ours. OSError as bind's."""
        asked = self._question(sock, address)
        if asked is None:
            return False
        with self._lock:
            self._start_reader()
            self._channel.send(asked)
            self._say_ready(serving=False)
            number, message, fd = self._answers.get()
        if number == 0 and fd < 0:
            return False  # nobody is there any more to share it with
        if number:
            raise OSError(number, message or os.strerror(number))
        os.dup2(fd, sock.fileno(), inheritable=False)
        os.close(fd)
        self._adopted.add(sock)
        if not self.bound:
            self.bound = True
            self._channel.send(Accepting())
        return True

    def accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept on an adopted socket, waiting as its time-out says."""
        waits = sock.gettimeout()
        for_ever = waits is None or waits >= _FOR_EVER
        while True:
            if waits is None or waits == 0:
                self._taking.add(threading.get_ident())  # before the look at `draining`: the drain waits for us
            if self.draining:
                self._taking.discard(threading.get_ident())
                if not for_ever:
                    raise BlockingIOError(errno.EAGAIN, "this worker drains")
                time.sleep(60)  # the stop signal ends it
                continue
            try:
                connection, address = _accept(sock)
                self._open.add(connection)
            except BlockingIOError:
                if not for_ever:
                    raise
                poll = select.poll()
                poll.register(sock, select.POLLIN)
                poll.register(self._wake_reader, select.POLLIN)
                poll.poll()
                continue
            except TimeoutError:
                if not for_ever:
                    raise
                continue
            finally:
                self._taking.discard(threading.get_ident())
            if for_ever:
                _setblocking(connection, True)
            self._row.add(F.ACCEPTED)
            self._row[F.OPEN] = self._count_open()
            return connection, address

    # ---- inside --------------------------------------------------------------------------------------
    def _question(self, sock: socket.socket, address: Any) -> Bind | None:
        family = _FAMILIES.get(sock.family)
        if family is None or sock.type != socket.SOCK_STREAM or sock in self._adopted or os.getpid() != self._pid:
            return None
        if family == "unix":
            path = os.fsdecode(address) if isinstance(address, (str, bytes)) else ""
            return Bind("unix", os.path.abspath(path), 0) if path and path[0] != "\0" else None
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[1], int) or not address[1]:
            return None
        host = os.fsdecode(address[0])
        if host:
            with contextlib.suppress(OSError):  # a name that does not resolve: the real bind says so best
                host = str(socket.getaddrinfo(host, address[1], sock.family, socket.SOCK_STREAM)[0][4][0])
        return Bind("inet" if family == "inet" else "inet6", host, address[1])

    def _say_ready(self, *, serving: bool) -> None:
        if not self._said_ready and os.getpid() == self._pid:
            self._said_ready = True
            self._channel.send(Ready(serving))

    def _count_open(self) -> int:
        return sum(1 for connection in list(self._open) if connection.fileno() >= 0)

    def _start_reader(self) -> None:
        if self._reader is None:
            self._wake_reader, self._wake_writer = os.pipe()
            self._reader = threading.Thread(target=self._read, name="pyworker", daemon=True)
            self._reader.start()

    def _read(self) -> None:
        """The thread: answers of the daemon, and the end."""
        while True:
            found = self._channel.wait()
            if isinstance(found, Closed):
                self._answers.put((0, "", -1))
                self._drain(_LONELY_DRAIN)
                return
            match found.message:
                case Bound(errno=number, message=message):
                    self._answers.put((number, message, found.fd))
                    continue
                case Drain(timeout=timeout):
                    self._drain(timeout)
                    return
                case Go() | Kick() | Check():
                    pass
            if found.fd >= 0:
                os.close(found.fd)

    def _drain(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.draining = True
        os.write(self._wake_writer, b"x")
        self._leave_epolls()
        for callback in api.take_stop_callbacks():
            try:
                callback()
            except Exception as error:  # noqa: BLE001  the script's own: it must not keep the worker from ending
                say(f"on_stop: {type(error).__name__}: {error}")
        while (self._taking or self._count_open()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._row[F.OPEN] = left = self._count_open()
        self._channel.send(Drained(0, left))
        os.kill(self._pid, self._stop_signal)

    def _leave_epolls(self) -> None:
        """Take the listeners out of every epoll of this process, whoever made it: event loops see them no more."""
        listeners = {sock.fileno() for sock in list(self._adopted)} - {-1}
        for epoll_fd, fds in registered().items():
            with contextlib.suppress(OSError), contextlib.closing(select.epoll.fromfd(os.dup(epoll_fd))) as epoll:
                for fd in fds & listeners:
                    with contextlib.suppress(OSError):
                        epoll.unregister(fd)


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


def _teach_uvloop(uvloop: Any, runtime: Runtime) -> None:
    """uvloop's create_server(host, port) binds in C; let it bind sockets of Python, which are adopted, instead."""
    original = uvloop.Loop.create_server

    async def create_server(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        if sock is not None or not port or os.getpid() != runtime._pid:
            return await original(self, protocol_factory, host, port, sock=sock, **options)
        sockets = await _bound_sockets(self, host, port, options)
        servers = [await original(self, protocol_factory, sock=each, **options) for each in sockets]
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

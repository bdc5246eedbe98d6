"""Dispatcher: bytes between a client and a worker's own port. They never come into this process: splice moves them.

A connection that idles costs two fds and no pipe: pipes are borrowed for the moment in which bytes are under way, and
kept only while the receiving side does not take them (the sending side then is not read: back-pressure as without us).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyworker.dispatcher.loop import ERR, HUP, IN, OUT, Loop

if TYPE_CHECKING:
    from pyworker.dispatcher.workers import PortWorker

CHUNK = 64 * 1024  # what a pipe holds
CONNECT_TIMEOUT = 5.0
_SPARE_PIPES = 64
_RESET = struct.pack("ii", 1, 0)
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_splice = os.splice

Pipe = tuple[int, int]  # reading end, writing end


class Pipes:
    """Empty pipes that wait to be used again."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []

    def borrow(self) -> Pipe:
        return self._spare.pop() if self._spare else os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def give_back(self, pipe: Pipe) -> None:
        if len(self._spare) < _SPARE_PIPES:
            self._spare.append(pipe)
        else:
            self.destroy(pipe)

    def destroy(self, pipe: Pipe) -> None:
        os.close(pipe[0])
        os.close(pipe[1])


class Side:
    """One of the two sockets of a relay. `held` bytes in `pipe` wait to be written to it; until then the other is not read."""

    __slots__ = ("eof", "fd", "held", "mask", "other", "pipe", "relay", "sock")

    other: Side

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self.relay = relay
        self.sock = sock
        self.fd = sock.fileno()
        self.pipe: Pipe | None = None
        self.held = 0
        self.mask = 0
        self.eof = False  # it sends nothing more

    def ready(self, events: int) -> None:
        if events & OUT and self.held:
            self._write()
        if events & IN and self.mask & IN:
            self._read()
        elif events & ERR or (events & HUP and not self.other.held):
            self.relay.cut()
        elif events & HUP:
            # both directions have ended in order; what it sent last is read when there is room for it
            self.relay.loop.remove(self.fd)

    def watch(self, mask: int) -> None:
        if mask != self.mask:
            self.mask = mask
            loop = self.relay.loop
            if loop.watches(self.fd):
                loop.modify(self.fd, mask)
                return
            try:
                loop.add(self.fd, mask, self.ready)
            except OSError:  # NO_ROOM: as where no pipe is left
                self.relay.cut()

    def _read(self) -> None:
        relay, other = self.relay, self.other
        try:
            pipe = relay.pipes.borrow()
        except OSError:  # out of files in spite of those kept for this: rather one connection less than one that hangs
            relay.cut()
            return
        try:
            count = _splice(self.fd, pipe[1], CHUNK)
        except BlockingIOError:
            relay.pipes.give_back(pipe)
            return
        except OSError:
            relay.pipes.give_back(pipe)
            relay.cut()
            return
        if not count:
            relay.pipes.give_back(pipe)
            self.eof = True
            self.watch(self.mask & ~IN)
            other.end()
            return
        if other.eof:
            relay.client_came(self)
        try:
            sent = _splice(pipe[0], other.fd, count)
        except BlockingIOError:
            sent = 0
        except OSError:
            relay.pipes.destroy(pipe)
            relay.cut()
            return
        if sent == count:
            relay.pipes.give_back(pipe)
            return
        other.pipe, other.held = pipe, count - sent
        self.watch(self.mask & ~IN)
        other.watch(other.mask | OUT)

    def _write(self) -> None:
        assert self.pipe is not None
        try:
            self.held -= _splice(self.pipe[0], self.fd, self.held)
        except BlockingIOError:
            return
        except OSError:
            self.relay.cut()
            return
        if self.held:
            return
        self.relay.pipes.give_back(self.pipe)
        self.pipe = None
        self.watch(self.mask & ~OUT)
        self.other.watch(self.other.mask | IN)

    def end(self) -> None:
        """The other side sends nothing more, and all of it has been passed on: pass that on."""
        if self.eof:
            self.relay.close()
            return
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.relay.client_came(self)

    def pass_on_the_last(self) -> None:
        """Pass on what it had said before the break: who refuses an upload answers, and closes."""
        other, pipes = self.other, self.relay.pipes
        with contextlib.suppress(OSError):
            if other.pipe is not None:
                other.held -= _splice(other.pipe[0], other.fd, other.held)
                if other.held:
                    return
            pipe = pipes.borrow()
            try:
                while (count := _splice(self.fd, pipe[1], CHUNK)) and _splice(pipe[0], other.fd, count) == count:
                    pass
            finally:
                pipes.destroy(pipe)


class Relay:
    """A client and the worker that serves it. Made for an accepted connection; tells `worker` when it is over."""

    __slots__ = ("_client", "_header", "_over", "_server", "again", "loop", "pipes", "worker")

    def __init__(
        self,
        loop: Loop,
        pipes: Pipes,
        client: socket.socket,
        worker: PortWorker,
        again: Callable[[int, PortWorker], None],
    ) -> None:
        self.loop = loop
        self.pipes = pipes
        self.worker = worker
        self.again = again  # called with the client when the worker cannot be reached
        self._over = False
        self._client = Side(self, client)
        self._header = header_of(client) if worker.proxy_protocol else b""
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._server = Side(self, server)
        self._client.other, self._server.other = self._server, self._client

    def begin(self) -> None:
        """Connect to the worker; from then on bytes flow."""
        server = self._server.sock
        try:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # a program that asks for it, as Go's do, has it of us, who never vanish; its client may
            self._client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            failure = server.connect_ex(("127.0.0.1", self.worker.port))
            if failure == errno.EINPROGRESS:
                self._server.mask = OUT
                self.loop.add(self._server.fd, OUT, self._connected)
        except OSError as error:
            failure = error.errno or errno.ECONNREFUSED
        if failure == errno.EINPROGRESS:
            self.loop.later(CONNECT_TIMEOUT, self._too_late)
        elif failure:
            self._refused()
            if failure == errno.EADDRNOTAVAIL:
                self.worker.no_port_left()
        else:
            self._flow()

    def _connected(self, _: int) -> None:
        self.loop.remove(self._server.fd)
        if self._server.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._refused()
        else:
            self._flow()

    def _too_late(self) -> None:
        if not self._over and self._server.mask == OUT and not self._server.held:  # it still connects
            self.loop.remove(self._server.fd)
            self._refused()

    def _refused(self) -> None:
        """Nothing has been read from the client yet: another worker can serve it as well."""
        self._over = True
        self._server.sock.close()
        self.worker.lost(self)
        self.again(self._client.sock.detach(), self.worker)

    def _flow(self) -> None:
        try:
            if self._header:
                # a new connection has room for a few bytes: all of them go, or it is broken
                self._server.sock.send(self._header, socket.MSG_NOSIGNAL)
            for side in (self._client, self._server):
                side.mask = IN
                self.loop.add(side.fd, IN, side.ready)
        except OSError:  # also NO_ROOM
            self.loop.remove(self._client.fd)
            self._refused()

    def client_came(self, side: Side) -> None:
        """Only one side still sends: if that is the client, it is given its time (anew)."""
        if side is self._client:
            self.worker.half_ended(self)

    @property
    def holds_back_client(self) -> bool:
        """Whether its client is not read, as the worker has not taken what came before."""
        return self._server.held > 0

    def cut(self) -> None:
        """One side broke: the other is told in the same way, by a reset."""
        if not self._over:
            for side in (self._client, self._server):
                side.pass_on_the_last()
            for side in (self._client, self._server):
                with contextlib.suppress(OSError):
                    side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()

    def close(self) -> None:
        if self._over:
            return
        self._over = True
        for side in (self._client, self._server):
            self.loop.remove(side.fd)
            if side.pipe is not None:
                self.pipes.destroy(side.pipe)
                side.pipe = None
            side.sock.close()
        self.worker.lost(self)


def header_of(client: socket.socket) -> bytes:
    """Return the PROXY protocol header, version 2, that tells a worker who its client is."""
    local = struct.pack("!12sBBH", _SIGNATURE, 0x20, 0x00, 0)
    try:
        peer, here = client.getpeername(), client.getsockname()
    except OSError:
        return local
    if client.family == socket.AF_INET:
        body = socket.inet_aton(peer[0]) + socket.inet_aton(here[0]) + struct.pack("!HH", peer[1], here[1])
        return struct.pack("!12sBBH", _SIGNATURE, 0x21, 0x11, len(body)) + body
    if client.family == socket.AF_INET6:
        ends = [socket.inet_pton(socket.AF_INET6, end[0].partition("%")[0]) for end in (peer, here)]
        body = ends[0] + ends[1] + struct.pack("!HH", peer[1], here[1])
        return struct.pack("!12sBBH", _SIGNATURE, 0x21, 0x21, len(body)) + body
    return local  # a Unix socket's client has no address

"""Worker: take connections from the shared listeners, in strict turns.

The kernel keeps the waiting workers of a listener in a queue. Registered with EPOLLEXCLUSIVE only the first one that
sleeps is woken, and leaving and entering the queue again (DEL, ADD) after each accept puts a worker at its end: the
queue becomes a queue of idle workers, and one that is busy is passed over. Three rules come with it:
1. one accept per wake-up, then back to the end of the queue;
2. a wake-up may die with the worker that got it, so each worker tries one accept a second, and when told (Kick);
3. who stops leaves the queue first and then takes a few more: one may have been meant for it.

The event loop registers the listener by its public add_reader; only then is the kernel's entry in the loop's own
epoll replaced, with the same user data, so that the loop's dispatch stays its own. Never a nested epoll: that wakes all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import select
import selectors
import socket
from collections.abc import Callable
from typing import Any

from pyworker.errors import WANTING, lacking_in_words
from pyworker.policy.faults import Faults
from pyworker.unix.epoll import registered, waiting_for
from pyworker.worker.say import say

_EXCLUSIVE = select.EPOLLIN | select.EPOLLEXCLUSIVE
PAUSE = 0.1  # seconds without accepting when the process or the machine is out of files
_LAST_ACCEPTS = 16  # per listener, when others go on accepting
STREAM = int(socket.SOCK_STREAM)
EMPTY_ROUNDS = 20  # x 50 ms: how long a last worker waits for what is still queued

_likely: list[int] = []  # the loop's epoll, or so it seems: asked first, so that not every fd is looked at


Addresses = tuple[Any, Any]  # of the peer, and our own (None: it has to be asked for)


class _OfUvloop(socket.SocketType):
    """A connection for uvloop, which takes and closes the descriptor itself."""

    def close(self) -> None:
        """Let go. uvloop says this after it has closed the descriptor: its number may be another's by now."""
        self.detach()


class _Listener:
    """A listener, and what is the same for all of its connections.

    Those are `socket.SocketType` objects: `socket.socket` makes an enum of its family and its type each time that they
    are looked at, which costs more than the accept itself.
    """

    __slots__ = ("accept", "family", "fd", "local", "made", "proto", "sock", "unix")

    def __init__(self, sock: socket.socket, made: type[socket.SocketType]) -> None:
        self.made = made
        self.sock = sock
        self.fd = sock.fileno()
        self.accept = sock._accept  # type: ignore[attr-defined]  # what socket.accept is made of
        self.family, self.proto = int(sock.family), sock.proto
        self.unix = sock.family == socket.AF_UNIX
        self.local = _own_address(sock)

    def take(self) -> tuple[socket.SocketType, Addresses | None]:
        """Accept one connection; raises OSError."""
        fd, peer = self.accept()
        connection = self.made(self.family, STREAM, self.proto, fileno=fd)
        return connection, None if self.unix else (peer, self.local)


def how_connections_are_made(loop: asyncio.AbstractEventLoop) -> tuple[bool, type[socket.SocketType]]:
    """Return whether a connection is to be made non-blocking for this loop, and the class of its object.

    What the kernel has told already, or libuv does anyway, is not asked for again: each is a call per connection.
    """
    is_uvloop = type(loop).__module__ == "uvloop"
    return not is_uvloop, _OfUvloop if is_uvloop else socket.SocketType


class NotSupported(Exception):
    """This event loop cannot take turns."""


class AcceptLoop:
    """Accepts on `listeners` and gives each to `serve(connection, is_unix, addresses, early)`. Lives in one event loop.

    `early`: it may be answered before `serve` returns. It owns its listener objects: `stop` closes them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[socket.socket],
        serve: Callable[[socket.SocketType, bool, Addresses | None, bool], None],
        *,
        exclusive: bool,
    ) -> None:
        self._loop = loop
        self._must_unblock, made = how_connections_are_made(loop)
        self._listeners = [_Listener(each, made) for each in listeners]
        self._serve = serve
        self._exclusive = exclusive
        self._epoll: select.epoll | None = None
        self._paused: asyncio.TimerHandle | None = None
        self._faults = Faults()
        self._held = False
        self._registered = False  # not while paused or held
        self._stopped = False
        self.accepting = False

    async def start(self) -> None:
        """Begin to accept. Raises NotSupported when the loop's epoll cannot be shared."""
        if not self._exclusive:
            await self.start_shared()
            return
        try:
            self._register()
            self._epoll = await open_epoll(self._loop, self._listeners[0].fd) if self._listeners else None
            for listener in self._listeners:  # none are left when a stop came in between
                self._rearm(listener.fd)
        except (NotSupported, OSError) as error:
            self._unregister()
            if not self._stopped:  # else it is no fault: the listeners are closed by now
                raise NotSupported(str(error)) from None
        self._begin()

    async def start_shared(self) -> None:
        """Begin to accept without turns, as soon as there is room to wait for the listeners."""
        self._begin()
        self._loop.call_soon(self._resume)

    def _begin(self) -> None:
        if self._stopped:
            self._close_epoll()
            return
        self.accepting = True
        if self._held:
            self._unregister()
        # what was queued before we listened; not here: an app is not called inside of a task of ours
        self._loop.call_soon(self.try_once)

    def hold(self, held: bool) -> None:
        """Leave new connections to the siblings while `held`: this worker could not serve them."""
        self._held = held
        if self.accepting:
            if held:
                self._unregister()
            elif self._paused is None:
                self._resume()

    def try_once(self) -> None:
        """Try one accept per listener, without waiting: nobody else may have been woken for what is there."""
        for listener in self._listeners:
            self._on_readable(listener)

    async def stop(self, *, to_empty: bool) -> None:
        """Accept no more. What is queued goes to the siblings, or with `to_empty` to us (at most one second)."""
        was_accepting, self.accepting, self._stopped = self.accepting, False, True
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        self._unregister()
        for _ in range(EMPTY_ROUNDS if to_empty else 1):
            taken = [
                self._take(each, 1 << 16 if to_empty else _LAST_ACCEPTS) for each in self._listeners if was_accepting
            ]
            if not to_empty or not any(taken):
                break
            await asyncio.sleep(0.05)
        self._close_epoll()
        for listener in self._listeners:
            listener.sock.close()
        self._listeners = []

    def _close_epoll(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def _register(self) -> None:
        self._registered = True
        for listener in self._listeners:
            self._loop.add_reader(listener.fd, self._on_readable, listener)

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.fd)

    def _rearm(self, fd: int) -> None:
        """Leave the queue and enter it at its end. ADD reports at once what is queued already."""
        assert self._epoll is not None
        try:
            self._epoll.unregister(fd)
        except FileNotFoundError:
            raise
        except BaseException:
            # of a signal's handler: without a place in the queue it would get no connection any more
            self._epoll.register(fd, _EXCLUSIVE)
            raise
        self._epoll.register(fd, _EXCLUSIVE)

    def _on_readable(self, listener: _Listener) -> None:
        # the state is checked, not the event: a stop may have come in the same batch of events
        if not (self.accepting and self._registered):
            return
        taken = self._accept(listener)
        if taken is None:
            return
        connection, addresses = taken
        if self._epoll is not None:
            try:
                self._rearm(listener.fd)  # before it is served: that may take a while
            except FileNotFoundError:
                pass  # _take_turns has not come yet, and will
            except OSError as error:  # NO_ROOM
                self._pause(error)
        self._serve(connection, listener.unix, addresses, True)

    def _take(self, listener: _Listener, limit: int) -> int:
        count = 0
        while count < limit and (taken := self._accept(listener)) is not None:
            self._serve(taken[0], listener.unix, taken[1], False)  # the loop would not turn while all are answered
            count += 1
        return count

    def _accept(self, listener: _Listener) -> tuple[socket.SocketType, Addresses | None] | None:
        """Accept one connection; None when there was none or it could not be had."""
        try:
            connection, addresses = listener.take()
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            if error.errno in WANTING:
                self._pause(error)
            return None  # also ECONNABORTED and its like (accept(2)): this client has left, the next one may not
        if self._must_unblock or connection.timeout:  # socket.setdefaulttimeout() of the app: to look would be to wait
            connection.setblocking(False)
        return connection, addresses

    def _pause(self, error: OSError) -> None:
        """Leave the listeners to the siblings for a moment: a listener that stays readable would make us spin."""
        if self._paused is None and self.accepting:
            if self._faults.is_new(str(error), self._loop.time()):
                step = ""
                if error.errno == errno.EMFILE:
                    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                    step = f". It may have {most} (limits.nofile); ls -l /proc/{os.getpid()}/fd shows what they are"
                say(f"cannot accept connections: {lacking_in_words(error)}; trying again{step}")
            self._unregister()
            self._paused = self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = None
        if self.accepting and not self._registered and not self._held:
            try:
                self._register()
            except OSError as error:  # as after an accept
                self._pause(error)
                return
            if self._epoll is not None:
                self._loop.call_soon(self._take_turns, 10)
            self.try_once()

    def _take_turns(self, tries: int) -> None:
        """Replace the plain entries once the loop has told the kernel of them (uvloop does so when it goes to wait)."""
        if not self.accepting or not self._registered:
            return
        try:
            for listener in self._listeners:
                self._rearm(listener.fd)
        except FileNotFoundError:
            if tries:
                self._loop.call_later(0.001, self._take_turns, tries - 1)
        except OSError as error:
            self._pause(error)


def _own_address(listener: socket.socket) -> Any:
    """Return the address that all connections of a listener have on this side; None when it has several."""
    try:
        here = listener.getsockname()
    except OSError:
        return None
    return here if listener.family == socket.AF_INET and here[0] != "0.0.0.0" else None


async def open_epoll(loop: asyncio.AbstractEventLoop, fd: int) -> select.epoll:
    """Return the loop's own epoll, in which `fd` (given to add_reader before) is registered; close it when done.

    Found by what the kernel says of every epoll of this process, so that no private attribute of a loop is needed.
    """
    for _ in range(10):
        await asyncio.sleep(0)  # uvloop tells the kernel of a new reader when it goes to wait
        if _likely and fd in waiting_for(_likely[0]):
            return select.epoll.fromfd(os.dup(_likely[0]))
        holders = [epoll_fd for epoll_fd, fds in registered().items() if fd in fds]
        if len(holders) == 1:
            _likely[:] = holders
            return select.epoll.fromfd(os.dup(holders[0]))
        if len(holders) > 1:
            raise NotSupported("more than one epoll waits for the listener")
        await asyncio.sleep(0.001)
    raise NotSupported("no epoll of this process waits for the listener")


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Make an event loop; `kind` is "uvloop" or "asyncio"."""
    if kind == "uvloop":
        import uvloop

        next_free = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(next_free)
        _likely[:] = [next_free]  # an epoll is what a loop of uvloop opens first
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    selector = selectors.EpollSelector()
    _likely[:] = [selector.fileno()]
    return asyncio.SelectorEventLoop(selector)


async def can_loop_take_turns(loop: asyncio.AbstractEventLoop) -> bool:
    """Try on a socket pair what `AcceptLoop` does: the reader must still be called after its entry was replaced."""
    here, there = socket.socketpair()
    with here, there:
        called = asyncio.Event()
        loop.add_reader(here.fileno(), called.set)
        try:
            epoll = await open_epoll(loop, here.fileno())
            with contextlib.closing(epoll):
                epoll.unregister(here.fileno())
                epoll.register(here.fileno(), _EXCLUSIVE)
                there.send(b"x")
                await asyncio.wait_for(called.wait(), 1.0)
        except (NotSupported, OSError, TimeoutError):
            return False
        finally:
            loop.remove_reader(here.fileno())
    return True

"""Sockets whose listener comes from elsewhere: `bind` of an unmodified program is answered with a shared one.

Used by the daemon's scripts (worker/script.py asks the daemon) and by cluster workers (cluster/child.py asks the primary).
The rules:
1. Only a socket that binds a Unix path or a port other than 0 is touched, and only when whoever is asked knows that
   address. It is done at bind, not at listen: the servers of uvloop and of other C code listen unseen.
2. The program's descriptor becomes the listener (dup2), so C code sees it too. It belongs to all workers:
   its O_NONBLOCK never changes, who wants to block in accept waits in poll instead, and nobody shuts it down.
3. Where connections are handed out one by one (round robin), the descriptor becomes an `Inbox` instead: readable
   when there is one, and `accept` takes it out. C code that accepts for itself cannot be served so.
4. To drain is to take the listener out of every epoll of the process and to let accepted connections end.
   Connections accepted by C code are not known.
5. A process that the program forks is none of ours: nothing is adopted there.
6. The file of a Unix socket belongs to all workers, too, and stays. Servers remove what they take for one that was left over,
   before they bind or at their end.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from pyworker.cluster import stand_ins
from pyworker.cluster.inbox import Inbox
from pyworker.errors import is_raised_by_program
from pyworker.policy.pulse import NOTICED
from pyworker.unix.epoll import unregister_everywhere
from pyworker.unix.fds import close_all
from pyworker.unix.files import real_file
from pyworker.unix.ready import new_poll

_LOOK = 1.0  # seconds: how long a wait to accept lasts before it looks whether another thread has shut the socket down

_MULTIPROCESSING = "pymp-"  # a folder of its own for the sockets in which it hands descriptors around (its forkserver)

_accept = socket.socket.accept
_setblocking = socket.socket.setblocking


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
    key: str = ""  # of the listener, for who has given it


class Binding:
    """The one per process. `install` changes socket.socket for good; a subclass says where listeners come from."""

    datagrams = False  # UDP sockets are shared, too
    asks_for_files = False  # whether a Unix socket that is about to be removed is a shared one

    def __init__(self) -> None:
        self.adopted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.inboxes: weakref.WeakKeyDictionary[socket.socket, Inbox] = weakref.WeakKeyDictionary()
        self._bound: weakref.WeakKeyDictionary[socket.socket, Address] = weakref.WeakKeyDictionary()
        self.draining = False
        self.accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._taking: set[int] = set()  # threads inside an accept that returns at once
        self._wake_reader, self._wake_writer = -1, -1  # readable = draining
        self._pid = os.getpid()
        self._files: dict[str, Grant | None] = {}  # of shared Unix sockets: what was granted before it was bound

    # ---- what a subclass says ------------------------------------------------------------------------
    def ask(self, address: Address) -> Grant | None:
        """Return the listener for an address; None when it is none of ours."""
        raise NotImplementedError

    def give_up(self, grant: Grant) -> None:
        """Let go of what `ask` has returned."""
        close_all([grant.fd])

    def on_listen(self, sock: socket.socket) -> None:
        """The program listens on a socket that we were given."""

    def on_accepted(self) -> None:
        """The program has accepted a connection."""

    def told_deadline(self, deadline: float) -> float:
        """Return until when connections may go on, which may be another time by now."""
        return deadline

    # ---- for the runtime -----------------------------------------------------------------------------
    def install(self) -> None:
        """Put our methods in place of socket.socket's, for good."""
        stand_ins.install(self)

    def adopt(self, sock: socket.socket, address: Any) -> bool:
        """Make `sock` the listener that we are given for this address; False when it is none of ours. OSError as bind's."""
        asked = self._question(sock, address)
        if asked is not None and self._is_bound(sock, asked):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        grant = None if asked is None else self._files.get(asked.host) or self.ask(asked)
        if asked is None or grant is None:
            return False
        if grant.errno:
            raise OSError(grant.errno, grant.message or os.strerror(grant.errno))
        try:
            if asked.family == socket.AF_UNIX:
                self._files[asked.host] = None  # first: what is given up is not granted again
            self._become(sock, asked, grant)
        except BaseException:  # of a signal's handler
            self.adopted.discard(sock)
            self.inboxes.pop(sock, None)
            self.give_up(grant)
            raise
        if grant.fd >= 0:
            os.close(grant.fd)
        if sock.type == socket.SOCK_STREAM:
            return True
        if sock.gettimeout() is not None:
            os.set_blocking(sock.fileno(), False)  # the program has said so before, of the descriptor that is gone
        self.on_listen(sock)  # what is bound hears: there is no listen() of datagrams
        return True

    def _become(self, sock: socket.socket, asked: Address, grant: Grant) -> None:
        if self._wake_reader < 0:
            self._wake_reader, self._wake_writer = os.pipe()
        if grant.inbox is not None:
            grant.inbox.give_end(sock.fileno())
            self.inboxes[sock] = grant.inbox
        else:
            os.dup2(grant.fd, sock.fileno(), inheritable=False)
        if sock.type == socket.SOCK_STREAM:
            self.adopted.add(sock)
            self._bound[sock] = asked

    def keeps(self, path: Any) -> bool:
        """Whether the program is about to remove the file of a socket that it shares, or is to share."""
        try:
            found = os.lstat(path)
            if not self.is_own_process or not stat.S_ISSOCK(found.st_mode):
                return False
            where = real_file(os.fsdecode(path))
            if where in self._files or not self.asks_for_files:
                return where in self._files
            grant = self.ask(Address(socket.AF_UNIX, socket.SOCK_STREAM, where, 0))
            if grant is None or grant.errno:  # left over, or somebody else's; unless another worker has made one by now
                now = os.lstat(path)
                return (now.st_ino, now.st_ctime_ns) != (found.st_ino, found.st_ctime_ns)
        except (OSError, TypeError, ValueError) as error:  # unlink says it best
            if isinstance(error, OSError) and is_raised_by_program(error):
                raise
            return False
        self._files[where] = grant
        return True

    def accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept on an adopted socket, waiting as its time-out says."""
        waits = sock.gettimeout()
        for_ever = waits is None or waits >= stand_ins.FOR_EVER
        inbox = self.inboxes.get(sock)
        deadline = 0.0 if for_ever or waits is None else time.monotonic() + waits
        while sock in self.adopted:
            self._taking.add(threading.get_ident())  # before the look at `draining`: the drain waits for us
            if self.draining:
                self._taking.discard(threading.get_ident())
                if waits == 0:
                    raise BlockingIOError(errno.EAGAIN, "this worker drains")
                if not for_ever:
                    time.sleep(max(0.0, deadline - time.monotonic()))
                    raise TimeoutError("timed out")  # as if nobody came: the program goes on with what it has
                time.sleep(60)  # the stop signal ends it
                continue
            try:
                if inbox is None:
                    connection, address = _accept_now(sock)
                else:
                    connection = inbox.take(sock)
                    address = _peer(connection)
                self.accepted.add(connection)
            except BlockingIOError:
                if waits == 0:
                    raise
                self._taking.discard(threading.get_ident())
                left = _LOOK if for_ever else min(_LOOK, deadline - time.monotonic())
                if left <= 0:
                    raise TimeoutError("timed out") from None
                poll = new_poll()
                try:
                    poll.register(sock, select.POLLIN)
                except ValueError:  # the handler of a signal has closed it: the next try says so
                    continue
                poll.register(self._wake_reader, select.POLLIN)
                if any(fd == self._wake_reader for fd, _ in poll.poll(left * 1000)):
                    self.draining = True  # in what the program has forked nobody else says so
                continue
            except OSError as error:
                if error.errno != errno.EINVAL or sock not in self.adopted:  # not: the program itself has shut it down
                    raise
                self._fall_silent(sock)
                continue
            finally:
                self._taking.discard(threading.get_ident())
            if for_ever:
                _setblocking(connection, True)
            self.on_accepted()
            return connection, address
        return _accept(sock)  # shut down meanwhile: EINVAL

    def shut(self, sock: socket.socket) -> None:
        """Let go of a listener that the program shuts down: in earnest that would close the port of all who share it."""
        self.adopted.discard(sock)
        self._bound.pop(sock, None)
        inbox = self.inboxes.pop(sock, None)
        if inbox is not None:
            inbox.close()
        unregister_everywhere({sock.fileno()})
        with socket.socket(sock.family, sock.type) as blank:  # accept says EINVAL of it, as of one that is shut down
            os.dup2(blank.fileno(), sock.fileno(), inheritable=False)

    def _fall_silent(self, sock: socket.socket) -> None:
        """The app is stopped and its listener shut down, in what the program has forked: nobody comes to this one any more."""
        self.draining = True
        unregister_everywhere({sock.fileno()})
        # one that is shut down would wake select again and again
        with socket.socket(sock.family, socket.SOCK_DGRAM) as silent:
            os.dup2(silent.fileno(), sock.fileno(), inheritable=False)

    def exchange(self, sock: socket.socket, wrap: Callable[[socket.socket], Any]) -> Any:
        """Let an adopted socket be wrapped: what `wrap` makes of a blank one takes its place."""
        blank = socket.socket(sock.family, sock.type, sock.proto)
        blank.settimeout(sock.gettimeout())
        try:
            made = wrap(blank)
        except BaseException:
            blank.close()
            raise
        os.dup2(sock.fileno(), made.fileno(), inheritable=False)
        self.adopted.add(made)
        self._bound[made] = self._bound.pop(sock)
        if sock in self.inboxes:
            self.inboxes[made] = self.inboxes.pop(sock)
        self.adopted.discard(sock)
        sock.close()
        return made

    def count_open(self) -> int:
        """How many connections that were accepted here are open."""
        return sum(1 for connection in list(self.accepted) if connection.fileno() >= 0)

    def stop_accepting(self) -> None:
        """Accept nothing more, whatever loop the program runs."""
        self.draining = True
        if self._wake_writer >= 0:
            os.write(self._wake_writer, b"x")
        for inbox in list(self.inboxes.values()):
            inbox.close()
        # Twisted's end breaks off at what it cannot unregister: its protocols would not hear that they end. A loop in C
        # (uvloop) would take the hang-up of a port that is closed for an error
        silently = "twisted.internet.epollreactor" in sys.modules
        unregister_everywhere({sock.fileno() for sock in list(self.adopted)} - {-1}, silently=silently)

    def wait_for_connections(self, deadline: float) -> int:
        """Wait until what was accepted has ended; return how many have not by the deadline."""
        while (self._taking or self.count_open()) and (now := time.monotonic()) < deadline:
            time.sleep(0.02)
            late = time.monotonic() - now
            deadline += late if late > NOTICED else 0.0  # it was frozen, and with it perhaps the whole machine
            deadline = self.told_deadline(deadline)
        return self.count_open()

    @property
    def is_own_process(self) -> bool:
        """False in a process that the program has forked."""
        return os.getpid() == self._pid

    # ---- inside --------------------------------------------------------------------------------------
    def _is_bound(self, sock: socket.socket, address: Address) -> bool:
        """Whether another server of this program has the port: each would get some of the other's connections."""
        if sock.family == socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            return False
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            return False
        return any(where == address and other.fileno() >= 0 for other, where in list(self._bound.items()))

    def _question(self, sock: socket.socket, address: Any) -> Address | None:
        families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        if sock.family not in families or sock in self.adopted or not self.is_own_process:
            return None
        if sock.type != socket.SOCK_STREAM and not (self.datagrams and sock.type == socket.SOCK_DGRAM):
            return None
        if sock.family == socket.AF_UNIX:
            path = os.fsdecode(address) if isinstance(address, (str, bytes)) else ""
            if not path or "\0" in path or sock.type != socket.SOCK_STREAM:
                return None
            path = real_file(path)
            if os.path.basename(os.path.dirname(path)).startswith(_MULTIPROCESSING):
                return None
            try:
                path.encode()
            except UnicodeEncodeError:  # of bytes that no config file and no message can name
                return None
            return Address(sock.family, sock.type, path, 0)
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[1], int) or not address[1]:
            return None
        host = os.fsdecode(address[0])
        if host:
            try:
                found = socket.getaddrinfo(host, address[1], sock.family, socket.SOCK_STREAM)[0][4]
                host = str(found[0])
                scope = (*found[3:], *address[3:])  # of a link-local address: which link; in its text, or beside it
                if any(scope):
                    host += f"%{socket.if_indextoname(next(filter(None, scope)))}"
            except OSError as error:
                if is_raised_by_program(error):
                    raise
                return None  # a name that does not resolve: the real bind says so best
        only6 = sock.family == socket.AF_INET6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        return Address(sock.family, sock.type, host, address[1], only6)


def _accept_now(sock: socket.socket) -> tuple[socket.socket, Any]:
    """Accept without waiting, whatever the time-out of the socket is: a wait in C would outlast the drain."""
    if not sock.gettimeout() or sock.fileno() < 0:
        return _accept(sock)  # the listener is O_NONBLOCK
    same = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
    try:
        _setblocking(same, False)
        return _accept(same)
    finally:
        same.detach()


def _peer(connection: socket.socket) -> Any:
    try:
        return connection.getpeername()
    except OSError:  # it has gone already; accept() would have known its name
        return ("", 0) if connection.family != socket.AF_INET6 else ("", 0, 0, 0)

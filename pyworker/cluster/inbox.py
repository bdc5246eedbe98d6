"""Connections that are handed to a program one by one, in place of a listener."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Inbox:
    """Connections that somebody hands us one by one, as a thing that can be waited for like a listener.

    `put` is called by a thread, `take` by the program. `answer(token, taken)` is told of each, once; again of
    one that was put back, which a primary ignores if it has heard the first.
    """

    def __init__(self, sockname: Any, answer: Callable[[Any, bool], None]) -> None:
        self.sockname = sockname
        self._answer = answer
        self._waiting: deque[tuple[Any, socket.socket]] = deque()
        self._lock = threading.RLock()  # the handler of a signal may close it in the middle of a take
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
        taken: tuple[Any, socket.socket] | None = None
        try:
            with self._lock:
                try:
                    heard = os.read(sock.fileno(), 1)  # not recv: it would wait as long as the program lets accept wait
                except BlockingIOError:
                    heard = b""
                if not heard or not self._waiting:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                taken = self._waiting[0]
                del self._waiting[0]
            self._answer(taken[0], True)  # it is in the program's hands now: never offered to another
        except BlockingIOError:
            raise
        except BaseException:  # of a signal's handler: a connection that nobody answers for would be the worker's last
            self._put_back(taken)
            raise
        return taken[1]

    def _put_back(self, taken: tuple[Any, socket.socket] | None) -> None:
        with self._lock:
            closed = self._closed
            if taken is not None and not closed:
                self._waiting.appendleft(taken)
            with contextlib.suppress(OSError):
                self._bell.send(b"x")
        if taken is not None and closed:
            taken[1].close()
            self._answer(taken[0], False)

    def close(self) -> None:
        """Refuse what waits and what comes."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for token, connection in waiting:
            connection.close()
            self._answer(token, False)

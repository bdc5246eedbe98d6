"""Worker, for scripts that bind for themselves: `bind` gives them the shared listener, as Node's cluster does.

How that is done to socket.socket is cluster/binding.py; here the daemon is asked for the listener, and only an address
that it knows is shared. When the worker drains and its connections have ended, it sends itself the app's stop signal;
connections accepted by C code are not known: there the signal comes at once.

A thread reads the channel from the first bind on; none is started before, so that scripts that fork first may.
"""

from __future__ import annotations

import _socket
import errno
import os
import queue
import signal
import socket
import threading
import time
from _thread import start_new_thread  # of the kernel, also when the script has green ones later: `ask` blocks
from typing import Literal

from pyworker.cluster.binding import Address, Binding, Grant
from pyworker.protocol.scoreboard import F
from pyworker.protocol.worker import Accepting, Bind, Bound, Check, Drain, Drained, Failed, Go, Kick, Ready
from pyworker.worker import api
from pyworker.worker.channel import Channel, Closed, Received
from pyworker.worker.row import Row
from pyworker.worker.say import say

_LONELY_DRAIN = 30.0  # seconds, when the daemon is gone and can name none
_FAMILIES: dict[int, Literal["inet", "inet6", "unix"]] = {
    socket.AF_INET: "inet",
    socket.AF_INET6: "inet6",
    socket.AF_UNIX: "unix",
}


class Runtime(Binding):
    """The one per process. `install` changes socket.socket for good."""

    def __init__(self, channel: Channel, row: Row, stop_signal: str, bind: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._files = dict.fromkeys(text.removeprefix("unix:") for text in bind if text.startswith("unix:"))
        self._channel = channel
        self._row = row
        self._stop_signal = getattr(signal, f"SIG{stop_signal}")
        self._lock = threading.Lock()  # one bind at a time, one answer each
        # of one question: a signal's handler may have ended it
        self._answers: queue.SimpleQueue[Grant] = queue.SimpleQueue()
        self._book = threading.Lock()  # of what is asked, and the answer
        self._told_to_stop: Grant | None = None
        self._asks: Address | None = None
        self._reading = False
        self._said_ready = False
        self.bound = False

    def install(self) -> None:
        """Put our methods in place of socket.socket's."""
        super().install()
        api.set_ready(lambda: self._say_ready(serving=True))

    def fail(self, failure: Failed) -> None:
        self._channel.send(failure)

    # ---- called by the script ------------------------------------------------------------------------
    def ask(self, address: Address) -> Grant | None:
        with self._lock:
            if not self._channel.is_open:
                say(
                    "the script has closed descriptors that are not its own, pyworker's too (os.closerange?): it binds for "
                    "itself, and shares its port with no other worker. Leave that out: no other was open"
                )
                return None
            self._start_reader()
            answers: queue.SimpleQueue[Grant] = queue.SimpleQueue()
            grant: Grant | None = None
            try:
                with self._book:
                    self._answers, self._asks = answers, address
                self._channel.send(Bind(_FAMILIES[address.family], address.host, address.port))
                self._say_ready(serving=False)
                grant = self._told_to_stop or answers.get()
                if grant.fd >= 0 and not grant.errno and not self.bound:
                    self._channel.send(Accepting())
                    self.bound = True
            except BaseException:  # of a signal's handler
                self._leave(answers, grant)
                raise
        # else nobody is there any more to share it with
        return grant if grant.errno or grant.fd >= 0 else None

    def on_accepted(self) -> None:
        """Count it."""
        self._row[F.ACCEPTED] += 1
        self._row[F.OPEN] = self.count_open()

    def told_deadline(self, deadline: float) -> float:
        """The daemon says it anew when `stop.drain_timeout` is another one."""
        found = self._channel.receive()
        if not isinstance(found, Received):
            return deadline
        if found.fd >= 0:
            os.close(found.fd)
        return time.monotonic() + found.message.timeout if isinstance(found.message, Drain) else deadline

    # ---- inside --------------------------------------------------------------------------------------
    def _leave(self, answers: queue.SimpleQueue[Grant], grant: Grant | None) -> None:
        """Nobody waits for this answer any more."""
        with self._book:
            self._asks = None
        if grant is None and not answers.empty():
            grant = answers.get()
        if grant is not None:
            self.give_up(grant)

    def _say_ready(self, *, serving: bool) -> None:
        if not self._said_ready and self.is_own_process:
            self._channel.send(Ready(serving))
            self._said_ready = True

    def _start_reader(self) -> None:
        if not self._reading:
            start_new_thread(self._read, ())

    def _read(self) -> None:
        """The thread: answers of the daemon, and the end."""
        # not noted where it is started: the handler of a signal may have ended that
        with self._book:
            if self._reading:
                return
            self._reading = True
        while True:
            found = self._channel.wait()
            if isinstance(found, Closed) and not self._channel.is_open:
                return  # by the script itself: it is stopped by a signal then
            if isinstance(found, Closed):
                self._answers.put(Grant())
                self._drain(_LONELY_DRAIN)
                return
            match found.message:
                case Bound(errno=number, message=message) if self._answered(Grant(number, message, found.fd)):
                    continue
                case Drain(timeout=timeout):
                    self._drain(timeout)
                    return
                case Bound() | Go() | Kick() | Check():
                    pass  # Bound: said again by a daemon after one that was killed right after it had said so
            if found.fd >= 0:
                os.close(found.fd)

    def _answered(self, grant: Grant) -> bool:
        with self._book:
            if self._asks is None or not _may_answer(self._asks, grant.fd):
                return False
            self._asks = None
            self._answers.put(grant)
            return True

    def _drain(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.stop_accepting()
        self._row[F.LEFT_AT] = time.monotonic_ns()
        for callback in api.take_stop_callbacks():
            try:
                callback()
            except BaseException as error:  # noqa: BLE001  the script's own, sys.exit() too: it must not keep the worker from ending
                say(f"on_stop: {type(error).__name__}: {error}")
        self._row[F.OPEN] = left = self.wait_for_connections(deadline)
        self._channel.send(Drained(0, left))
        os.kill(self._pid, self._stop_signal)
        # one that takes the signal may wait inside bind, or try it again, where nobody would answer any more
        self._told_to_stop = Grant(errno.ECANCELED, "this worker was told to stop")
        self._answers.put(self._told_to_stop)


def _may_answer(asked: Address, fd: int) -> bool:
    """Whether this listener can be the one that was asked for: a daemon after one that was killed may send the last one again."""
    if fd < 0:
        return True
    sock = _socket.socket(fileno=fd)
    try:
        return sock.family == asked.family and (not asked.port or sock.getsockname()[1] == asked.port)
    finally:
        sock.detach()

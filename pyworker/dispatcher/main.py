"""Dispatcher: accepts an app's connections and gives each to the worker with the fewest, in turn among equals.

Promises: nothing that was handed out is lost with a worker or with this process (the inboxes are in the guardian's
store); a connection waits in the listener's queue rather than in here; a worker that does not take what it was given
while others could has it taken away again. It parses no byte of a client, imports no code of the app, and decides
nothing about workers: the daemon says which of them take connections.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import assert_never

from pyworker.dispatcher.channel import Channel
from pyworker.dispatcher.inbox import Inbox
from pyworker.dispatcher.loop import IN, Loop
from pyworker.dispatcher.node import NodeCluster
from pyworker.dispatcher.relay import Pipes
from pyworker.dispatcher.workers import InboxWorker, PortWorker, Worker
from pyworker.errors import WANTING, lacking_in_words
from pyworker.policy.balance import least_loaded
from pyworker.protocol import dispatcher as d
from pyworker.protocol.scoreboard import row_slice
from pyworker.unix.fds import close_all

ACCEPTS_A_TURN = 64
RETRY = 0.01  # seconds until a connection that fits nowhere is tried again
PAUSE = 0.1  # ... until accepting is tried again when the machine is out of files
# ... without a want of something until that is over: at a limit there is room whenever another connection ends
CALM = 3.0
REST = 0.2  # ... for which a worker whose port cannot be reached gets nothing
LOOK = 0.1  # how often a worker that has not taken its connections is looked at; twice without progress: stuck
FINISH_PATIENCE = 30.0  # how long relays may last when daemon and guardian are both gone
_SPARE_FILES = 512
_NO_PORT = (
    "no local port is left from which a worker could be connected to: connections wait until one ends. "
    "Widen the range (sysctl net.ipv4.ip_local_port_range), or have more workers: each has as many"
)


class _Lasting:
    """A trouble that comes and goes: said once, and when it has not been met for a while."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._text = ""  # of the one that goes on
        self._again = False

    def met(self, text: str) -> None:
        self._again = True
        if not self._text:
            self._text = text
            self._dispatcher.say(d.Trouble(text))
            self._look()

    def _look(self) -> None:
        if self._again:
            self._again = False
            self._dispatcher.loop.later(CALM, self._look)
        else:
            self._dispatcher.say(d.Over(self._text))
            self._text = ""


class Dispatcher:
    """All of one app's: listeners, inboxes, workers."""

    def __init__(self, channel: socket.socket, board: memoryview) -> None:
        self.loop = Loop()
        self.pipes = Pipes()
        self.relays = 0
        # two ends each; the rest is for listeners, and for pipes of those whose receiver pauses
        self.most_relays = max(1, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES) // 2)
        self._too_many = _Lasting(self)
        self._no_files = _Lasting(self)
        self._no_port = _Lasting(self)
        self._board = board
        self._listeners: dict[int, socket.socket] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._workers: dict[int, Worker] = {}  # by serial, in the order in which they came
        self._open: list[Worker] = []  # who may be given connections
        self._choice: list[Worker] = []  # ... and who of them is asked first
        self._turn = -1
        self._waiting: deque[int] = deque()  # accepted, and no worker takes it now
        self._accepting = False
        self._paused = False
        self._looking = False
        self._retrying = False
        self._finishing = False
        self._node = NodeCluster(self)
        self._said_again: set[object] | None = None  # between Begin and Settled: what is still so
        self._is_new = False  # just started, and being told who is there: the first of them would get all that waits
        self._daemon = Channel(channel, self.loop, self._take, self._on_orphaned)

    # ---- connections -------------------------------------------------------------------------------------
    def _acceptor(self, listener: socket.socket) -> Callable[[int], None]:
        accept_one = listener._accept  # type: ignore[attr-defined]  # what socket.accept is made of

        def accept(_: int) -> None:
            for _turn in range(ACCEPTS_A_TURN):
                try:
                    connection, _ = accept_one()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in WANTING:
                        self.out_of_files(error)
                    return  # also ECONNABORTED and its like: this client has left, the next one may not
                self._deal(connection)
                if not self._accepting:
                    return

        return accept

    def _deal(self, connection: int) -> None:
        """Give a connection, a descriptor that is ours, to the worker with the fewest."""
        workers = self._choice
        while workers:
            at = least_loaded([w.load() for w in workers], self._turn if workers is self._choice else -1)
            worker = workers[at]
            try:
                taken = worker.take(connection)
            except OSError:  # its inbox is broken; the daemon will know why
                taken = False
            if taken:
                if workers is self._choice:
                    self._turn = at
                if not self._looking and isinstance(worker, InboxWorker):
                    self._looking = True
                    self.loop.later(LOOK, self._look)
                return
            workers = [w for w in workers if w is not worker]
        self._wait_with(connection)

    def deal_again(self, connection: int, worker: Worker) -> None:
        """A worker could not be reached: give what it was given to another, and it nothing for a moment."""
        if not worker.stuck:
            worker.stuck = True
            self.loop.later(REST, lambda: self._rested(worker))
            self._choose_among()
        if any(not w.stuck for w in self._open):
            self._deal(connection)
        else:
            self._wait_with(connection)

    def _rested(self, worker: Worker) -> None:
        worker.stuck = False
        self._choose_among()

    def _choose_among(self) -> None:
        """Note who is asked first: all that take connections, but for those that stand still."""
        self._choice = [w for w in self._open if not w.stuck] or self._open
        self._turn = min(self._turn, len(self._choice) - 1)

    def _wait_with(self, connection: int) -> None:
        """Nobody takes it now: accept no more, the queue of the listener is the place to wait in."""
        self._waiting.append(connection)
        self._set_accepting()
        if not self._retrying:
            self._retrying = True
            self.loop.later(RETRY, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        if self._open:
            for _ in range(len(self._waiting)):
                if self._retrying:
                    break
                self._deal(self._waiting.popleft())
            self._take_in_orphans(self._inboxes)
        self._set_accepting()

    def _set_accepting(self) -> None:
        """Watch the listeners while a connection could be handed on at once."""
        may = not (self._is_new or self._waiting or self._paused or self._finishing)
        self._accepting = accepting = may and bool(self._open)
        for listener in self._listeners.values():
            if accepting and not self.loop.watches(listener.fileno()):
                try:
                    self.loop.add(listener.fileno(), IN, self._acceptor(listener))
                except OSError as error:  # NO_ROOM
                    self.out_of_files(error)
                    return
            elif not accepting:
                self.loop.remove(listener.fileno())

    def out_of_files(self, error: OSError) -> None:
        """Accepting failed, or waiting for what comes: rest for a moment, or it would be tried without end."""
        self._no_files.met(f"the dispatcher cannot accept connections: {lacking_in_words(error)}; it goes on trying")
        if not self._paused:
            self._paused = True
            self._node.pause()
            self.loop.later(PAUSE, self._resume)
            self._set_accepting()

    def too_many_relays(self) -> None:
        """No more can be relayed: what comes waits in the listener's queue."""
        self._too_many.met(
            f"{self.most_relays} connections are relayed, the most that the limit of open files allows: more wait "
            "until one ends. Raise the hard limit (ulimit -Hn, LimitNOFILE of the service) and start the daemon again"
        )

    def no_port_left(self) -> None:
        """A worker could not be connected to for want of a port of ours."""
        self._no_port.met(_NO_PORT)

    def _resume(self) -> None:
        self._paused = False
        self._node.resume()
        self._set_accepting()

    # ---- workers that do not take what they were given -------------------------------------------------------
    def _look(self) -> None:
        """Take back from a worker that stands still what another could serve now."""
        self._looking = False
        freed: list[tuple[InboxWorker, int]] = []
        for worker in self._open:
            if not isinstance(worker, InboxWorker):
                continue
            queued, accepted = worker.inbox.queued(), worker.accepted
            if not queued:
                worker.stuck = worker.stuck and worker.waited == accepted
                worker.waited = accepted if worker.stuck else -1
                self._looking = self._looking or worker.stuck
                continue
            self._looking = True
            worker.stuck = worker.waited == accepted
            worker.waited = accepted
            if worker.stuck:
                freed.append((worker, queued))
        self._choose_among()
        if any(not w.stuck for w in self._open):
            for worker, queued in freed:
                for _ in range(queued):
                    fd = worker.inbox.take_back() if not self._waiting else None
                    if fd is None:
                        break
                    worker.handed -= 1
                    self._deal(fd)
        if self._looking:
            self.loop.later(LOOK, self._look)

    def _take_in_orphans(self, slots: Iterable[int]) -> None:
        """What lies in the inbox of one of these slots goes to another worker, if it has none itself and there is one."""
        if self._said_again is not None:  # who attends which is still being said
            return
        attended = {w.slot for w in self._open}
        if not attended:
            return
        for slot in slots:
            if slot not in attended and slot in self._inboxes:
                self._empty_out(self._inboxes[slot])

    def _empty_out(self, inbox: Inbox) -> None:
        """Give to others what is in an inbox. What they do not take goes back: in our hands it would be lost with us."""
        while self._open and not self._waiting and (fd := inbox.take_back()) is not None:
            self._deal(fd)
            if self._waiting and inbox.put(fd):  # `_retry` tries again
                self._waiting.remove(fd)
                os.close(fd)
                return

    # ---- what the daemon says --------------------------------------------------------------------------------
    def _take(self, message: d.ToDispatcher, fds: list[int]) -> None:
        match message:
            case d.Begin():
                self._said_again = set()
                self._is_new = not self._open  # one that serves goes on, whatever becomes of the daemon
            case d.Settled():
                self._is_new = False
                self._forget_the_rest()
                self._node.ask_again()
            case d.Listen(index=index):
                self._listen(index, fds)
                fds = []
            case d.Unlisten(index=index):
                self._unlisten(index)
            case d.Inbox(slot=slot):
                self._take_inbox(slot, fds)
                fds = []
            case d.CloseInbox(slot=slot):
                self._close_inbox(slot)
            case d.Open():
                self._open_worker(message)
            case d.Attach(serial=serial, queries=queries):
                self._again(("attach", serial))
                if len(fds) == 1:
                    self._node.attach(serial, socket.socket(fileno=fds[0]), queries)
                    fds = []
            case d.Bound():
                self._node.bound(message, fds[0] if len(fds) == 1 else -1)
                fds = fds[1:]
            case d.Tell(serial=serial, text=text):
                self._node.tell(serial, text)
            case d.Shut(serial=serial):
                if not self._node.shut(serial):
                    self._shut(serial)
            case d.Gone(serial=serial):
                self._node.gone(serial)
                self._forget(serial)
            case d.Finish():
                self._finish()
            case d.Ping(number):
                self.say(d.Pong(number))
            case d.Leave():
                self.loop.running = False
            case _:
                assert_never(message)
        close_all(fds)

    def _listen(self, index: int, fds: list[int]) -> None:
        self._again(("listen", index))
        if len(fds) != 1 or index in self._listeners:
            close_all(fds)
            return
        listener = socket.socket(fileno=fds[0])
        listener.setblocking(False)
        self._listeners[index] = listener
        self._set_accepting()

    def _unlisten(self, index: int) -> None:
        listener = self._listeners.pop(index, None)
        if listener is not None:
            self.loop.remove(listener.fileno())
            listener.close()

    def _take_inbox(self, slot: int, fds: list[int]) -> None:
        self._again(("inbox", slot))
        if len(fds) != 2 or slot in self._inboxes:  # a copy of the one that is here
            close_all(fds)
            return
        self._inboxes[slot] = Inbox(slot, *(socket.socket(fileno=fd) for fd in fds))

    def _close_inbox(self, slot: int) -> None:
        inbox = self._inboxes.pop(slot, None)
        if inbox is not None:
            for worker in [w for w in self._workers.values() if isinstance(w, InboxWorker) and w.inbox is inbox]:
                self._forget(worker.serial)
            while (fd := inbox.take_back()) is not None:  # all of it: if need be it waits in here
                self._deal(fd)
            inbox.close()

    def _open_worker(self, message: d.Open) -> None:
        self._again(("worker", message.serial))
        if message.via == "node":
            self._node.open(message.serial)
            return
        known = self._workers.get(message.serial)
        if isinstance(known, PortWorker):
            known.reopen()
        if known is None:
            cells = self._board[row_slice(message.row)]
            if message.via == "inbox":
                inbox = self._inboxes.get(message.slot)
                if inbox is None:
                    return
                known = InboxWorker(message.serial, inbox, cells)
            else:
                known = PortWorker(message.serial, message.slot, message.port, message.proxy_protocol, cells, self)
            self._workers[message.serial] = known
        orphans = () if self._open else self._inboxes
        # a successor takes over its slot's inbox: only one of the two is counted by
        self._open = [w for w in self._open if w.slot != message.slot or w.serial == message.serial]
        if known not in self._open:
            self._open.append(known)
            self._open.sort(key=lambda w: w.slot)
            if isinstance(known, InboxWorker):
                known.count_anew()
        self._after_change(orphans)

    def _shut(self, serial: int) -> None:
        self._again(("worker", serial))
        worker = self._workers.get(serial)
        if worker is None:
            self.say(d.Empty(serial))
            return
        self._open = [w for w in self._open if w is not worker]
        if worker.shut():
            self.say(d.Empty(serial))
        self._after_change((worker.slot,))

    def _forget(self, serial: int) -> None:
        worker = self._workers.pop(serial, None)
        if isinstance(worker, PortWorker):
            worker.forget()
        if worker is not None:
            self._open = [w for w in self._open if w is not worker]
            self._after_change((worker.slot,))

    def _after_change(self, orphans: Iterable[int]) -> None:
        """Go by who takes connections now. `orphans`: slots that may have lost their worker, or found others only now."""
        self._choose_among()
        self._take_in_orphans(orphans)
        self._set_accepting()
        if self._waiting and not self._retrying:
            self._retry()

    def _again(self, what: object) -> None:
        if self._said_again is not None:
            self._said_again.add(what)

    def _forget_the_rest(self) -> None:
        """What a new daemon did not mention has ended while there was none."""
        said, self._said_again = self._said_again, None
        if said is None:
            return
        for serial in [s for s in self._workers if ("worker", s) not in said]:
            self._forget(serial)
        for serial in [s for s in self._node.serials() if ("attach", s) not in said]:
            self._node.gone(serial)
        for slot in [s for s in self._inboxes if ("inbox", s) not in said]:
            self._close_inbox(slot)
        for index in [i for i in self._listeners if ("listen", i) not in said]:
            self._unlisten(index)
        self._after_change(self._inboxes)

    # ---- the end ---------------------------------------------------------------------------------------------
    def _finish(self) -> None:
        """Hand out all that has been accepted or waits to be, and say so."""
        if self._finishing:
            return
        for listener in self._listeners.values():
            with contextlib.suppress(OSError):
                while self._open and not self._waiting:
                    self._deal(listener.accept()[0].detach())
        self._finishing = True
        self._set_accepting()
        for inbox in self._inboxes.values():
            inbox.put_last()

    def _on_orphaned(self) -> None:
        """Daemon and guardian are gone: the workers will finish and leave, and so do we."""
        self._finish()
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self.loop.later(FINISH_PATIENCE, self._stop)
        self._stop_when_idle()

    def _stop_when_idle(self) -> None:
        if any(isinstance(w, PortWorker) and w.load() for w in self._workers.values()) or self._waiting:
            self.loop.later(0.2, self._stop_when_idle)
        else:
            self._stop()

    def _stop(self) -> None:
        self.loop.running = False

    def say(self, message: d.FromDispatcher) -> None:
        self._daemon.say(message)

"""This process, as a worker of a cluster: what it binds is asked of the primary, which is ours or Node's.

Importing this module takes NODE_UNIQUE_ID out of the environment. When it was there, socket.socket is changed
(cluster/binding.py), so that any program becomes a worker unmodified. A connection that the primary hands over counts
as taken when the program calls accept(): a worker that is busy is offered no second one, and what a dead worker had not
taken goes to another.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import itertools
import os
import queue
import signal
import socket
import sys
import threading
import time
from _thread import start_new_thread  # of the kernel, also when the program has green ones later: we block in it
from typing import Any

from pyworker.cluster import process
from pyworker.cluster.binding import Address, Binding, Grant
from pyworker.cluster.handles import received
from pyworker.cluster.inbox import Inbox
from pyworker.cluster.ipc import ChannelClosedError
from pyworker.protocol import node
from pyworker.protocol.nodecluster import CMD, IPV6_ONLY, key_of
from pyworker.unix.fds import close_all

DRAIN = "PYWORKER_CLUSTER_DRAIN"  # seconds that connections are given to end
SUICIDE = {"act": "suicide"}  # an ordinary message: Node programs send the same one
_TYPES = {socket.AF_INET: 4, socket.AF_INET6: 6, socket.AF_UNIX: -1}
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_PATIENCE = 5.0  # seconds that a question waits for the answer to one that was left
_BACKLOG = 511  # as Node's
_LINGER = 5.0  # seconds, at least, between the stop signal and the end, for a program that does not react


class ThisWorker:
    """`cluster.worker` in a worker. Its events are those of `process`: message, disconnect, error."""

    def __init__(self, number: int) -> None:
        self.id = number
        self.process = process
        self.exited_after_disconnect = False
        self.send = process.send
        self.on, self.once, self.off, self.messages = process.on, process.once, process.off, process.messages
        self._leaving = threading.Lock()

    def is_connected(self) -> bool:
        """True while the primary can be talked to."""
        return bool(process.connected)

    def is_dead(self) -> bool:
        """False: this is it."""
        return False

    def disconnect(self) -> None:
        """Take no more connections, finish those there are, and end."""
        self._announce()
        _leave_soon(0)

    def kill(self, sig: int = signal.SIGTERM) -> None:
        """End on purpose: the primary knows that it is no crash."""
        self._announce()
        os.kill(os.getpid(), sig)

    def _announce(self) -> None:
        self.exited_after_disconnect = True
        with contextlib.suppress(ChannelClosedError):
            _say({"act": "exitedAfterDisconnect"})

    def suicide(self) -> None:
        """Announce the end, so that a successor starts at once; finish what is under way, exit with code 1.

        Uncaught exceptions of the main thread and of others do this by themselves.
        """
        if self._leaving.acquire(blocking=False):
            with contextlib.suppress(ChannelClosedError):
                process.send(SUICIDE)
            _leave_soon(1)


class _Question:
    """What the primary is asked, and its answer."""

    def __init__(self, address: Address, seq: int) -> None:
        self.address = address
        self.seq = seq
        self.grant: Grant | None = None
        self.answered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.is_asked = False  # surely: it will be answered, or the channel ends
        self.is_left = False  # a signal's handler has ended it by an exception
        self.is_over = False  # answered, and the answer given back where it was left


class _ClusterBinding(Binding):
    datagrams = True
    asks_for_files = True

    def __init__(self) -> None:
        super().__init__()
        self._asking = threading.Lock()  # one question at a time
        self._last: _Question | None = None
        self._book = threading.RLock()  # of its grant, and whether it was left
        self._keys: dict[str, Inbox | None] = {}  # None: a descriptor that is shared
        self._queries: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._closed_keys: set[str] = set()
        self.ended = False

    def ask(self, address: Address) -> Grant | None:
        """Ask the primary; blocks until it has answered."""
        question = _Question(address, next(_seq))
        try:
            return self._ask(question)
        except BaseException:  # of a signal's handler
            self._leave_question(question)
            raise

    def _ask(self, question: _Question) -> Grant | None:
        address = question.address
        host = address.host or _ANY.get(socket.AddressFamily(address.family))
        kind: Any = _TYPES[socket.AddressFamily(address.family)]
        if address.type == socket.SOCK_DGRAM:
            kind = f"udp{kind}"
        query = {
            "index": 0,
            "data": None,
            "address": host,
            "port": -1 if address.family == socket.AF_UNIX else address.port,
            "addressType": kind,
            "backlog": 0,
            "flags": IPV6_ONLY if address.only6 else 0,
        }
        channel = process._process.channel
        if channel is not None and channel.is_here:
            return Grant(errno.EDEADLK, "no callback in the thread of the channel can bind: it is to read the answer")
        with self._asking:
            left = self._last
            if left is not None and not left.is_over:
                with contextlib.suppress(queue.Empty):  # it may never have gone
                    left.answered.get(timeout=None if left.is_asked else _PATIENCE)
            self._last = question  # first: it is told of the channel's end
            if self.ended or channel is None or not channel.connected:
                self._last = None
                return None
            process._process.start()
            try:
                key = key_of(query)
                if key in self._keys and not channel.files:  # Node breaks off at a worker that asks twice
                    self._close_key(key)
                _say({"act": "queryServer", **query}, question.seq)
                question.is_asked = True
                question.answered.get()
            except ChannelClosedError:
                self._last = None
                return None
        grant = question.grant
        if grant is None or (not grant.errno and grant.fd < 0 and grant.inbox is None):
            return None  # the primary is gone: nobody is there to share it with
        self._queries[address.family, address.type, address.host, address.port] = query
        return grant

    def _leave_question(self, question: _Question) -> None:
        with self._book:
            question.is_left = True
            grant = question.grant
        if grant is not None:
            self.give_up(grant)

    def on_listen(self, sock: socket.socket) -> None:
        is_listener = sock.type == socket.SOCK_STREAM and sock not in self.inboxes and not self.draining
        if is_listener and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # Node's SCHED_NONE only binds
            _socket.socket.listen(sock, _BACKLOG)
        name: Any = sock.getsockname()
        unix = sock.family == socket.AF_UNIX
        found = [
            (host, query)
            for (family, kind, host, port), query in self._queries.items()
            if family == sock.family and kind == sock.type and (host == name if unix else port == name[1])
        ]
        found.sort(key=lambda each: each[0] != name[0])  # another server may have the same port of another address
        for _, query in found[:1]:
            with contextlib.suppress(ChannelClosedError):
                _say({"act": "listening", **query})

    # ---- in the thread of the channel ----------------------------------------------------------------
    def received(self, message: dict[str, Any], handle: node.Handle | None) -> None:
        is_ours = message.get("cmd") == CMD
        if is_ours and isinstance(message.get("ack"), int):
            question = self._last
            if question is not None and message["ack"] == question.seq and question.grant is None:
                self._answered(question, message, handle)
                return
        elif is_ours and message.get("act") == "newconn":
            self._connection(message, handle)
            return
        elif is_ours and message.get("act") == "disconnect":
            assert worker is not None
            worker.exited_after_disconnect = True
            _leave_soon(0)
        close_all([handle.fd] if handle else [])

    def at_end(self) -> None:
        """The channel is closed: the primary is gone, or does not want us any more."""
        self.ended = True
        question = self._last
        if question is not None and question.grant is None:
            self._settle(question, Grant())
        if worker is not None and not worker.exited_after_disconnect:
            _leave_soon(0)

    def _answered(self, question: _Question, message: dict[str, Any], handle: node.Handle | None) -> None:
        number, key = message.get("errno"), message.get("key")
        if isinstance(key, str) and not number:
            self._keys[key] = None
            self._closed_keys.discard(key)
        if isinstance(number, int) and number:
            close_all([handle.fd] if handle else [])
            self._settle(question, Grant(errno=abs(number)))
        elif handle is not None:
            self._settle(question, Grant(fd=handle.fd, key=key if isinstance(key, str) else ""))
        elif isinstance(key, str):
            # made here and not where the question was asked: the first connection may be in the same read
            name = _sockname(message.get("sockname"), question.address)
            inbox = self._keys[key] = Inbox(name, lambda seq, taken: self._taken(key, seq, taken))
            self._settle(question, Grant(inbox=inbox, key=key))
        else:
            self._settle(question, Grant())

    def _settle(self, question: _Question, grant: Grant) -> None:
        with self._book:
            question.grant = grant
            is_left = question.is_left
        if is_left:
            self.give_up(grant)
        question.is_over = True
        question.answered.put(None)

    def give_up(self, grant: Grant) -> None:
        """Nobody waits for this listener any more: connections would come that nobody takes."""
        super().give_up(grant)
        with contextlib.suppress(ChannelClosedError):
            if grant.inbox is not None:
                grant.inbox.close()
            if grant.key:
                self._close_key(grant.key)

    def _connection(self, message: dict[str, Any], handle: node.Handle | None) -> None:
        seq, key = message.get("seq"), message.get("key")
        inbox = self._keys.get(key) if isinstance(key, str) else None
        connection = None if handle is None else received(handle)
        if isinstance(connection, socket.socket) and inbox is not None:
            inbox.put(seq, connection)
            return
        if connection is not None:
            connection.close()
        _say({"ack": seq, "accepted": False})

    def _taken(self, key: str, seq: Any, taken: bool) -> None:
        with contextlib.suppress(ChannelClosedError):
            if not taken:
                self._close_key(key)
            _say({"ack": seq, "accepted": taken})

    def _close_key(self, key: str) -> None:
        """Have the primary offer no more connections of this listener."""
        if key not in self._closed_keys:
            _say({"act": "close", "key": key})
            self._closed_keys.add(key)

    def stop_accepting(self) -> None:
        """Tell the primary first."""
        with contextlib.suppress(ChannelClosedError):
            for key, inbox in list(self._keys.items()):
                if inbox is not None:
                    self._close_key(key)
        super().stop_accepting()


_seq = itertools.count()
_leaving = threading.Lock()
_binding: _ClusterBinding | None = None
worker: ThisWorker | None = None


def _say(fields: dict[str, Any], seq: int | None = None) -> None:
    process._process.need().send_raw({"cmd": CMD, **fields, "seq": next(_seq) if seq is None else seq})


def _leave_soon(code: int) -> None:
    start_new_thread(_leave, (code,))


def _leave(code: int) -> None:
    """Stop accepting, let connections end, and end: with the stop signal, and surely a little later."""
    assert _binding is not None
    if not _leaving.acquire(blocking=False):  # the end of the channel is a reason to leave, and a part of leaving
        return
    deadline = time.monotonic() + float(os.environ.get(DRAIN, "10"))
    _binding.stop_accepting()
    _binding.wait_for_connections(deadline)
    with contextlib.suppress(ChannelClosedError):
        channel = process._process.need()
        channel.disconnect()
        channel.wait_sent(1.0, _LINGER)
    if code == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        # connections that were accepted in C are the program's to finish now
        time.sleep(max(_LINGER, deadline - time.monotonic()))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or its reader is gone: no reason to stay
            stream.flush()
    os._exit(code)


def _announce_uncaught(worker: ThisWorker, binding: Binding) -> None:
    """Let uncaught exceptions announce the worker's death before they end it."""
    show = sys.excepthook
    show_thread = threading.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        show(kind, error, trace)
        if isinstance(error, Exception) and binding.is_own_process:
            worker.suicide()
            threading.Event().wait()  # the other thread finishes what is under way, and exits

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        show_thread(args)
        if binding.is_own_process and args.exc_type is not SystemExit:
            worker.suicide()

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread


def _leave_ctrl_c_to_the_primary() -> None:
    """A terminal sends it to all: the primary ends us in order. A program with a handler of its own keeps it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which the program's own children would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


def _sockname(name: Any, address: Address) -> Any:
    if address.family == socket.AF_UNIX:
        return address.host
    host, port = address.host, address.port
    if isinstance(name, dict) and isinstance(name.get("address"), str) and isinstance(name.get("port"), int):
        host, port = name["address"], name["port"]
    return (host, port) if address.family == socket.AF_INET else (host, port, 0, 0)


def _become_worker() -> None:
    global _binding, worker
    number = os.environ.pop(node.UNIQUE_ID, "")
    if not (number.isascii() and number.isdigit()) or process._process.channel is None:
        return
    worker = ThisWorker(int(number))
    _binding = _ClusterBinding()
    process._process.internal = _binding.received
    process._process.at_end = _binding.at_end
    _binding.install()
    _announce_uncaught(worker, _binding)
    if threading.current_thread() is threading.main_thread():
        _leave_ctrl_c_to_the_primary()
    _say({"act": "online"})
    process._process.start()


_become_worker()

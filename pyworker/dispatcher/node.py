"""Dispatcher: the primary of unmodified Node workers, so that `http.createServer().listen(port)` shares one port in turns.

What Node's cluster says on a channel is protocol/nodecluster.py, used twice: the *gate* answers what workers ask, also
those that may not get connections yet (a reload before its commit), the *dealer* knows only those that may, and hands
out. What a worker has asked for is told to the daemon, so that the next dispatcher can go on with it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import socket
import time
from typing import Any, Protocol

from pyworker.dispatcher.loop import IN, Loop
from pyworker.errors import WANTING
from pyworker.policy.talk import A_SECOND, Allowance
from pyworker.protocol import dispatcher as d
from pyworker.protocol import node
from pyworker.protocol import nodecluster as nc
from pyworker.record import field, mutable
from pyworker.unix.fds import MOST_FDS, close_all, hang_up, let_go, recv_packet, send_whole, whole_lines

_READS = 8
_RETRY = 0.02  # seconds, when a channel is full or the kernel has too many descriptors under way
_MOST_UNREAD = 1024 * 1024  # bytes that wait for a worker which goes on asking
_NO_SEQ = -1  # in a question whose answer nobody waits for
_ASKED_TO_LEAVE = object()  # the token of that message


class Owner(Protocol):
    """The dispatcher, as far as this file needs it."""

    loop: Loop

    def say(self, message: d.FromDispatcher) -> None:
        """Tell the daemon."""

    def out_of_files(self, error: OSError) -> None:
        """Accepting failed for want of files: rest for a moment, then call `resume`."""


@mutable
class Member:
    """One Node worker and its channel."""

    serial: int
    sock: socket.socket
    talk: Allowance
    asks: Allowance
    link: node.Link = field(default_factory=lambda: node.Link(max_line=node.MAX_TEXT))
    queries: dict[str, dict[str, Any]] = field(default_factory=dict)  # its text -> what it asked to listen on
    dealt: set[str] = field(default_factory=set)  # of these: what the dealer knows
    open: bool = False
    leaving: bool = False
    asked: bool = False  # to leave: its channel has taken that
    retrying: bool = False
    too_loud: bool = False  # its last message was one too many
    babbled: bool = False  # what was no message has been said once: it may be another each time


class NodeCluster:
    """All Node workers of the app."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._members: dict[int, Member] = {}
        self._gate = nc.Primary(hold=True)
        # an answer to an offer of the dispatcher before this one must not be taken for one to ours
        self._dealer = nc.Primary(hold=True, first_seq=random.randrange(1 << 20, 1 << 40))
        # the new ones may be let in after the last old one was shut: until then clients wait
        self._dealer.expected = True
        self._listeners: dict[str, socket.socket] = {}
        self._watched: set[str] = set()
        self._paused = False

    # ---- what the daemon says ------------------------------------------------------------------------------
    def attach(self, serial: int, sock: socket.socket, queries: tuple[str, ...]) -> None:
        """A worker, its channel (owned from here on), and what it asked of the dispatcher before this one."""
        if serial in self._members:
            sock.close()
            return
        sock.setblocking(False)
        now = time.monotonic()
        member = self._members[serial] = Member(serial, sock, Allowance(now), Allowance(now))
        for text in queries:
            with contextlib.suppress(ValueError):
                member.queries[text] = json.loads(text)
                self._perform(self._gate, self._gate.received(serial, {**member.queries[text], "seq": _NO_SEQ}))
        self._listen(member)

    def _listen(self, member: Member) -> None:
        if self._members.get(member.serial) is not member:
            return
        try:
            self._owner.loop.add(member.sock.fileno(), IN, lambda _: self._on_readable(member))
        except OSError as error:  # NO_ROOM
            self._owner.out_of_files(error)
            self._owner.loop.later(_RETRY, lambda: self._listen(member))

    def bound(self, message: d.Bound, fd: int) -> None:
        """The answer to Wants: the listener (owned from here on), or why there is none."""
        if message.key in self._listeners or message.key not in self._gate.keys:  # it was asked for twice
            close_all([fd])
            return
        if fd < 0:
            for member in self._members.values():
                _forget_query(member, message.key)
            for primary in (self._gate, self._dealer):
                self._perform(primary, primary.failed(message.key, message.errno or errno.EINVAL))
            return
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
        self._listeners[message.key] = listener
        for primary in (self._gate, self._dealer):
            if message.key in primary.keys:
                self._perform(primary, primary.opened(message.key, *_name_of(listener)))

    def ask_again(self) -> None:
        """Ask a daemon that may be new for what the one before has not answered for."""
        self._perform(self._gate, self._gate.unanswered())

    def open(self, serial: int) -> None:
        """Connections may be given to this worker."""
        member = self._members.get(serial)
        if member is not None and not member.leaving:
            member.open = True
            self._let_in(member)

    def shut(self, serial: int) -> bool:
        """Ask this worker to close its servers, finish and exit, and say Empty when it is asked; False: there is none."""
        member = self._members.get(serial)
        if member is not None and member.asked:
            self._owner.say(d.Empty(serial))
        elif member is not None and not member.leaving:
            member.leaving, member.open = True, False
            for primary in (self._gate, self._dealer):
                self._perform(primary, primary.disconnect(serial))
        return member is not None

    def gone(self, serial: int) -> None:
        member = self._members.pop(serial, None)
        if member is None:
            return
        self._owner.loop.remove(member.sock.fileno())
        let_go(member.link.abandon()[1])
        hang_up(member.sock)
        for primary in (self._gate, self._dealer):
            self._perform(primary, primary.lost(serial))

    def tell(self, serial: int, text: str) -> None:
        """A message of `pyworker send`. One that does not read them is not kept any number of them."""
        member = self._members.get(serial)
        if member is not None and member.link.backlog > _MOST_UNREAD:
            self._owner.say(d.Trouble("a worker does not read its messages: what is sent to it is dropped"))
        elif member is not None:
            with contextlib.suppress(ValueError):
                member.link.send(json.loads(text))
                self._flush(member)

    def serials(self) -> list[int]:
        return list(self._members)

    def resume(self) -> None:
        self._paused = False
        for key in self._watched:
            self._watch(key)

    def pause(self) -> None:
        self._paused = True
        for key in self._watched:
            if key in self._listeners:
                self._owner.loop.remove(self._listeners[key].fileno())

    # ---- actions -------------------------------------------------------------------------------------------
    def _let_in(self, member: Member) -> None:
        """Have the dealer know all that an open worker listens on."""
        for text, query in member.queries.items():
            if text not in member.dealt:
                member.dealt.add(text)
                self._perform(self._dealer, self._dealer.received(member.serial, {**query, "seq": _NO_SEQ}))

    def _perform(self, primary: nc.Primary, actions: list[nc.Action]) -> None:
        """Carry out. The dealer's plain messages are not sent: the gate has said the same."""
        for action in actions:
            match action:
                case nc.Open(key=key, query=query):
                    self._find(primary, key, query)
                case nc.Close(key=key):
                    if primary is self._gate:
                        self._close(key)
                case nc.Watch(key=key, on=on):
                    if primary is self._dealer:
                        self._set_watched(key, on=on)
                case nc.Say(worker=serial, message=message, connection=connection):
                    if connection is not None or primary is self._gate:
                        self._say(serial, message, connection)
                case nc.Release(connection=connection) | nc.Drop(connection=connection):
                    connection.close()
                case nc.Listening(worker=serial):
                    assert isinstance(serial, int)
                    if primary is self._gate:
                        self._owner.say(d.Listening(serial))
                case nc.Online() | nc.Leaving():
                    pass

    def _find(self, primary: nc.Primary, key: str, query: nc.Query) -> None:
        """Gate and dealer need a listener: the same one. Who has none yet hears of it in `bound`."""
        listener = self._listeners.get(key)
        if listener is not None:
            self._perform(primary, primary.opened(key, *_name_of(listener)))
        elif query.is_udp:
            self._perform(primary, primary.failed(key, errno.EOPNOTSUPP))
        elif primary is self._gate:
            self._owner.say(d.Wants(key, query.kind, query.address or "", query.port or 0))

    def _set_watched(self, key: str, *, on: bool) -> None:
        if on:
            self._watched.add(key)
            self._watch(key)
        else:
            self._watched.discard(key)
            if key in self._listeners:
                self._owner.loop.remove(self._listeners[key].fileno())

    def _close(self, key: str) -> None:
        """No worker listens on this, nor is about to."""
        self._perform(self._dealer, self._dealer.forget(key))
        self._set_watched(key, on=False)
        listener = self._listeners.pop(key, None)
        if listener is not None:
            listener.close()

    def _watch(self, key: str) -> None:
        listener = self._listeners.get(key)
        if listener is not None and not self._paused and not self._owner.loop.watches(listener.fileno()):
            try:
                self._owner.loop.add(listener.fileno(), IN, lambda _: self._accept(key))
            except OSError as error:  # NO_ROOM
                self._owner.out_of_files(error)

    def _accept(self, key: str) -> None:
        """One at a time: the dealer says after each whether there is anybody for another."""
        while key in self._watched and not self._paused:
            listener = self._listeners.get(key)
            if listener is None:
                return
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in WANTING:
                    self._owner.out_of_files(error)
                return
            self._perform(self._dealer, self._dealer.accepted(key, connection))

    def _say(self, serial: Any, message: dict[str, Any], connection: Any) -> None:
        member = self._members.get(serial)
        if member is None:
            return
        if connection is None:
            member.link.send(message, _ASKED_TO_LEAVE if message.get("act") == "disconnect" else None)
        else:
            member.link.send_handle(message, "net.Native", connection.fileno(), connection)
        self._flush(member)

    # ---- the channels ----------------------------------------------------------------------------------------
    def _on_readable(self, member: Member) -> None:
        for _ in range(_READS):
            if member.serial not in self._members:
                return
            try:
                size = whole_lines(member.sock, node.READ_SIZE, node.MAX_TEXT + 1)
                packet = recv_packet(member.sock, size, MOST_FDS)
            except OSError:
                self._ended(member)
                return
            if packet is None:
                return
            if not packet.data:
                let_go(packet.fds)
                self._ended(member)
                return
            for event in member.link.feed(packet.data, packet.fds):
                self._take(member, event)
            self._flush(member)

    def _ended(self, member: Member) -> None:
        """It has closed its channel: it leaves, or it is dead. The daemon will say Gone."""
        self._owner.loop.remove(member.sock.fileno())
        member.open, member.leaving = False, True
        self._perform(self._dealer, self._dealer.lost(member.serial))

    def _take(self, member: Member, event: node.Event) -> None:
        match event:
            case node.Message(value=value, handle=given):
                if given is not None:
                    let_go([given.fd])
                self._said(member, value)
            case node.Internal(value=value, handle=given):
                if given is not None:
                    let_go([given.fd])
                self._heard(member, value)
            case node.Sent(token=token) if token is _ASKED_TO_LEAVE:
                member.asked = True
                self._owner.say(d.Empty(member.serial))
            case node.NotReceived(token=connection):
                self._perform(self._dealer, self._dealer.refused(member.serial, connection))
            case node.Stray(fds=fds):
                let_go(fds)
            case node.Malformed(reason=reason) if not member.babbled:
                member.babbled = True
                self._owner.say(d.Trouble(f"a worker said what is no message: {reason}"))
            case _:
                pass

    def _said(self, member: Member, value: Any) -> None:
        """Pass a message on. One too many is dropped: left unread, it would hold up the worker's connections, too."""
        if member.talk.is_left(time.monotonic()):
            member.talk.spend()
            member.too_loud = False
            self._owner.say(d.Said(member.serial, *node.shown(value)))
        elif not member.too_loud:
            member.too_loud = True
            self._owner.say(
                d.Trouble(f"a worker says more than {A_SECOND:g} messages a second: what is more is dropped")
            )

    def _heard(self, member: Member, message: dict[str, Any]) -> None:
        is_answer = isinstance(message.get("ack"), int)
        offered = self._dealer.offered(member.serial, message.get("ack"))
        if offered is not None and member.link.has(offered):
            # the connection would be closed: asked to send it again, we would send what has its number by then
            self._owner.say(
                d.Trouble("a worker answered for a connection that it had not received: its channel is closed")
            )
            with contextlib.suppress(OSError):
                member.sock.shutdown(socket.SHUT_RDWR)
            return
        if not is_answer:  # of those there is one to each connection; no worker asks as often
            if not member.asks.is_left(time.monotonic()) or member.link.backlog > _MOST_UNREAD:
                return
            member.asks.spend()
        if message.get("act") == "queryServer" and not member.leaving:
            query = {name: value for name, value in message.items() if name != "seq"}
            text = json.dumps(query, sort_keys=True)
            if text not in member.queries and len(member.queries) < d.MAX_QUERIES and len(text) < 4096:
                member.queries[text] = query
                self._owner.say(d.Asked(member.serial, text))
        self._perform(self._gate, self._gate.received(member.serial, message))
        if is_answer:
            self._perform(self._dealer, self._dealer.received(member.serial, message))
        elif message.get("act") == "close":
            _forget_query(member, message.get("key"))
            self._perform(self._dealer, self._dealer.received(member.serial, message))
        elif member.open:
            self._let_in(member)

    def _flush(self, member: Member) -> None:
        while (frame := member.link.to_write()) is not None:
            try:
                count = send_whole(member.sock, frame.data, frame.fd)
            except OSError:
                return  # it is gone, which reading says
            if not count:
                self._retry(member)
                return
            for event in member.link.written(count):
                self._take(member, event)

    def _retry(self, member: Member) -> None:
        if member.retrying:
            return
        member.retrying = True

        def again() -> None:
            member.retrying = False
            if self._members.get(member.serial) is member:
                self._flush(member)

        self._owner.loop.later(_RETRY, again)


def _forget_query(member: Member, key: object) -> None:
    """It does not listen on this, or not any more; it may ask again."""
    for text in [t for t, query in member.queries.items() if nc.key_of(query) == key]:
        del member.queries[text]
        member.dealt.discard(text)


def _name_of(listener: socket.socket) -> tuple[str | None, int | None, str | None]:
    if listener.family == socket.AF_UNIX:
        return None, None, None
    host, port = listener.getsockname()[:2]
    return host, port, "IPv6" if listener.family == socket.AF_INET6 else "IPv4"

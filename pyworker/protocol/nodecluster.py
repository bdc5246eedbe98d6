"""Node's cluster, on its channel: what workers ask their primary, and how connections are handed out. docs/node-protocol.md

Sans I/O: `Primary` is fed what workers say and which connections came, and answers with actions: what to open, to send,
to close. The library's primary (cluster/) and the daemon's side carry them out. Connections and workers are opaque to it.

Round robin as Node does it: the workers that have taken their last connection stand in a queue; a connection goes to the
first of them and is kept until it says that it took it. So a worker that hangs has one connection waiting, not all, and
what was offered to a worker that died is offered to the next. When no worker is free nothing is accepted: the rest waits
in the kernel's queue.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections import deque
from collections.abc import Hashable
from typing import Any, Literal

from pyworker.record import field, mutable, record

CMD = "NODE_CLUSTER"
_TEXT_LIMIT = 1024
_MOST_DATA = 4096  # characters of JSON


@record
class Query:
    """What a worker wants to listen on. `port` is None for a Unix path (then `address` is the path)."""

    kind: Literal["tcp4", "tcp6", "any", "unix", "udp4", "udp6"]
    address: str | None
    port: int | None
    backlog: int
    ipv6_only: bool
    reuse_address: bool = False  # a UDP socket that several may bind

    @property
    def is_udp(self) -> bool:
        return self.kind in ("udp4", "udp6")


# ---- what a Primary wants done ---------------------------------------------------------------------
@record
class Open:
    """Bind (and listen, unless it is UDP); then call `opened` or `failed`."""

    key: str
    query: Query
    shared: bool  # workers accept on it themselves: do not


@record
class Close:
    """Nobody listens on this any more."""

    key: str


@record
class Watch:
    """Accept on this one (hand each to `accepted`), or pause."""

    key: str
    on: bool


@record
class Say:
    """Send a message to a worker, with the listener of a key or with a connection (still ours)."""

    worker: Hashable
    message: dict[str, Any]
    listener: str | None = None
    connection: Any = None


@record
class Release:
    """A worker has this connection: close our copy."""

    connection: Any
    worker: Hashable


@record
class Drop:
    """There is no worker for this connection: close it."""

    connection: Any


@record
class Online:
    """The worker runs."""

    worker: Hashable


@record
class Listening:
    """The worker's server listens."""

    worker: Hashable
    address: str | None
    port: int | None
    address_type: int | str  # 4, 6, -1 (Unix), "udp4", "udp6"
    fd: int | None


@record
class Leaving:
    """The worker ends by its own wish or ours: its exit is no crash."""

    worker: Hashable


Action = Open | Close | Watch | Say | Release | Drop | Online | Listening | Leaving


@mutable
class _Waiting:
    connection: Any
    refused: set[Hashable] = field(default_factory=set)


@mutable
class _Server:
    key: str
    query: Query
    shared: bool
    data: Any = None  # the first worker's; Node shares TLS ticket keys by it
    sockname: dict[str, Any] | None = None
    is_open: bool = False
    asking: list[tuple[Hashable, int]] = field(default_factory=list)  # (worker, its seq), while it is being opened
    workers: dict[Hashable, None] = field(default_factory=dict)
    free: dict[Hashable, None] = field(default_factory=dict)  # in the order of their turns; nobody if it is shared
    waiting: deque[_Waiting] = field(default_factory=deque)
    watching: bool = False


class Primary:
    """The listeners of a cluster and who may take the next connection.

    `hold`: a listener outlives its last worker when that died (its successor will ask for it), or when others are
    `expected`; else it is closed, as Node does.
    """

    def __init__(self, *, round_robin: bool = True, hold: bool = False, first_seq: int = 0) -> None:
        self.round_robin = round_robin
        self.hold = hold
        self.expected = False  # workers are starting, or will be
        self._servers: dict[str, _Server] = {}
        self._leaving: set[Hashable] = set()
        self._dying: set[Hashable] = set()  # will be succeeded: what they close is held
        self._seq = itertools.count(first_seq)
        self._offers: dict[int, tuple[Hashable, str, _Waiting]] = {}

    # ---- what happens --------------------------------------------------------------------------------
    def received(self, worker: Hashable, message: dict[str, Any]) -> list[Action]:
        """An internal message of a worker. What is none of cluster's, or malformed, is ignored."""
        if message.get("cmd") != CMD:
            return []
        ack = message.get("ack")
        if isinstance(ack, int):
            return self._answered(worker, ack, accepted=message.get("accepted") is True)
        match message.get("act"):
            case "online":
                return [Online(worker)]
            case "queryServer":
                return self._query(worker, message)
            case "listening":
                return [_listening(worker, message)]
            case "close":
                server = self._servers.get(_text(message.get("key")) or "")
                return self._leave(worker, server, died=worker in self._dying)
            case "exitedAfterDisconnect":
                self._leaving.add(worker)
                return [Leaving(worker), self._say(worker, {"ack": message.get("seq")})]
            case _:
                return []

    def opened(self, key: str, address: str | None, port: int | None, family: str | None) -> list[Action]:
        """The socket of an `Open` is there; a Unix socket has no address."""
        server = self._servers.get(key)
        if server is None:
            return [Close(key)]
        server.is_open = True
        if address is not None:
            server.sockname = {"address": address, "family": family, "port": port}
        actions: list[Action] = []
        asking, server.asking = server.asking, []
        for worker, seq in asking:
            actions += self._admit(worker, server, seq)
        return actions or self._if_unused(server, died=False)

    def failed(self, key: str, errno: int) -> list[Action]:
        """The socket of an `Open` could not be had. The next who asks has another try."""
        server = self._servers.pop(key, None)
        if server is None:
            return []
        reply = {"errno": -abs(errno), "key": key, "data": server.data}
        return [self._say(worker, {**reply, "ack": seq}) for worker, seq in server.asking]

    def accepted(self, key: str, connection: Any) -> list[Action]:
        """A connection came in."""
        server = self._servers.get(key)
        if server is None:
            return [Drop(connection)]
        server.waiting.append(_Waiting(connection))
        return self._distribute(server)

    def refused(self, worker: Hashable, connection: Any) -> list[Action]:
        """A connection could not be handed to this worker: it goes to the next one."""
        for seq, (who, _, waiting) in self._offers.items():
            if who == worker and waiting.connection is connection:
                return self._answered(worker, seq, accepted=False)
        return []

    def offered(self, worker: Hashable, seq: object) -> Any:
        """Return the connection that this answer of a worker would be for, None without one."""
        who, _, waiting = self._offers.get(seq, (None, "", None)) if isinstance(seq, int) else (None, "", None)
        return waiting.connection if waiting is not None and who == worker else None

    def disconnect(self, worker: Hashable) -> list[Action]:
        """Ask a worker to leave: it gets no more connections, what it was offered it may still take."""
        self._leaving.add(worker)
        actions: list[Action] = [self._say(worker, {"act": "disconnect"})]
        for server in list(self._servers.values()):
            actions += self._leave(worker, server, died=False)
        return actions

    def dying(self, worker: Hashable) -> None:
        """A worker has announced its death: what it closes now is held for its successor."""
        self._dying.add(worker)

    def lost(self, worker: Hashable) -> list[Action]:
        """A worker is gone: what it had not taken goes to others."""
        actions: list[Action] = []
        died = worker not in self._leaving
        self._leaving.discard(worker)
        self._dying.discard(worker)
        for seq, (who, key, waiting) in list(self._offers.items()):
            if who == worker:
                del self._offers[seq]
                server = self._servers.get(key)
                if server is None:
                    actions.append(Drop(waiting.connection))
                else:
                    server.waiting.appendleft(waiting)
        for server in list(self._servers.values()):
            server.asking = [asked for asked in server.asking if asked[0] != worker]
            actions += self._leave(worker, server, died=died)
            if server.key in self._servers:
                actions += self._distribute(server)
        return actions

    def forget(self, key: str) -> list[Action]:
        """Nobody listens on this any more, whoever said so."""
        server = self._servers.pop(key, None)
        return [] if server is None else [Close(key), *(Drop(waiting.connection) for waiting in server.waiting)]

    def close(self) -> list[Action]:
        """Close every listener that no worker uses (those that were held)."""
        return [action for server in list(self._servers.values()) for action in self._if_unused(server, died=False)]

    def unanswered(self) -> list[Action]:
        """Return each `Open` again that has been answered neither by `opened` nor by `failed`."""
        return [Open(each.key, each.query, each.shared) for each in self._servers.values() if not each.is_open]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that are listened on."""
        return tuple(self._servers)

    # ---- inside --------------------------------------------------------------------------------------
    def _say(self, worker: Hashable, fields: dict[str, Any], *, listener: str | None = None, offer: Any = None) -> Say:
        seq = next(self._seq)
        if offer is not None:
            self._offers[seq] = (worker, fields["key"], offer)
        connection = offer.connection if offer is not None else None
        return Say(worker, {"cmd": CMD, **fields, "seq": seq}, listener, connection)

    def _query(self, worker: Hashable, message: dict[str, Any]) -> list[Action]:
        if worker in self._leaving:
            return []
        seq = message.get("seq")
        if not isinstance(seq, int):
            return []
        query = parse_query(message)
        key = key_of(message)
        if isinstance(query, int):
            return [self._say(worker, {"errno": -query, "key": key, "ack": seq, "data": None})]
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = _Server(key, query, shared=not self.round_robin or query.is_udp)
            server.data = data_of(message)
            server.asking.append((worker, seq))
            return [Open(key, query, server.shared)]
        if server.data is None:
            server.data = data_of(message)
        if not server.is_open:
            server.asking.append((worker, seq))
            return []
        return self._admit(worker, server, seq)

    def _admit(self, worker: Hashable, server: _Server, seq: int) -> list[Action]:
        if worker in self._leaving:
            return []
        server.workers[worker] = None
        reply = {"errno": 0, "key": server.key, "ack": seq, "data": server.data}
        if server.shared:
            return [self._say(worker, reply, listener=server.key)]
        if server.sockname is not None:
            reply["sockname"] = server.sockname
        answer = self._say(worker, reply)
        server.free[worker] = None
        return [answer, *self._distribute(server)]

    def _distribute(self, server: _Server) -> list[Action]:
        """Offer what waits to those that are free, then say whether more is wanted."""
        actions: list[Action] = []
        while server.waiting:
            waiting = server.waiting[0]
            worker = next((w for w in server.free if w not in waiting.refused), None)
            if worker is None:
                if server.workers and all(w in waiting.refused for w in server.workers):
                    server.waiting.popleft()  # each of them has refused it (maxConnections)
                    actions.append(Drop(waiting.connection))
                    continue
                break
            server.waiting.popleft()
            del server.free[worker]
            actions.append(self._say(worker, {"act": "newconn", "key": server.key}, offer=waiting))
        wanted = bool(server.free) and not server.waiting
        if wanted != server.watching:
            server.watching = wanted
            actions.append(Watch(server.key, wanted))
        return actions

    def _answered(self, worker: Hashable, seq: int, *, accepted: bool) -> list[Action]:
        offer = self._offers.get(seq)
        if offer is None or offer[0] != worker:
            return []
        del self._offers[seq]
        _, key, waiting = offer
        actions: list[Action] = []
        server = self._servers.get(key)
        if accepted:
            actions.append(Release(waiting.connection, worker))
        elif server is None:
            actions.append(Drop(waiting.connection))
        else:
            waiting.refused.add(worker)
            server.waiting.appendleft(waiting)
        if server is not None:
            if worker in server.workers:
                server.free[worker] = None
            actions += self._distribute(server)
        return actions

    def _leave(self, worker: Hashable, server: _Server | None, *, died: bool) -> list[Action]:
        if server is None or worker not in server.workers:
            return []
        del server.workers[worker]
        server.free.pop(worker, None)
        return self._if_unused(server, died=died) or self._distribute(server)

    def _if_unused(self, server: _Server, *, died: bool) -> list[Action]:
        if server.workers or not server.is_open or (self.hold and (died or self.expected)):
            return []
        return self.forget(server.key)


def _listening(worker: Hashable, message: dict[str, Any]) -> Listening:
    kind = message.get("addressType")
    port, fd = message.get("port"), message.get("fd")
    return Listening(
        worker,
        _text(message.get("address")),
        port if isinstance(port, int) else None,
        kind if isinstance(kind, int) or kind in ("udp4", "udp6") else -1,
        fd if isinstance(fd, int) else None,
    )


IPV6_ONLY, _UDP_REUSE = 1, 4  # flags of libuv: UV_TCP_IPV6ONLY (and of UDP), UV_UDP_REUSEADDR


def parse_query(message: dict[str, Any]) -> Query | int:
    """Return what a `queryServer` asks for, or the errno that it deserves."""
    kind, address, port = message.get("addressType"), message.get("address"), message.get("port")
    backlog, flags = message.get("backlog"), message.get("flags")
    backlog = backlog if isinstance(backlog, int) and 0 < backlog < 2**31 else 511
    flags = flags if isinstance(flags, int) else 0
    if message.get("fd") is not None and message.get("fd") != -1:
        return errno.EINVAL  # a number in the primary's table is nothing that a worker may name
    if address is not None and _text(address) is None:
        return errno.ENAMETOOLONG if isinstance(address, str) and len(address) > _TEXT_LIMIT else errno.EINVAL
    is_path = kind == -1 or (isinstance(port, int) and port < 0)
    if address and "\0" in address[is_path:]:  # as the first character it makes the name of an abstract socket
        return errno.EINVAL
    if is_path:
        return Query("unix", address, None, backlog, ipv6_only=False) if address else errno.EINVAL
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        return errno.EINVAL
    only = bool(flags & IPV6_ONLY)
    if kind in ("udp4", "udp6"):
        return Query(kind, address or None, port, backlog, only, reuse_address=bool(flags & _UDP_REUSE))
    if not address:
        return Query("any", None, port, backlog, only)
    return Query("tcp6" if kind == 6 else "tcp4", address, port, backlog, only)


def key_of(message: dict[str, Any]) -> str:
    """Return the name of a listener, put together as Node does (it is the worker's handle on it, too)."""
    names = ("address", "port", "addressType", "fd", "index")
    return ":".join("undefined" if n not in message else _js(message[n]) for n in names)


def data_of(message: dict[str, Any]) -> Any:
    """Return what a worker has its primary keep for the others (keys of TLS tickets); nothing that is too long to be passed on."""
    data = message.get("data")
    return data if len(json.dumps(data)) <= _MOST_DATA else None


def _js(value: Any) -> str:
    return "null" if value is None else str(value)[:_TEXT_LIMIT].encode(errors="replace").decode()


def _text(value: Any) -> str | None:
    """Return a text that may be passed on: none that is too long, or has half a surrogate pair."""
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value

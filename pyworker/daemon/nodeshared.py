"""Daemon: what Node programs listen on: the app's listeners, which they share by Node's own cluster.

`listen(port)` in such a program asks its primary, on the message channel. With `balance = "shared"`, where they accept by
themselves, the daemon is that: nothing is kept, each question is answered from the app's listeners, so the next daemon
answers as this one does. With "round-robin" it is the dispatcher, which asks here for the listener. What may be asked is
protocol/nodecluster.py.
"""

from __future__ import annotations

import errno
import json
import socket
from typing import TYPE_CHECKING, Any

from pyworker.config.address import MAX_LISTENERS, Address, collide, is_numeric
from pyworker.config.check import runs_node
from pyworker.config.schema import AppConfig
from pyworker.daemon.listener import ListenFailed, check_asked
from pyworker.protocol import dispatcher as d
from pyworker.protocol import nodecluster as nc
from pyworker.record import record
from pyworker.unix.files import real_file

if TYPE_CHECKING:
    from pyworker.daemon.app import App, Generation, Listener
    from pyworker.daemon.brain import Brain
    from pyworker.daemon.handles import WorkerHandle

DISCONNECT = {"cmd": nc.CMD, "act": "disconnect"}  # close your servers, finish, close the channel
LISTENING = "listening"  # its `act` when a server is up
_FIRST_LISTEN_FD = 3  # of LISTEN_FDS


@record
class Answer:
    """What the worker is told; the listener is a copy, closed when it has arrived."""

    message: dict[str, Any]
    listener: socket.socket | None


def is_node(config: AppConfig) -> bool:
    """Whether its workers are Node programs that share a port by Node's own cluster."""
    return bool(config.command) and config.balance == "round-robin"


def shares(config: AppConfig) -> bool:
    """Whether its workers are told that they are a cluster's, and get their listeners from the daemon."""
    return config.balance == "shared" and bool(config.bind) and config.ipc is not False and runs_node(config.command)


def answer(brain: Brain, app: App, generation: Generation, question: dict[str, Any]) -> Answer | None:
    """Return what a worker's internal message is answered with, if it wants an answer."""
    seq = question.get("seq")
    if question.get("cmd") != nc.CMD or not isinstance(seq, int):
        return None
    if question.get("act") == "exitedAfterDisconnect":
        return Answer({"cmd": nc.CMD, "ack": seq}, None)
    if question.get("act") != "queryServer":
        return None
    found = _find(brain, app, generation, question)
    reply = {"cmd": nc.CMD, "ack": seq, "key": nc.key_of(question), "data": nc.data_of(question)}
    if isinstance(found, int):
        return Answer({**reply, "errno": -found}, None)
    return Answer({**reply, "errno": 0}, found)


def _find(brain: Brain, app: App, generation: Generation, question: dict[str, Any]) -> socket.socket | int:
    """Return a copy of the socket that is asked for, or an errno."""
    fd = question.get("fd")
    try:
        if isinstance(fd, int) and fd >= 0:  # `listen({fd: 3})`: systemd's convention, which holds as well
            at = fd - _FIRST_LISTEN_FD
            if not 0 <= at < len(generation.listeners):
                return errno.EINVAL
            handed = app.listeners[generation.listeners[at]]
            brain.listening.is_asked_for(app, handed, generation.number)
            return handed.sock.dup()
        query = nc.parse_query(question)
        if isinstance(query, int):
            return query
        if query.is_udp:
            return _udp(query, generation)
        listener, error = listener_for(brain, app, query.kind, query.address or "", query.port or 0)
        if listener is None:
            return error
        brain.listening.is_asked_for(app, listener, generation.number)
        return listener.sock.dup()
    except OSError as failed:
        return failed.errno or errno.EINVAL


def _udp(query: nc.Query, generation: Generation) -> socket.socket | int:
    """A UDP socket is the worker's own, as if it had bound it itself; so it has no right to more than it has itself."""
    port = query.port or 0
    if generation.resolved.uid is not None and 0 < port < 1024:
        return errno.EACCES
    # Node has looked it up; here all apps would wait for the resolver
    if query.address and not is_numeric(query.address):
        return errno.EADDRNOTAVAIL
    family, everywhere = (socket.AF_INET6, "::") if query.kind == "udp6" else (socket.AF_INET, "0.0.0.0")
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if query.reuse_address:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if query.ipv6_only:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((query.address or everywhere, port))
    except (OSError, UnicodeError, ValueError) as failed:
        sock.close()
        return getattr(failed, "errno", None) or errno.EINVAL
    return sock


# ---- what a dispatcher asks for ------------------------------------------------------------------------
def for_whoever_asked(brain: Brain, app: App, message: d.Wants) -> tuple[Listener | None, int]:
    """Return the listener that a dispatcher wants, or an errno."""
    found, error = listener_for(brain, app, message.kind, message.address, message.port)
    if found is not None:
        workers = app.workers.values()
        by = {w.id.generation for w in workers if message.key in [nc.key_of(_question(q)) for q in w.queries]}
        for number in by or set(app.generations):  # what is asked beyond MAX_QUERIES is not known
            brain.listening.is_asked_for(app, found, number)
    return found, error


def note_asked(brain: Brain, app: App, worker: WorkerHandle, text: str) -> None:
    """A Node worker listens on what the dispatcher may have been given for another one."""
    query = nc.parse_query(_question(text))
    if not isinstance(query, int) and not query.is_udp:
        found = _known(brain, app, _address_of(query.kind, query.address or "", query.port or 0))
        if found is not None:
            brain.listening.is_asked_for(app, found, worker.id.generation)


def _question(text: str) -> dict[str, Any]:
    """Return what a Node worker has Asked; {} for what cannot be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- listeners -----------------------------------------------------------------------------------------
def listener_for(brain: Brain, app: App, kind: str, host: str, port: int) -> tuple[Listener | None, int]:
    """A Node worker listens: the listener that is there for it, else a new one; or an errno."""
    generation = app.generations.get(app.target or 0) or app.current
    assert generation is not None
    address = _address_of(kind, host, port)
    found = _known(brain, app, address)
    if found is not None:
        return found, 0
    if len(app.listeners) >= MAX_LISTENERS:
        return None, errno.EMFILE
    try:
        check_asked(address)
        if generation.resolved.uid is not None:
            text = f'with `user` set a program may only listen on what the file names: bind = "{address}"'
            raise ListenFailed(text, hint="add it to bind in the file", code="no_permission")
        return brain.listening.open(app, address, generation), 0
    except ListenFailed as failed:
        brain.note(app, failed.message)
        return None, failed.errno
    except OSError as failed:  # no descriptor is left
        return None, failed.errno or errno.EMFILE


def _known(brain: Brain, app: App, address: Address) -> Listener | None:
    """The listener of this address, else that of its port that `bind` names: it says on which of the machine's addresses.

    Or that beside which there can be none of this address.
    """
    found = brain.listening.find(app, address)
    if found is None and address.port and app.listening:
        named = {i for g in app.generations.values() for i in g.listeners}
        unused = brain.listening.unused(app)
        same_port = [x for x in app.listeners.values() if x.address.port == address.port and x not in unused]
        same_port = [x for x in same_port if x.index in named or collide(x.address, address)]
        found = same_port[0] if len(same_port) == 1 else None
    return found


def _address_of(kind: str, host: str, port: int) -> Address:
    """Return what a Node worker asks to listen on; without an address: all of this machine's."""
    if kind == "unix":
        return Address("unix", path=host if "\0" in host else real_file(host))  # as it is of `bind`
    if kind == "tcp6":
        return Address("inet6", host, port)
    return Address("inet", host if kind == "tcp4" else "0.0.0.0", port)

"""Daemon: Node programs that accept by themselves (`balance = "shared"`) share the app's listeners by Node's own cluster.

`listen(port)` in such a program asks its primary, which the daemon is here, on the message channel. Nothing is kept: each
question is answered from the app's listeners, so the next daemon answers as this one does. What may be asked is
protocol/nodecluster.py; with `balance = "round-robin"` the dispatcher answers instead.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from pyworker.config.address import is_numeric
from pyworker.config.check import runs_node
from pyworker.config.schema import AppConfig
from pyworker.protocol import nodecluster as nc
from pyworker.record import record

if TYPE_CHECKING:
    from pyworker.daemon.app import App, Generation
    from pyworker.daemon.brain import Brain

DISCONNECT = {"cmd": nc.CMD, "act": "disconnect"}  # close your servers, finish, close the channel
LISTENING = "listening"  # its `act` when a server is up
_FIRST_LISTEN_FD = 3  # of LISTEN_FDS


@record
class Answer:
    """What the worker is told; the listener is a copy, closed when it has arrived."""

    message: dict[str, Any]
    listener: socket.socket | None


def shares(config: AppConfig) -> bool:
    """Whether its workers are told that they are a cluster's, and get their listeners from the daemon."""
    return config.balance == "shared" and bool(config.bind) and config.ipc is not False and runs_node(config)


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
        listener, error = brain.dispatchers.listener_for(app, query.kind, query.address or "", query.port or 0)
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

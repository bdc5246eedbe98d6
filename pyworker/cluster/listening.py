"""What workers ask to listen on, bound by their primary."""

from __future__ import annotations

import dataclasses
import errno
import socket

from pyworker.protocol.nodecluster import Query


def open_listener(query: Query) -> socket.socket:
    """Bind (and listen on) what a worker has asked for; OSError says why not."""
    kind = socket.SOCK_DGRAM if query.is_udp else socket.SOCK_STREAM
    if query.kind == "unix":
        sock = socket.socket(socket.AF_UNIX, kind)
    else:
        v6 = query.kind in ("tcp6", "udp6") or query.kind == "any"
        try:
            sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind)
        except OSError:
            if query.kind != "any":
                raise
            return open_listener(dataclasses.replace(query, kind="tcp4", address="0.0.0.0"))
    try:
        # O_NONBLOCK belongs to all who share it. Listeners are waited for; how a UDP socket is read is the program's choice.
        sock.setblocking(query.is_udp)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(query.ipv6_only))
        if query.kind == "unix":
            sock.bind(str(query.address))
        else:
            if not query.is_udp or query.reuse_address:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            everywhere = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"
            sock.bind((query.address or everywhere, query.port))
        if not query.is_udp:
            sock.listen(query.backlog)
    except BaseException as error:
        sock.close()
        without_v6 = isinstance(error, OSError) and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
        if without_v6 and query.kind == "any" and sock.family == socket.AF_INET6:
            return open_listener(dataclasses.replace(query, kind="tcp4", address="0.0.0.0"))
        raise
    return sock

"""What may travel over a channel besides a message: sockets and files, and how Node calls them."""

from __future__ import annotations

import asyncio.trsock
import contextlib
import fcntl
import io
import os
import socket
import stat
from typing import Any, NamedTuple, TypeAlias

from pyworker.protocol import node

FILE = "pyworker.File"  # a kind of our own: Node has no way to send a file
OTHER = "pyworker.Socket"  # sockets that Node has no name for (Unix datagrams)

Sendable: TypeAlias = "socket.socket | asyncio.trsock.TransportSocket | io.IOBase | Any"
Received: TypeAlias = "socket.socket | io.FileIO"


class Kind(NamedTuple):
    """How a handle is announced."""

    name: str
    notes: dict[str, Any]


def kind_of(handle: Any) -> Kind:
    """Return how a socket or file is announced; TypeError for what cannot travel."""
    if isinstance(handle, (socket.socket, asyncio.trsock.TransportSocket)):
        if handle.fileno() < 0:
            raise ValueError("this socket is closed")
        if handle.type == socket.SOCK_STREAM:
            listening = handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if not listening and hasattr(handle, "do_handshake"):  # ssl.SSLSocket, without importing ssl for it
                raise TypeError("a TLS connection cannot be sent, its keys stay here: send it before it is wrapped")
            return Kind("net.Server" if listening else "net.Socket", {})
        if handle.type == socket.SOCK_DGRAM and handle.family in (socket.AF_INET, socket.AF_INET6):
            return Kind("dgram.Socket", {"dgramType": "udp4" if handle.family == socket.AF_INET else "udp6"})
        return Kind(OTHER, {})
    if isinstance(handle, io.IOBase):
        handle.fileno()  # io.UnsupportedOperation (an OSError and ValueError) for one that has no descriptor
        return Kind(FILE, {})
    raise TypeError(f"a {type(handle).__name__} cannot be sent: only sockets and open files can")


def close(handle: Any) -> None:
    """Close the sender's copy, once the receiver has its own."""
    if isinstance(handle, (socket.socket, io.IOBase)):
        with contextlib.suppress(OSError):
            handle.close()


def received(handle: node.Handle) -> Received | None:
    """Return the socket or file of a descriptor that came; None (and closed) for what is neither.

    A listener or UDP socket may be shared, and O_NONBLOCK belongs to all who share it: the object is non-blocking when
    the descriptor is. A connection is ours alone and starts like an accepted one: blocking, by the default time-out.
    """
    try:
        flags = fcntl.fcntl(handle.fd, fcntl.F_GETFL)
        if not stat.S_ISSOCK(os.fstat(handle.fd).st_mode):
            mode = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "rb+"}[flags & os.O_ACCMODE]
            return io.FileIO(handle.fd, mode)
        sock = socket.socket(fileno=handle.fd)
    except (OSError, KeyError, ValueError):
        with contextlib.suppress(OSError):
            os.close(handle.fd)
        return None
    with contextlib.suppress(OSError):
        if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.settimeout(socket.getdefaulttimeout())
        elif flags & os.O_NONBLOCK:
            sock.setblocking(False)
    return sock

"""Who has the other end of a Unix socket, by the kernel's word."""

from __future__ import annotations

import socket
import struct

# struct ucred: pid, uid, gid; as a signed number a user beyond 2**31 would be another
CREDENTIALS = struct.Struct("iII")


def peer(sock: socket.socket) -> tuple[int, int]:
    """Return pid and uid of who has connected, or of who began to listen; pid 0: of a pid namespace that is not seen here."""
    pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid

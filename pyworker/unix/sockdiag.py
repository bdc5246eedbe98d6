"""How many connections wait on a listening Unix socket: asked of the kernel over netlink (sock_diag(7))."""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_ANY_STATE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # length type flags seq pid
_REQUEST = struct.Struct("=BBHIIIII")  # family protocol pad states inode show cookie cookie
_ANSWER = struct.Struct("=BBBBIII")  # family type state pad inode cookie cookie
_ATTRIBUTE = struct.Struct("=HH")
_RQLEN = struct.Struct("=II")


def unix_queue(listener: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait to be accepted and how many may; None where the kernel does not say."""
    inode = os.fstat(listener.fileno()).st_ino & 0xFFFFFFFF
    wanted = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _UDIAG_SHOW_RQLEN, 0xFFFFFFFF, 0xFFFFFFFF)
    packet = _HEADER.pack(_HEADER.size + len(wanted), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + wanted
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(0.2)  # the kernel answers in the call; this is for one that does not
            netlink.send(packet)
            return parse_queue(netlink.recv(8192), inode)
    except OSError:  # no such netlink family here, or a filter of system calls
        return None


def parse_queue(answer: bytes, inode: int) -> tuple[int, int] | None:
    """Return the two lengths in the kernel's answer; None if it is an error or about another socket."""
    if len(answer) < _HEADER.size + _ANSWER.size or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    if _ANSWER.unpack_from(answer, _HEADER.size)[4] != inode:
        return None
    at = _HEADER.size + _ANSWER.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if length < _ATTRIBUTE.size or at + length > len(answer):
            return None
        if kind == _UNIX_DIAG_RQLEN and length >= _ATTRIBUTE.size + _RQLEN.size:
            waiting, limit = _RQLEN.unpack_from(answer, at + _ATTRIBUTE.size)
            return waiting, limit
        at += (length + 3) & ~3
    return None

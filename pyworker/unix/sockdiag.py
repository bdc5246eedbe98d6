"""Listening Unix sockets: how many connections wait, and which one has a file; asked of the kernel over netlink (sock_diag(7))."""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_LISTEN = 1 << 10  # TCP_LISTEN, of Unix sockets too
_UDIAG_SHOW_VFS = 2
_UNIX_DIAG_VFS = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_ANY_STATE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # length type flags seq pid
_REQUEST = struct.Struct("=BBHIIIII")  # family protocol pad states inode show cookie cookie
_ANSWER = struct.Struct("=BBBBIII")  # family type state pad inode cookie cookie
_ATTRIBUTE = struct.Struct("=HH")
_RQLEN = _VFS = struct.Struct("=II")


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


def listening_inode(file: os.stat_result) -> int:
    """Return the inode of the socket that listens at a socket file; 0 where there is none, or the kernel does not say."""
    place = file.st_ino & 0xFFFFFFFF, os.major(file.st_dev) << 20 | os.minor(file.st_dev)  # as the kernel has it
    wanted = _REQUEST.pack(socket.AF_UNIX, 0, 0, _LISTEN, 0, _UDIAG_SHOW_VFS, 0, 0)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    packet = _HEADER.pack(_HEADER.size + len(wanted), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + wanted
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(0.2)
            netlink.send(packet)
            while True:
                answer, at = netlink.recv(65536), 0
                while at + _HEADER.size <= len(answer):
                    length, kind, *_ = _HEADER.unpack_from(answer, at)
                    # it was the last, or an error
                    if kind != _SOCK_DIAG_BY_FAMILY or length < _HEADER.size + _ANSWER.size:
                        return 0
                    message, at = answer[at : at + length], at + ((length + 3) & ~3)
                    if (found := _attribute(message, _UNIX_DIAG_VFS, _VFS)) is not None and found == place:
                        return int(_ANSWER.unpack_from(message, _HEADER.size)[4])
    except OSError:
        return 0


def parse_queue(answer: bytes, inode: int) -> tuple[int, int] | None:
    """Return the two lengths in the kernel's answer; None if it is an error or about another socket."""
    if len(answer) < _HEADER.size + _ANSWER.size or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    if _ANSWER.unpack_from(answer, _HEADER.size)[4] != inode:
        return None
    return _attribute(answer, _UNIX_DIAG_RQLEN, _RQLEN)


def _attribute(message: bytes, wanted: int, form: struct.Struct) -> tuple[int, int] | None:
    """Return the two numbers of an attribute; None where it is missing or cut."""
    at = _HEADER.size + _ANSWER.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size or at + length > len(message):
            return None
        if kind == wanted and length >= _ATTRIBUTE.size + form.size:
            first, second = form.unpack_from(message, at + _ATTRIBUTE.size)
            return first, second
        at += (length + 3) & ~3
    return None

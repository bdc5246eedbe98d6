"""File descriptors that travel: SCM_RIGHTS, memfds, close-on-exec."""

from __future__ import annotations

import _socket
import array
import contextlib
import errno
import fcntl
import functools
import os
import resource
import select
import socket
import sys
import termios
from typing import NamedTuple

from pyworker.errors import WANTING
from pyworker.unix.peer import CREDENTIALS
from pyworker.unix.ready import new_poll, ready

Socket = socket.socket  # an app may put a class of its own there later, for which ours are no sockets (PySocks)
SO_PASSRIGHTS = 83  # since Linux 6.16
MOST_FDS = 253  # that come with one packet (SCM_MAX_FD)
_AGAIN_MS = 50  # until a packet is sent again that there was no memory for
_INT = array.array("i").itemsize
# ints: an operation on the enum's members takes as long as a system call
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_ONE_BUFFER = 32 * 1024  # bytes of a stream that the kernel takes whole or not at all (UNIX_SKB_FRAGS_SZ)
_RIGHTS = int(socket.SCM_RIGHTS)
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)


class Packet(NamedTuple):
    """What one recvmsg returned. The receiver owns `fds` (all close-on-exec)."""

    data: bytes
    fds: list[int]
    pid: int  # of the sender by the kernel's word (0 unless SO_PASSCRED is set)
    truncated: bool  # data or fds were cut (MSG_TRUNC, MSG_CTRUNC): a peer out of protocol, or we are out of fds
    uid: int = -1  # of the sender, as its pid


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Return a non-blocking SOCK_SEQPACKET pair, both ends close-on-exec."""
    pair = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, theirs = (Socket(fileno=each.detach()) for each in pair)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def pass_credentials(sock: socket.socket) -> None:
    """Ask the kernel to name the sender of each packet."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def refuse_fds(sock: socket.socket) -> None:
    """Have the kernel refuse the fds that a peer would send; an older one closes them when the bytes are read."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)


def send_packet(sock: socket.socket, data: bytes, fds: tuple[int, ...] | list[int] = ()) -> bool:
    """Send one packet without blocking; False when the peer's buffer is full. A dead peer is an OSError.

    fds stay the caller's: close them when they are not needed here any more.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([data], ancillary, _SEND)
    except BlockingIOError:
        return False
    return True


def send_surely(sock: socket.socket, data: bytes) -> bool:
    """Send one packet, waiting for a peer that does not read and for memory that is not there just now; False: it is gone."""
    while True:
        try:
            if send_packet(sock, data):
                return True
            ready(sock.fileno(), select.POLLOUT, None)
        except OSError as error:
            if error.errno not in WANTING:
                return False
            new_poll().poll(_AGAIN_MS)


def send_some(sock: socket.socket, data: bytes | memoryview, fd: int = -1) -> int:
    """Send what fits of a stream's next bytes, with an fd on the first of them; 0 when the buffer is full."""
    gone: list[int] = []
    send_into(gone, sock, data, fd)
    return gone[0] if gone else 0


def send_into(gone: list[int], sock: socket.socket, data: bytes | memoryview, fd: int = -1) -> None:
    """As send_some, but the number is added to `gone`; nothing is when the buffer is full.

    It is there as soon as the bytes have gone: `extend` is C, and the handler of a signal, which may raise, runs after it.
    """
    try:
        if fd < 0:
            gone.extend(map(sock.send, (data,), (_SEND,)))
        else:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            gone.extend(map(sock.sendmsg, ((data,),), (rights,), (_SEND,)))
    except BlockingIOError:
        pass
    except OSError as error:
        # else too many descriptors of this user are under way, or no memory now: room comes as the peers take them
        if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
            raise


def send_whole(sock: socket.socket, data: bytes | memoryview, fd: int = -1) -> int:
    """As send_some, but data of up to 64 KiB is begun only when there is room for all of it.

    Whoever is killed after a part has gone leaves half a line to the next owner of the socket, who cannot know.
    """
    if len(data) > _ONE_BUFFER and not _has_room(sock):
        return 0
    return send_some(sock, data, fd)


def _has_room(sock: socket.socket) -> bool:
    """Whether two buffers are taken now: the kernel takes one, however large, where not all of the socket's 208 KiB are used.

    That there is room is told when three quarters of them are free, which is later.
    """
    if ready(sock.fileno(), select.POLLOUT):
        return True
    used = int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT)), sys.byteorder)
    return used + 2 * _ONE_BUFFER < sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def whole_lines(sock: socket.socket, size: int, longest: int) -> int:
    """Return how much to receive of a stream of lines: of at most `size` all that are whole, else one of at most `longest`.

    Whoever is killed after a part was received leaves the rest to the next owner of the socket, as above. A line whose end
    has not come is received as far as it has: nothing tells when there is more of it.
    """
    with contextlib.suppress(OSError):  # nothing is there, or its end
        whole = sock.recv(size, _PEEK).rfind(b"\n") + 1 or sock.recv(longest, _PEEK).find(b"\n") + 1
        return whole or size
    return size


def recv_packet(sock: socket.socket, size: int, max_fds: int) -> Packet | None:
    """Receive one packet; None when there is none now. Empty data with no fds is end-of-file.

    With `max_fds` 0 all that come are closed here: the kernel's way to close what there is no room for may wait (`let_go`).
    Never socket.recv_fds: it ignores its flags argument, so the fds it returns leak into children.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(size, _room(max_fds), _RECEIVE)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        # The peer died before it had read all that we sent. What it had said before that is still there.
        return recv_packet(sock, size, max_fds)
    if not ancillary and not flags & _CUT:
        return Packet(data, [], 0, False)
    if len(ancillary) == 1 and max_fds and not flags & _CUT:  # one descriptor, as connections come
        level, kind, payload = ancillary[0]
        if kind == _RIGHTS and len(payload) == _INT and level == socket.SOL_SOCKET:
            return Packet(data, [int.from_bytes(payload, sys.byteorder)], 0, False)
    fds: list[int] = []
    pid, uid = 0, -1
    for level, kind, payload in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(payload[: len(payload) - len(payload) % _INT])
            fds.extend(received)
        elif kind == socket.SCM_CREDENTIALS and len(payload) >= CREDENTIALS.size:
            pid, uid, _ = CREDENTIALS.unpack_from(payload)
    extra = fds[max_fds:]
    let_go(extra)
    cut = bool(flags & _CUT) or bool(extra)
    return Packet(data, fds[:max_fds], pid, cut, uid)


def recv_surely(sock: socket.socket, size: int, max_fds: int) -> Packet:
    """Receive one packet as `recv_packet` does, waiting for it."""
    while (packet := recv_packet(sock, size, max_fds)) is None:
        ready(sock.fileno(), select.POLLIN, None)
    return packet


def peek_packet(sock: socket.socket, size: int) -> Packet | None:
    """Return the next packet, which stays there, as do the fds that came with it (`truncated`); None when there is none now.

    The socket has SO_PASSCRED.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(CREDENTIALS.size), _PEEK)
    except BlockingIOError:
        return None
    except ConnectionResetError:  # as above
        return peek_packet(sock, size)
    pid, uid, _ = CREDENTIALS.unpack_from(ancillary[0][2]) if ancillary else (0, -1, -1)
    return Packet(data, [], pid, bool(flags & socket.MSG_CTRUNC), uid)


def drop_packet(sock: socket.socket | None) -> None:
    """Take away the packet that was peeked at."""
    if sock is not None and sock.fileno() >= 0:
        recv_packet(sock, 1, 0)


@functools.cache
def _room(max_fds: int) -> int:
    return socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE((max_fds or MOST_FDS) * _INT)


def let_go(fds: list[int] | tuple[int, ...]) -> None:
    """Close what a stranger has sent. Whoever closes a socket last waits until its data has gone, if SO_LINGER says so."""
    for fd in fds:
        with contextlib.suppress(OSError):  # it is no socket
            sock = Socket(fileno=fd)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            sock.detach()
    close_all(fds)


def hang_up(sock: socket.socket) -> None:
    """Close our end of a channel with a stranger. No copy of it has anything left, least of all fds, to be let go of."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RD)
        while (packet := recv_packet(sock, 1 << 16, 0)) and (packet.data or packet.pid or packet.truncated):
            pass
    sock.close()


def unread(sock: socket.socket) -> int:
    """Return more than 0 while the peer has not received all that was sent on a Unix socket (SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def at_end(pipe: int) -> bool:
    """True for a pipe that nobody can write to any more and that is empty."""
    return ready(pipe, select.POLLIN) & (select.POLLHUP | select.POLLIN) == select.POLLHUP


def close_all(fds: list[int] | tuple[int, ...]) -> None:
    """Close fds; one that is closed already, or none (-1), is no error."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def keep_from_exec() -> None:
    """Let no fd but stdin, stdout and stderr survive an exec, wherever it came from."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the fd of the listing itself
                os.set_inheritable(int(name), False)


def memfd(name: str, content: bytes | bytearray, *, seal: bool = True) -> int:
    """Return a close-on-exec memfd with this content, by default sealed against every change."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if seal:
            fcntl.fcntl(
                fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            )
    except OSError as error:
        os.close(fd)
        raise as_of_memory(error) from None
    return fd


def as_of_memory(error: OSError) -> OSError:
    """Return an error of a memfd. "No space left" is no disk's: the kernel says so of memory under vm.overcommit_memory = 2."""
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) if error.errno == errno.ENOSPC else error


def memfd_fixed(name: str, size: int) -> int:
    """Return a zeroed memfd whose size can never change: no mapping of it has a page beyond its end, which is a SIGBUS.

    It has no memory yet. Where the kernel may have none to give (vm.overcommit_memory = 2), a page that nobody has
    allocated (`allocate`) is a SIGBUS, too.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def allocate(memfd: int, offset: int, size: int) -> None:
    """Have a part of a memfd in memory before a mapping of it is touched there; raises OSError."""
    try:
        os.posix_fallocate(memfd, offset, size)
    except OSError as error:
        raise as_of_memory(error) from None


def read_whole(fd: int) -> bytes:
    """Return the content of a regular file or memfd from its start, whatever its offset is."""
    size = os.fstat(fd).st_size
    parts = []
    offset = 0
    while offset < size:
        part = os.pread(fd, size - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def raise_nofile() -> tuple[int, int]:
    """Raise the soft limit of open files to the hard one; return the limits as they were."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before

"""Daemon: listening sockets. Made here, once, with every option they will ever have: all that share one share those.

Fails in words: who has the port, which right is missing, which address this machine lacks. Accepts nothing. A
listener is ended by `shut_down`, never by close alone: the guardian and every worker hold copies.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import shlex
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any, Self

from pyworker.config.address import EVERY, Address, is_numeric
from pyworker.daemon import owner
from pyworker.daemon.shortage import step_for
from pyworker.errors import PyworkerError
from pyworker.record import replace
from pyworker.unix.sockdiag import unix_queue

# Any local user may connect, as to a port on 127.0.0.1. Who wants less sets `umask`, or takes a folder that is closed.
UNIX_MODE = 0o666
_TCP_INFO_QUEUE = struct.Struct("=24xII")  # of struct tcp_info, linux/tcp.h: tcpi_unacked, tcpi_sacked
_UNPRIVILEGED = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


class ListenFailed(PyworkerError):
    """An address that cannot be listened on. code: port_in_use, no_permission, bad_address or failed."""

    @property
    def errno(self) -> int:
        """What a program that asked for the address is told."""
        return {"port_in_use": errno.EADDRINUSE, "no_permission": errno.EACCES}.get(self.code, errno.EADDRNOTAVAIL)


def open_listener(
    address: Address,
    *,
    backlog: int = 2048,
    mode: int = UNIX_MODE,
    uid: int = -1,
    gid: int = -1,
    own: Callable[[owner.Owner], str] = lambda _: "",
) -> socket.socket:
    """Return a non-blocking listener; the caller owns it. Raise ListenFailed, or OSError for want of a descriptor.

    mode, uid and gid are of a Unix socket's file. `own` returns the app of this pyworker that an
    owner is, or is one of, "" when it is none, for the message. A host name is resolved by the system's resolver, which may take its time.
    """
    if address.family == "unix":
        return _open_unix(address, backlog, mode, uid, gid, own)
    family, host = _resolve(address)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it, so no worker has to set it for each.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(_in_full(host, address.port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _explain(address, host, error, own) from None
    return sock


def check_asked(address: Address) -> None:
    """Raise ListenFailed for what a worker may ask to listen on, and is never opened for it."""
    if not 0 <= address.port <= 65535:  # else Python would refuse it in a way that nobody expects, and the worker wait
        raise ListenFailed(f"cannot listen on {address}: no port has that number", code="bad_address")
    if "\0" in address.path:
        text = f"cannot listen on {address.path!r}: an abstract Unix socket"
        raise ListenFailed(text, hint="name a file", code="bad_address")
    # the worker has looked it up; here all apps would wait for that
    if address.host and not is_numeric(address.host):
        raise ListenFailed(f"cannot listen on {address}: no IP address", hint="name one", code="bad_address")


def inode(listener: socket.socket) -> int:
    """Return what identifies the socket in /proc, the same for every copy of it."""
    return os.fstat(listener.fileno()).st_ino


def actual(address: Address, listener: socket.socket) -> Address:
    """Return the address with the port the kernel chose, if it was asked to choose one."""
    if address.family == "unix" or address.port:
        return address
    return replace(address, port=listener.getsockname()[1])


def bound_to(listener: socket.socket) -> Address:
    """Return the address by the kernel's word: a host name has been looked up, and a port chosen for 0."""
    local = listener.getsockname()
    if isinstance(local, str):
        return Address("unix", path=local)
    return Address("inet6" if listener.family == socket.AF_INET6 else "inet", local[0], local[1])


def looked_up(address: Address) -> Address:
    """Return the address with a number for its host. Raise ListenFailed for a name that nobody knows."""
    if not address.host or is_numeric(address.host):
        return address
    family, host = _resolve(address)
    return Address("inet6" if family == socket.AF_INET6 else "inet", host, address.port)


def url(address: Address, tls: bool = False) -> str:
    """Return what `ps` shows: "http://127.0.0.1:8000" or "unix:/run/api.sock"."""
    if address.family == "unix":
        return str(address)
    return f"{'https' if tls else 'http'}://{address}"


def queue_depth(listener: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait to be accepted, and how many may; None where the kernel does not say."""
    if listener.family == socket.AF_UNIX:
        return unix_queue(listener)
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_QUEUE.size)
    waiting, limit = _TCP_INFO_QUEUE.unpack(info)
    return waiting, limit


def nobody_waits(listener: socket.socket) -> bool:
    """True when no connection waits to be accepted: nobody would be reset by `shut_down`."""
    depth = queue_depth(listener)
    return depth is not None and depth[0] == 0


def shut_down(listener: socket.socket, address: Address) -> None:
    """Refuse connections from now on, whoever still holds a copy, and remove a Unix socket's file. Does not close."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RD)
    if address.family == "unix":
        with contextlib.suppress(OSError), _Folder(address.path) as folder:
            if folder.is_stale():
                os.unlink(folder.name, dir_fd=folder.fd)


def has_no_file(address: Address) -> bool:
    """True for a Unix socket whose file was removed: nobody can connect any more."""
    return address.family == "unix" and not os.path.lexists(address.path)


def has_no_address(listener: socket.socket) -> bool:
    """True while this machine lacks the address: an interface that is down, or has got another one."""
    if listener.family == socket.AF_UNIX:
        return False
    host, _, *scope = listener.getsockname()
    if host in (*EVERY, "127.0.0.1", "::1"):  # those of most apps, and always there
        return False
    with contextlib.suppress(OSError), socket.socket(listener.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host.partition("%")[0], 0, *scope))
        except OSError as error:
            return error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV)
    return False


def is_listening(listener: socket.socket) -> bool:
    """False for one of TCP after `shut_down`; a Unix socket's does not show it."""
    return listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def listen_again(listener: socket.socket, backlog: int) -> None:
    """Take back `shut_down` of a TCP listener, whose port is still its own."""
    if not is_listening(listener):
        with contextlib.suppress(OSError):  # somebody else listens there now
            # shut twice, it has every connection to come end as it is accepted: the kernel forgets that when it is shut
            # while it listens
            listener.listen(backlog)
            listener.shutdown(socket.SHUT_RD)
            listener.listen(backlog)


# ---- Unix sockets ----------------------------------------------------------------------------------
class _Folder:
    """The folder of a socket file, by fd: paths longer than sun_path work, and nobody swaps the folder under us."""

    def __init__(self, path: str) -> None:
        parent, self.name = os.path.split(path)
        self.fd = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def path(self, name: str) -> str:
        """Return a path that is short enough for the kernel however deep the folder is."""
        return f"/proc/self/fd/{self.fd}/{name}"

    def connect(self, probe: socket.socket) -> int:
        """Connect to the socket of our name, which may itself be as long as a path; return the error, 0 for none."""
        try:
            fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return errno.ENOENT
        try:
            return probe.connect_ex(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def is_stale(self) -> bool:
        """True for a socket file that nobody listens on."""
        if not stat.S_ISSOCK(os.stat(self.name, dir_fd=self.fd, follow_symlinks=False).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            return self.connect(probe) == errno.ECONNREFUSED


def _open_unix(
    address: Address, backlog: int, mode: int, uid: int, gid: int, own: Callable[[owner.Owner], str]
) -> socket.socket:
    try:
        folder = _Folder(address.path)
    except OSError as error:
        raise _explain_unix(address, error) from None
    with folder:
        _check_free(folder, address, own)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        temporary = f".{os.urandom(4).hex()}"
        try:
            sock.bind(folder.path(temporary))
            # Set before the name can be found, so that nobody meets a socket with the wrong rights or without a queue.
            _give(folder, temporary, mode, uid, gid)
            sock.listen(backlog)
            os.replace(temporary, folder.name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        except OSError as error:
            sock.close()
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder.fd)
            raise _explain_unix(address, error) from None
    return sock


def _give(folder: _Folder, name: str, mode: int, uid: int, gid: int) -> None:
    """Set mode and owner of a socket file, and of nothing else: who may write to the folder could have put a link there."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise PermissionError(errno.EPERM, "it was replaced")
        os.chmod(f"/proc/self/fd/{fd}", mode)
        if uid != -1 or gid != -1:
            os.chown(f"/proc/self/fd/{fd}", uid, gid)
    finally:
        os.close(fd)


def _check_free(folder: _Folder, address: Address, own: Callable[[owner.Owner], str]) -> None:
    """Raise ListenFailed unless the name is free, or taken by a socket that nobody listens on."""
    try:
        if folder.is_stale():
            return
        file = os.stat(folder.name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _explain_unix(address, error) from None
    if not stat.S_ISSOCK(file.st_mode):
        message = f"cannot listen on {address}: there is a file of that name, and it is no socket"
        raise ListenFailed(message, hint="remove it, or choose another path", code="port_in_use")
    by, step = "", "stop that program"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        failure = folder.connect(probe)
        if failure == 0:
            by, step = _by_whom(owner.of_unix(probe, file), own)
    if failure == errno.ENOENT:  # removed this moment
        return
    if failure == errno.EACCES:
        message = f"cannot listen on {address}: there is a socket of that name, and this user may not connect to it"
        hint = f"stop the program that listens there; if none does any more: rm {shlex.quote(address.path)}"
        raise ListenFailed(message, hint=hint, code="port_in_use")
    message = f"cannot listen on {address}: already in use{by}"
    raise ListenFailed(message, hint=f"{step}, or choose another path", code="port_in_use")


def _explain_unix(address: Address, error: OSError) -> ListenFailed:
    if step_for(error.errno):  # no fault of the address
        raise error
    folder = os.path.dirname(address.path)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            message, code = f"there is no folder {folder}", "bad_address"
            hint = f"make it: mkdir -p {shlex.quote(folder)}"
        case errno.EROFS:
            message, code = f"{folder} can only be read: {error.strerror}", "no_permission"
            hint = "choose another folder"
        case errno.EACCES | errno.EPERM:
            message, code = f"no right to make a socket in {folder}", "no_permission"
            hint = "choose a folder that this user may write to"
        case _:
            message, hint, code = (error.strerror or str(error)), "choose another path", "failed"
    return ListenFailed(f"cannot listen on {address}: {message}", hint=hint, code=code)


# ---- TCP -------------------------------------------------------------------------------------------
def _resolve(address: Address) -> tuple[int, str]:
    if address.family == "inet6":
        return socket.AF_INET6, address.host
    try:
        found = socket.getaddrinfo(_asked(address.host), address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        message = f"cannot listen on {address}: the host name is not known ({error})"
        raise ListenFailed(message, hint=f'use an address: "127.0.0.1:{address.port}"', code="bad_address") from None
    family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # IPv4 first: like "host:port"
    return family, str(where[0])


def _asked(host: str) -> str | bytes:
    """Return a host for `getaddrinfo`. For text Python imports a codec, and never again once that has failed for want of a
    descriptor or of memory: each start was refused until the daemon ended."""
    return host.encode() if host.isascii() else host


def _in_full(host: str, port: int) -> tuple[Any, ...]:
    """Return the address for `bind`, which would not look at the interface of "fe80::1%eth0"."""
    if "%" not in host:
        return host, port
    flags = socket.AI_NUMERICHOST
    return socket.getaddrinfo(_asked(host), port, socket.AF_INET6, socket.SOCK_STREAM, flags=flags)[0][4]


def _explain(address: Address, host: str, error: OSError, own: Callable[[owner.Owner], str]) -> ListenFailed:
    code = "bad_address"
    name, _, interface = host.partition("%")
    match error.errno:
        case socket.EAI_NONAME if interface and not ipaddress.ip_address(name).is_link_local:
            message = f"{name} is no address of one network interface: those begin with fe80:"
            hint = f'leave that out: bind = "{replace(address, host=name)}"'
        case socket.EAI_NONAME if interface:
            message = f"this machine has no network interface {interface}"
            hint = "ip -brief link   shows those that it has"
        case errno.EINVAL if name.startswith("fe80:") and not interface:
            message = "such an address is another one on each network interface"
            hint = f'name the interface: bind = "{replace(address, host=f"{name}%eth0")}"'
        case errno.EADDRINUSE:
            return _in_use(address, host, own)
        case errno.EACCES | errno.EPERM:
            code = "no_permission"
            first = _first_free_for_all()
            message = f"ports below {first} are for root"
            hint = (
                f'choose another port, for example "{replace(address, port=8000)}" behind a proxy, '
                f"or allow it: sysctl net.ipv4.ip_unprivileged_port_start={address.port}"
            )
            if address.port >= first:
                message, hint = "this is not permitted here", "ask who runs this machine (a security policy forbids it)"
        case errno.EADDRNOTAVAIL:
            message = f"this machine has no address {host}"
            every = replace(address, host="::" if address.family == "inet6" else "0.0.0.0")
            hint = f'to listen on all of them: bind = "{every}"'
        case errno.EAFNOSUPPORT:
            message, hint = "IPv6 is switched off on this machine", f'use IPv4: bind = "127.0.0.1:{address.port}"'
        case _:
            message, hint, code = (error.strerror or str(error)), "choose another address", "failed"
    return ListenFailed(f"cannot listen on {address}: {message}", hint=hint, code=code)


def _in_use(address: Address, host: str, own: Callable[[owner.Owner], str]) -> ListenFailed:
    found = owner.of_port(host, address.port)
    by, step = _by_whom(found, own) if found is not None else ("", "stop that program")
    other = _free_port(address, host)
    elsewhere = f', or choose another address: bind = "{replace(address, port=other)}"' if other else ""
    message = f"cannot listen on {address}: already in use{by}"
    return ListenFailed(message, hint=step + elsewhere, code="port_in_use")


def _by_whom(found: owner.Owner, own: Callable[[owner.Owner], str]) -> tuple[str, str]:
    """Return a line that says who listens there, and how that is ended."""
    if app := own(found):
        return f"\n  by your app {app}", f"stop it (pyworker stop {app})"
    by = f"\n  {found.sentence()}"
    guardian = owner.guardian_of(found)  # it keeps the ports of its apps: a kill frees none of them
    if not guardian:
        return by, f"stop it ({owner.stopped_by(found.pid)})" if found.pid else "stop that program"
    home, is_gone = owner.home_of(guardian)
    if is_gone:
        return by, f"its home {home} was deleted, so no command reaches it: end it, with its apps (kill {guardian})"
    stop = f"pyworker --home {home or 'DIR'} stop NAME"
    return by, f"it is an app of another pyworker, user {found.user}'s: stop it there ({stop})"


def _free_port(address: Address, host: str) -> int:
    """Return the next port that is free just now, 0 if none of the next twenty is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(address.port + 1, min(address.port + 21, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(_in_full(host, port))
            except OSError:
                continue
        return port
    return 0


def _first_free_for_all() -> int:
    try:
        with open(_UNPRIVILEGED) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024

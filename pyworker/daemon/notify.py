"""Daemon: sd_notify of commands: datagrams whose sender the kernel names."""

from __future__ import annotations

import contextlib
import os
import socket

from pyworker.config.address import MAX_UNIX_PATH
from pyworker.daemon.brain import Brain
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import LAZY, READ, Loop
from pyworker.protocol.inherited import NOTIFY
from pyworker.protocol.names import NOTIFY_SOCKET
from pyworker.unix import fds as unix_fds
from pyworker.unix.files import is_missing


class Notify:
    """The socket, which is made again when somebody has removed it from the home. `home_fd` -1: there is none."""

    def __init__(self, loop: Loop, store: FdStore, home_fd: int, brain: Brain) -> None:
        self._loop, self._store, self._home_fd, self._brain = loop, store, home_fd, brain
        self._sock: socket.socket

    def listen(self) -> None:
        """Make it, or go on with the one that the daemon before this one had."""
        fd = self._store.get(NOTIFY)
        if fd is None:
            path = os.fsencode(self._brain.spawner.notify_socket)
            self._keep(_bound(self._home_fd if len(path) <= MAX_UNIX_PATH else -1))
        else:
            self._take(socket.socket(fileno=os.dup(fd)))

    def _keep(self, sock: socket.socket) -> None:
        unix_fds.pass_credentials(sock)
        self._store.put(NOTIFY, os.dup(sock.fileno()))
        self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        self._loop.add(sock.fileno(), READ, self._on_readable)
        name = sock.getsockname()
        if isinstance(name, bytes):
            self._brain.spawner.notify_socket = "@" + name[1:].decode()
        elif self._home_fd >= 0:
            self._look()

    def _look(self) -> None:
        if not is_missing(self._home_fd, NOTIFY_SOCKET) or (again := _bound_in_home(self._home_fd)) is None:
            self._loop.call_lazily(LAZY, self._look)
            return
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        self._keep(again)

    def _on_readable(self, _: int) -> None:
        for _turn in range(16):
            packet = unix_fds.recv_packet(self._sock, 4096, 0)
            if packet is None:
                return
            if packet.pid:
                said = packet.data.decode("utf-8", "replace")
                self._brain.readiness.on_notified(packet.pid, packet.uid, said)


def _bound(home_fd: int) -> socket.socket:
    """Return it bound in the home, or where that cannot be (a folder has its name, the path is too long to connect to) in no
    folder, to a name of the kernel's choice: who may speak is checked for each message.
    """
    sock = _bound_in_home(home_fd) if home_fd >= 0 else None
    if sock is None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind("")
    return sock


def _bound_in_home(home_fd: int) -> socket.socket | None:
    temporary = f"/proc/self/fd/{home_fd}/.{NOTIFY_SOCKET}.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        sock.bind(temporary)
        os.chmod(temporary, 0o666 if os.geteuid() == 0 else 0o600)
        os.rename(temporary, NOTIFY_SOCKET, dst_dir_fd=home_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        sock.close()
        return None
    return sock

"""Daemon: sd_notify of commands: datagrams whose sender the kernel names."""

from __future__ import annotations

import contextlib
import os
import socket

from pyworker.daemon.brain import Brain
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import READ, Loop
from pyworker.protocol.inherited import NOTIFY
from pyworker.protocol.names import NOTIFY_SOCKET
from pyworker.unix import fds as unix_fds


def listen(loop: Loop, store: FdStore, home_fd: int, brain: Brain) -> None:
    """Make the socket, or go on with the one that the daemon before this one had."""
    fd = store.get(NOTIFY)
    if fd is None:
        sock = _bound(home_fd)
        unix_fds.pass_credentials(sock)
        store.put(NOTIFY, os.dup(sock.fileno()))
    else:
        sock = socket.socket(fileno=os.dup(fd))
    sock.setblocking(False)
    name = sock.getsockname()
    if isinstance(name, bytes):
        brain.spawner.notify_socket = "@" + name[1:].decode()

    def arrived(_: int) -> None:
        for _turn in range(16):
            packet = unix_fds.recv_packet(sock, 4096, 0)
            if packet is None:
                return
            if packet.pid:
                brain.readiness.on_notified(packet.pid, packet.uid, packet.data.decode("utf-8", "replace"))

    loop.add(sock.fileno(), READ, arrived)


def _bound(home_fd: int) -> socket.socket:
    """Return it bound in the home, or where that cannot be (a folder has its name) in no folder, to a name of the kernel's
    choice: who may speak is checked for each message.
    """
    temporary = f"/proc/self/fd/{home_fd}/.{NOTIFY_SOCKET}.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if home_fd >= 0:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            sock.bind(temporary)
            os.chmod(temporary, 0o666 if os.geteuid() == 0 else 0o600)
            os.rename(temporary, NOTIFY_SOCKET, dst_dir_fd=home_fd)
            return sock
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            sock.close()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind("")
    return sock

"""Daemon: sd_notify of commands: datagrams whose sender the kernel names."""

from __future__ import annotations

import contextlib
import os
import socket

from pyworker.daemon.brain import Brain
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import LAZY, READ, Loop
from pyworker.protocol.inherited import NOTIFY
from pyworker.protocol.names import NOTIFY_SOCKET
from pyworker.unix import fds as unix_fds


def listen(loop: Loop, store: FdStore, home_fd: int, brain: Brain) -> None:
    """Make the socket, or go on with the one that the daemon before this one had. One that is removed is made again."""

    def make(sock: socket.socket) -> socket.socket:
        unix_fds.pass_credentials(sock)
        store.put(NOTIFY, os.dup(sock.fileno()))
        return sock

    def begin(sock: socket.socket) -> None:
        def arrived(_: int) -> None:
            for _turn in range(16):
                packet = unix_fds.recv_packet(sock, 4096, 0)
                if packet is None:
                    return
                if packet.pid:
                    brain.readiness.on_notified(packet.pid, packet.uid, packet.data.decode("utf-8", "replace"))

        def look() -> None:
            if _is_there(home_fd) or (again := _bound_in_home(home_fd)) is None:
                loop.call_lazily(LAZY, look)
                return
            loop.remove(sock.fileno())
            sock.close()
            begin(make(again))

        sock.setblocking(False)
        loop.add(sock.fileno(), READ, arrived)
        name = sock.getsockname()
        if isinstance(name, bytes):
            brain.spawner.notify_socket = "@" + name[1:].decode()
        elif home_fd >= 0:
            look()

    fd = store.get(NOTIFY)
    begin(make(_bound(home_fd)) if fd is None else socket.socket(fileno=os.dup(fd)))


def _is_there(home_fd: int) -> bool:
    """Whether something has the socket's name in the home."""
    try:
        os.stat(NOTIFY_SOCKET, dir_fd=home_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def _bound(home_fd: int) -> socket.socket:
    """Return it bound in the home, or where that cannot be (a folder has its name) in no folder, to a name of the kernel's
    choice: who may speak is checked for each message.
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

"""Daemon: sd_notify of commands: datagrams whose sender the kernel names.

Under root any user may send some. Descriptors that come along (systemd-notify sends one, and waits until it is closed) are
closed by a process of its own: whoever does that can be held up for ever, by a file of a FUSE mount beyond SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

from pyworker.config.address import MAX_UNIX_PATH
from pyworker.daemon.brain import Brain
from pyworker.daemon.fdstore import FdStore
from pyworker.daemon.loop import LAZY, READ, Loop
from pyworker.protocol.inherited import NOTIFY
from pyworker.protocol.names import NOTIFY_SOCKET
from pyworker.unix import fds as unix_fds
from pyworker.unix import process
from pyworker.unix.files import is_missing

TAKE = (sys.executable, "-I", "-S", "-c", "import os\ntry: os.read(0, 1)\nexcept OSError: pass")
TAKEN_WITHIN = 10.0  # seconds; who has not ended then is killed, or held up: the next datagram is looked at
MOST_HELD_UP = 16  # processes; then nothing is read until one of them ends
AGAIN = 1.0  # seconds until another try to start one


class Notify:
    """The socket, which is made again when somebody has removed it from the home. `home_fd` -1: there is none."""

    def __init__(self, loop: Loop, store: FdStore, home_fd: int, brain: Brain) -> None:
        self._loop, self._store, self._home_fd, self._brain = loop, store, home_fd, brain
        self._sock: socket.socket
        self._takers = 0
        self._awaited = -1  # the pidfd of the one who is to take the next datagram

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
            packet = unix_fds.peek_packet(self._sock, 4096)
            if packet is None:
                return
            if packet.truncated:
                self._have_it_taken(self._sock)
            else:
                with contextlib.suppress(BlockingIOError):  # one that was late has taken it
                    self._sock.recv(1)
            if packet.pid:
                said = packet.data.decode("utf-8", "replace")
                self._brain.readiness.on_notified(packet.pid, packet.uid, said)
            if packet.truncated:
                return

    def _have_it_taken(self, sock: socket.socket) -> None:
        """Have another process read the next datagram, and with it close what came along. Nothing is read until it has."""
        self._loop.remove(sock.fileno())
        try:
            _, pidfd = process.spawn_watched([*TAKE], {}, {0: sock.fileno(), 1: 2, 2: 2})
        except OSError:
            self._loop.call_later(AGAIN, lambda: self._go_on(sock))
            return
        self._takers += 1
        self._awaited = pidfd

        def late() -> None:
            with contextlib.suppress(OSError):  # or it would take the next one, and what that says
                process.send_signal(pidfd, signal.SIGKILL)
            self._is_over(pidfd, sock)

        timer = self._loop.call_later(TAKEN_WITHIN, late)

        def ended(_: int) -> None:
            timer.cancel()
            self._loop.remove(pidfd)
            process.collect(pidfd)
            self._takers -= 1
            self._is_over(pidfd, sock)
            os.close(pidfd)

        self._loop.add(pidfd, READ, ended)

    def _is_over(self, pidfd: int, sock: socket.socket) -> None:
        if self._awaited == pidfd:
            self._awaited = -1
        self._go_on(sock)

    def _go_on(self, sock: socket.socket) -> None:
        is_current = sock is self._sock and not self._loop.watches(sock.fileno())
        if is_current and self._awaited < 0 and self._takers < MOST_HELD_UP:
            self._loop.add(sock.fileno(), READ, self._on_readable)


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

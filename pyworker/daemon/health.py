"""Daemon: health checks of single workers: http through a private socketpair or a port, tcp, exec. Nothing blocks.

One check is a small object that lives until it has called back once. What a worker answers is untrusted: at most a
few kilobytes are read, and nothing but the status line is looked at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from pyworker.config.schema import HealthConfig
from pyworker.daemon.loop import READ, WRITE, Loop
from pyworker.policy.health import expects
from pyworker.protocol.worker import CHECK_HEADER
from pyworker.unix import process

_MAX_HEAD = 16 * 1024

Done = Callable[[bool, str], None]  # (ok, reason)


class Running(Protocol):
    """A check under way."""

    def cancel(self) -> None:
        """End it; it calls back no more."""


class SocketCheck:
    """An http check (or tcp: a connection is all it wants) on a socket that is connected or connecting. Owns it."""

    def __init__(self, loop: Loop, sock: socket.socket, config: HealthConfig, done: Done) -> None:
        self._loop, self._sock, self._config, self._done = loop, sock, config, done
        self._head = b""
        self._out = b""
        self._over = False
        if config.type == "http":
            lines = (f"GET {config.path} HTTP/1.1", f"Host: {config.host}", f"{CHECK_HEADER}: 1", "Connection: close")
            self._out = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        sock.setblocking(False)
        loop.add(sock.fileno(), READ | WRITE, self._on_events)
        self._timer = loop.call_later(config.timeout, self._late)

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._timer.cancel()
            self._loop.remove(self._sock.fileno())
            self._sock.close()

    def _finish(self, ok: bool, reason: str) -> None:
        if not self._over:
            self.cancel()
            self._done(ok, reason)

    def _late(self) -> None:
        self._finish(False, f"no answer within {self._config.timeout:g} s")

    def _on_events(self, events: int) -> None:
        try:
            if events & WRITE:
                error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    self._finish(False, f"cannot connect: {os.strerror(error)}")
                    return
                if self._config.type == "tcp":
                    self._finish(True, "")
                    return
                sent = self._sock.send(self._out, socket.MSG_NOSIGNAL) if self._out else 0
                self._out = self._out[sent:]
                if not self._out:
                    self._loop.modify(self._sock.fileno(), READ)
            if events & ~WRITE:
                part = self._sock.recv(4096)
                self._head += part
                if b"\r\n" in self._head or not part or len(self._head) > _MAX_HEAD:
                    self._judge()
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(False, error.strerror or str(error))

    def _judge(self) -> None:
        words = self._head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            self._finish(False, "closed without an answer" if not self._head else "the answer is not HTTP")
            return
        status = int(words[1][:3])
        ok = expects(self._config.expect, status)
        self._finish(ok, "" if ok else f"{self._config.path} answered {status}, expected {self._config.expect}")


class ExecCheck:
    """A command that must exit with 0."""

    def __init__(self, loop: Loop, config: HealthConfig, env: dict[str, str], done: Done) -> None:
        self._loop, self._config, self._done = loop, config, done
        self._pidfd = -1
        self._pid = 0
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = ["/bin/sh", "-c", 'exec "$@"', "check", *config.command]  # sh looks the command up in the app's PATH
            self._pid = process.spawn(argv, env, {0: null, 1: null, 2: null})
            self._pidfd = os.pidfd_open(self._pid)
        finally:
            os.close(null)
        loop.add(self._pidfd, READ, self._ended)
        self._timer = loop.call_later(config.timeout, self._late)
        self._is_late = False
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True
        self._timer.cancel()
        self._kill()

    def _kill(self) -> None:
        if self._pidfd >= 0:
            process.send_signal(self._pidfd, signal.SIGKILL)

    def _late(self) -> None:
        self._is_late = True
        self._kill()

    def _ended(self, _: int) -> None:
        self._loop.remove(self._pidfd)
        status = process.collect(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._timer.cancel()
        if self._is_cancelled:
            return
        if self._is_late:
            self._done(False, f"{self._config.command[0]} took more than {self._config.timeout:g} s")
        elif status is not None and status.code == 0:
            self._done(True, "")
        else:
            code = status.code if status is not None else None
            self._done(False, f"{self._config.command[0]} ended with code {code}")


def connect(port: int) -> socket.socket:
    """Return a socket that is connecting to a port of this machine."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        sock.connect(("127.0.0.1", port))
    return sock

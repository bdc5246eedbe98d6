"""Daemon: one health check, http, tcp or exec. Asks once, waits without blocking, says how it went exactly once.

The answers come from the app and are untrusted: they are read up to a limit and only their status or exit code
counts. What a failure means is policy/health.py's, when to ask daemon/health.py's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable

from pyworker.config.schema import HealthConfig, ResolvedApp
from pyworker.daemon.loop import READ, WRITE, Loop
from pyworker.daemon.shortage import Shortage, is_want
from pyworker.policy.health import expects
from pyworker.protocol.worker import CHECK_HEADER
from pyworker.unix import fds as unix_fds
from pyworker.unix import process

# (ok, why not); None: it could not be asked, which says nothing of who was to answer
Done = Callable[[bool | None, str], None]
Address = tuple[str, int] | str  # of a port, or the path of a Unix socket

_MAX_ANSWER = 64 * 1024  # of a page or of a command's output; what follows is not waited for
_REST = 0.01  # seconds between looks at what a command prints: one that never stops would have a CPU of ours, too
_TAIL = 300  # characters of a command's output that a reason shows
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: |\r?\n)")
_LOCATION = re.compile(rb"^location:[ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE)
_LONGEST_LOCATION = 100
_LENGTH = re.compile(rb"^content-length:[ \t]*([0-9]{1,15})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Check:
    """A check that has begun."""

    _done: Done | None

    def cancel(self) -> None:
        """Let go of everything; `done` is not called any more. No error when it has ended."""
        raise NotImplementedError

    def _end(self, ok: bool | None, reason: str) -> None:
        done = self._done
        self.cancel()
        if done is not None:
            done(ok, reason)


def http(loop: Loop, connected: socket.socket, config: HealthConfig, done: Done) -> Check:
    """GET config.path over a connected stream socket, which the check owns and closes."""
    return _Exchange(loop, connected, None, _request(config), config, done)


def at(loop: Loop, address: Address, config: HealthConfig, done: Done) -> Check:
    """GET config.path from whoever listens at the address, or (type "tcp") find out whether a connection is accepted there."""
    request = _request(config) if config.type == "http" else b""
    return _Exchange(loop, _socket_for(address), address, request, config, done)


# ---- http and tcp ----------------------------------------------------------------------------------
class _Exchange(Check):
    """Connect (if need be), send, read the answer to its end."""

    def __init__(
        self, loop: Loop, sock: socket.socket, address: Address | None, request: bytes, config: HealthConfig, done: Done
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._unsent = request
        self._asks = bool(request)
        self._config = config
        self._done = done
        self._answer = bytearray()
        sock.setblocking(False)
        self._timer = loop.call_later(config.timeout, self._timed_out)
        try:
            failure = sock.connect_ex(address) if address is not None else 0
            if failure in (0, errno.EINPROGRESS):
                loop.add(sock.fileno(), WRITE, self._on_events)
                return
            reason = _not_connected(failure)
        except OSError as error:  # a name that is not known, a path that is too long for the kernel
            failure, reason = 0, f"cannot connect: {error.strerror or error}"
        # no port is left to connect from; of a Unix socket it says that nobody accepts
        ok = None if isinstance(address, tuple) and is_want(failure) else False
        # Not from inside the constructor: the caller does not hold the check yet.
        loop.call_soon(lambda: self._end(ok, reason))

    def cancel(self) -> None:
        if self._done is not None:
            self._done = None
            self._timer.cancel()
            self._loop.remove(self._socket.fileno())
            self._socket.close()

    def _timed_out(self) -> None:
        what = "no whole answer" if self._answer else "no answer" if self._asks else "not connected"
        self._end(False, f"{what} within {self._config.timeout:g} s")

    def _on_events(self, _events: int) -> None:
        failure = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self._end(False, _not_connected(failure))
        elif not self._asks:
            self._end(True, "")
        elif self._unsent:
            self._send()
        else:
            self._read()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(False, _not_connected(error.errno or 0))
            return
        if not self._unsent:
            self._loop.modify(self._socket.fileno(), READ)

    def _read(self) -> None:
        try:
            data = self._socket.recv(16 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._answer += data
        judged = _judge(self._answer, self._config, ended=not data)
        if judged is not None:
            self._end(*judged)


def _request(config: HealthConfig) -> bytes:
    lines = (
        f"GET {config.path} HTTP/1.1",
        f"Host: {config.host}",
        "User-Agent: pyworker",
        "Accept: */*",
        f"{CHECK_HEADER}: 1",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode("latin-1", "replace")


def _judge(answer: bytearray, config: HealthConfig, *, ended: bool) -> tuple[bool, str] | None:
    """Return the outcome, or None while more is to come."""
    while True:
        head_end = answer.find(b"\r\n\r\n")
        if head_end < 0:
            if not ended and len(answer) < _MAX_ANSWER:
                return None
            if not answer:
                return False, "the connection was closed without an answer"
            return False, f"not an HTTP answer: {bytes(answer[:40])!r}"
        found = _STATUS_LINE.match(answer)
        if found is None:
            return False, f"not an HTTP answer: {bytes(answer[:40])!r}"
        status = int(found[1])
        if status >= 200:
            break
        del answer[: head_end + 4]  # an interim answer, like 103: the real one follows
    length = _LENGTH.search(answer, 0, head_end + 2)
    whole = head_end + 4 + int(length[1]) if length else None
    if status in (204, 304):  # without a body, whoever leaves the connection open
        whole = head_end + 4
    if not ended and len(answer) < min(_MAX_ANSWER, whole if whole is not None else _MAX_ANSWER):
        return None
    if expects(config.expect, status):
        return True, ""
    where = _redirects_to(answer, head_end) if 300 <= status < 400 else ""
    reason = f"GET {config.path} answered {status}{where}, expected {config.expect}"
    if status == 400:  # which Django answers to a name that is not its own, and logs nothing
        reason += f"; it was asked as {config.host}: set health.host to a name that the app knows (one of Django's ALLOWED_HOSTS)"
    return False, reason


def _redirects_to(answer: bytearray, head_end: int) -> str:
    found = _LOCATION.search(answer, 0, head_end + 2)
    if found is None:
        return ""
    text = "".join(c if c.isprintable() else "?" for c in found[1].decode("latin-1"))
    return f" (to {text if len(text) <= _LONGEST_LOCATION else text[: _LONGEST_LOCATION - 1] + '…'})"


def _socket_for(address: Address) -> socket.socket:
    if isinstance(address, str):
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def _not_connected(failure: int) -> str:
    return f"cannot connect: {os.strerror(failure)}" if failure else "cannot connect"


# ---- exec ------------------------------------------------------------------------------------------
class Command(Check):
    """Runs config.command as the app's user, in its folder and environment; exit code 0 is healthy.

    A process of its own session; its end is seen by pidfd, its output kept as far as a reason can show.
    """

    def __init__(
        self,
        loop: Loop,
        resolved: ResolvedApp,
        config: HealthConfig,
        done: Done,
        *,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        of_death: Callable[[int, process.ExitStatus], Shortage] | None = None,
    ) -> None:
        self._loop = loop
        self._of_death = of_death
        self._config = config
        self._stdin = stdin
        self._more_env = env or {}
        self._done = done
        self._output = bytearray()
        self._pid = 0
        self.pidfd = -1
        self._pipe = -1
        self._timer = loop.call_later(config.timeout, self._timed_out)
        try:
            self._start(resolved)
        except OSError as error:
            ok, reason = None if is_want(error.errno) else False, f"cannot start it: {error.strerror}"
            loop.call_soon(lambda: self._end(ok, reason))

    def _start(self, resolved: ResolvedApp) -> None:
        spec = {
            "argv": list(self._config.command),
            "env": {**resolved.env, **self._more_env},
            "cwd": resolved.config.cwd,
            "umask": resolved.config.file_umask,
            "uid": resolved.uid,
            "gid": resolved.gid,
            "groups": list(resolved.groups),
            "timeout": self._config.timeout,
        }
        temporary = [unix_fds.memfd("pyworker-check", json.dumps(spec).encode())]
        try:
            if self._stdin:
                temporary.append(unix_fds.memfd("pyworker-stdin", self._stdin))
                os.lseek(temporary[1], 0, os.SEEK_SET)
            else:
                temporary.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            self._pipe, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            temporary.append(write_end)
            os.set_blocking(write_end, True)
            argv = [sys.executable, "-I", "-m", "pyworker.daemon.runcheck", "3"]
            env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
            table = {0: temporary[1], 1: write_end, 2: write_end, 3: temporary[0]}
            self._pid, self.pidfd = process.spawn_watched(argv, env, table)
        finally:
            unix_fds.close_all(temporary)
        self._loop.add(self._pipe, READ, self._read)
        self._loop.add(self.pidfd, READ, self._ended)

    def cancel(self) -> None:
        if self._done is None:
            return
        self._done = None
        self._timer.cancel()
        if self.pidfd >= 0:
            self._loop.remove(self.pidfd)
            if self._pid:
                # Not reaped yet, so the number is still its own.
                process.kill_session(self._pid, signal.SIGKILL)
                _reap_later(self._loop, self.pidfd)
            else:
                os.close(self.pidfd)
        if self._pipe >= 0:
            self._loop.remove(self._pipe)
            os.close(self._pipe)

    def _timed_out(self) -> None:
        self._end(False, f"{self._config.command[0]} did not end within {self._config.timeout:g} s{self._tail()}")

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._pipe, _MAX_ANSWER)  # all that a pipe holds: at the end it is read once more
        except OSError:
            return
        self._loop.remove(self._pipe)
        if data:  # else whoever has the pipe has closed it; the end of the process comes by itself
            self._output += data
            del self._output[:-_MAX_ANSWER]
            self._loop.call_later(_REST, self._read_on)

    def _read_on(self) -> None:
        if self._done is not None:
            self._loop.add(self._pipe, READ, self._read)

    def _ended(self, _events: int) -> None:
        # It is dead but not reaped: what it has left running in its group goes before its number is free again.
        process.kill_group(self._pid, signal.SIGKILL)
        found = process.collect(self.pidfd, reap=False)
        if found is None:
            return
        shortage = self._of_death(self._pid, found) if self._of_death is not None else Shortage()
        process.collect(self.pidfd)
        self._pid = 0
        self._read(0)
        if found.code == 0:
            self._end(True, "")
        else:
            how = f"exit code {found.code}" if found.code is not None else f"was killed by signal {found.signal}"
            self._end(False, f"{self._config.command[0]}: {shortage.reason or how}{self._tail()}")

    @property
    def output(self) -> str:
        """What it has printed, as far as it was kept."""
        return self._output.decode("utf-8", "backslashreplace").strip()

    def _tail(self) -> str:
        return f": {self.output[-_TAIL:]}" if self.output else ""


def _reap_later(loop: Loop, pidfd: int) -> None:
    """Collect a process that is dead or has just been killed, whenever its end is seen; closes the pidfd."""

    def ended(_events: int) -> None:
        loop.remove(pidfd)
        with contextlib.suppress(OSError):
            process.collect(pidfd)
        os.close(pidfd)

    loop.add(pidfd, READ, ended)

"""Daemon: the control socket. Lets in who may ask, and turns lines into requests.

Who connects is known from the kernel (SO_PEERCRED): root and the daemon's own user, nobody else. Bytes that are no
request are refused in words and never raise. What a request does is the brain's; the listening socket is the
caller's (it is in the guardian's store). The other end is cli/client.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from pyworker import __version__
from pyworker.daemon.client import Client, failed_at_this
from pyworker.daemon.loop import READ, Loop, report_to_stderr
from pyworker.errors import WANTING
from pyworker.protocol.control import PROTOCOL, Call, Refused, Request, Shutdown, Status, Upgrade, is_older, refusal
from pyworker.protocol.wire import MAX_REQUEST, WireError, decode_value, encode, parse_json
from pyworker.unix.peer import peer

MAX_CLIENTS = 64
_ACCEPTS_A_TURN = 16
_PAUSE = 0.1  # seconds without accepting when we are out of fds

OnCall = Callable[[Client, Request], None]


class ControlServer:
    """Accepts clients on `listener` and hands each request to `on_call`, which answers now or later."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        own_uid: int,
        on_call: OnCall,
        *,
        max_clients: int = MAX_CLIENTS,
        report: Callable[[str], None] = report_to_stderr,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._own_uid = own_uid
        self._on_call = on_call
        self._max_clients = max_clients
        self._report = report
        self._clients: dict[Client, None] = {}  # in the order of their coming
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._closed = False
        listener.setblocking(False)
        loop.add(listener.fileno(), READ, self._accept)

    @property
    def clients(self) -> tuple[Client, ...]:
        """Everybody who is connected, the oldest first."""
        return tuple(self._clients)

    def close(self) -> None:
        """Stop listening and drop every client; the listening socket stays open, it is the caller's."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove(self._listener.fileno())
        if self._spare >= 0:
            os.close(self._spare)
        for client in self.clients:
            client.close()

    def listen_on(self, listener: socket.socket) -> None:
        """Go on with another listening socket (ours from here); who waits at the old one is still let in."""
        listener.setblocking(False)
        old, self._listener = self._listener, listener
        self._loop.remove(old.fileno())
        with old:
            for _ in range(self._max_clients):
                try:
                    self._welcome(old.accept()[0])
                except OSError:
                    break
        self._loop.add(listener.fileno(), READ, self._accept)

    # ---- letting in --------------------------------------------------------------------------------
    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock = self._listener.accept()[0]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in WANTING:
                    self._turn_away_without_fds()
                    return
                continue  # ECONNABORTED and its like: the client gave up while it queued
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        pid, uid = peer(sock)
        if uid not in (0, self._own_uid):
            message = f"this pyworker daemon belongs to uid {self._own_uid}; uid {uid} may not use it"
            hint = "run the command as that user (sudo -u), or start a daemon of your own"
            _turn_away(sock, refusal("no_permission", message, hint))
            return
        if len(self._clients) >= self._max_clients and not self._make_room():
            message = f"the daemon is serving {self._max_clients} commands at once already"
            hint = "end some of them (events -f, logs -f, commands that wait), then try again"
            _turn_away(sock, refusal("busy", message, hint))
            return
        client = Client(self._loop, sock, pid, uid, self._on_line)
        self._clients[client] = None
        client.on_gone(lambda: self._clients.pop(client, None))
        client.read()  # most have sent their request by now, and so are never taken for idle

    def _make_room(self) -> bool:
        """Drop the oldest client that has sent no request; what is in its socket is looked at first."""
        for client in self.clients:
            client.read()
            if not client.has_asked or client.gone:
                client.close()
                self._clients.pop(client, None)
                return True
        return False

    def _turn_away_without_fds(self) -> None:
        # The spare fd lets one client in to be told why. Then nobody is let in for a moment: the listener would stay
        # readable, and the loop would spin on it.
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
            try:
                sock = self._listener.accept()[0]
            except OSError:
                pass
            else:
                sock.setblocking(False)
                message = "the daemon has no file descriptor left for this command"
                _turn_away(sock, refusal("busy", message, "raise the limit (ulimit -Hn) or try again"))
        self._loop.modify(self._listener.fileno(), 0)
        self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._closed:
            return
        try:
            if self._spare < 0:
                self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # still none: a client must not get the fd that would be the spare one
            self._loop.call_later(_PAUSE, self._resume)
            return
        self._loop.modify(self._listener.fileno(), READ)

    # ---- understanding -----------------------------------------------------------------------------
    def _on_line(self, client: Client, line: bytes) -> None:
        request = _understand(line)
        if isinstance(request, Refused):
            client.refuse(request)
            return
        try:
            self._on_call(client, request)
        except Exception as error:  # noqa: BLE001 - one request that fails must not cost the others their daemon
            self._report(f"a request failed: {type(request).__name__}")
            client.refuse(failed_at_this(error))


def _understand(line: bytes) -> Request | Refused:
    raw: object = None
    version = ""  # of the pyworker that asks
    try:
        raw = parse_json(line, limit=MAX_REQUEST)
        if isinstance(raw, dict) and isinstance(raw.get("version"), str):
            version = raw["version"][:40]
        if isinstance(raw, dict) and raw.get("type") == "call" and raw.get("protocol") != PROTOCOL:
            return _of_another_version(raw.get("request"), version)
        call: Call = decode_value(Call, raw)
        request: Request = decode_value(Request, call.request)
    except WireError as error:
        if version not in ("", __version__) and isinstance(raw, dict):
            return _of_another_version(raw.get("request"), version)  # new in its version, or gone in ours
        return refusal("usage", f"this is not a request: {error}", "use the pyworker command")
    return request


def _of_another_version(raw: object, version: str) -> Request | Refused:
    """Status, Shutdown and Upgrade stay the same in every version: a daemon can always be asked who it is, to leave,
    and to become the version of who asks.
    """
    try:
        simple: Request = decode_value(Status | Shutdown | Upgrade, raw)
    except WireError:
        message = f"the daemon is pyworker {__version__} and does not understand this command's version"
        if version:
            message = f"the daemon is pyworker {__version__}, this command {version}: they do not understand each other"
        hint = "bring the daemon to this command's version, no request is lost: pyworker daemon upgrade"
        if is_older(version, __version__):
            hint = f"this command is the older one: use (or install here) pyworker {__version__}"
        return refusal("protocol", message, hint)
    return simple


def _turn_away(sock: socket.socket, refused: Refused) -> None:
    """Say why in one non-blocking send, and close."""
    with sock:
        try:
            sock.send(encode(refused) + b"\n", socket.MSG_NOSIGNAL)
            # Closing with unread bytes would make the kernel reset the stream and the reason be lost.
            sock.recv(MAX_REQUEST)
        except OSError:
            pass

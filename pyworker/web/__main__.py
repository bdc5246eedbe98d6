"""Web: `python -m pyworker.web`, what `pyworker web` becomes. In the foreground until TERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import secrets
import signal
import socket
import sys
from typing import Any

import uvicorn

from pyworker.errors import Exit
from pyworker.unix.fds import raise_nofile
from pyworker.web.app import make_app
from pyworker.web.guard import Guard, is_loopback
from pyworker.web.hub import Hub

TOKEN_FILE = "web-token"
UNSENT = 16 * 1024  # bytes of a connection that wait in the kernel
HALF_REQUEST = 50  # ticks of the server, ten a second, between looks for those that send half a request


def main() -> int:
    # blocked by who typed it: a Ctrl-C among imports is a traceback
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parser = argparse.ArgumentParser(prog="pyworker web")
    parser.add_argument("--home", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8700)
    parser.add_argument("--allow-host", action="append", default=[])
    parser.add_argument("--no-token", action="store_true")
    parser.add_argument("--new-token", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        listener = _listen(given.host, given.port)
    except OSError as error:
        hint = "give another address: --listen 127.0.0.1:8701"
        return _failed(f"cannot listen on {_shown(given.host)}:{given.port}: {error.strerror}", hint, given.json)
    raise_nofile()
    token = "" if given.no_token else token_of(given.home, new=given.new_token)
    host, port = listener.getsockname()[:2]
    hosts = frozenset({given.host.lower(), host, *(name.lower() for name in given.allow_host)}) - {"0.0.0.0", "::"}
    url = f"http://{_shown(host)}:{port}/" + (f"#token={token}" if token else "")
    try:
        sys.stdout.write((json.dumps({"v": 1, "url": url, "token": token}) if given.json else url) + "\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is not written is not tried again at exit
        gone = error.errno == errno.EPIPE
        hint = "what read it has ended: start that again" if gone else "make room on its disk, or send it to another"
        return _failed(f"the output cannot be written: {error.strerror}", hint, given.json)
    if not given.json:
        _note("The dashboard runs until Ctrl-C; the apps do not need it.")
    if not is_loopback(host):
        _note("It can be reached from other machines, without encryption: put a TLS proxy in front of it.")
    # uvicorn raises the signal again when it is done, and asyncio makes this of it
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(given.home, Guard(token, hosts), listener))
    return 0


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _failed(message: str, hint: str, as_json: bool) -> int:
    """Say what went wrong as the commands do; return the exit code."""
    code = int(Exit.FAILED)
    error = {"code": "failed", "exit": code, "message": message, "hint": hint}
    text = json.dumps({"v": 1, "error": error}) if as_json else f"error: {message}\n  = help: {hint}"
    _note(text)
    return code


def _note(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk, a pipe that nobody reads
        sys.stderr.write(text + "\n")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # of a browser on a slow link the kernel would hold a minute's looks, and the newest would come behind them
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def token_of(home: str, *, new: bool) -> str:
    """Return the token of this home: the same at each start, so that bookmarks and Prometheus keep working."""
    path = os.path.join(home, TOKEN_FILE)
    if not new:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with open(fd, encoding="ascii") as file:
                info = os.fstat(file.fileno())
                found = file.read(200).strip()
            if len(found) >= 20 and info.st_uid == os.geteuid() and not info.st_mode & 0o077:
                return found
    made = secrets.token_urlsafe(24)
    with contextlib.suppress(OSError):  # a home that cannot be written: a token for this time
        os.makedirs(home, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(made + "\n")
    return made


class _Server(uvicorn.Server):
    """Ends the streams first: they would go on for ever, and the server waits for them. So it would for a request whose
    head never ends.
    """

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub
        self._halves: dict[Any, object] = {}  # connection -> the last request before the one that it has begun

    async def on_tick(self, counter: int) -> bool:
        if counter % HALF_REQUEST == 0:
            self.cut_halves()
        return await super().on_tick(counter)

    def cut_halves(self) -> None:
        """Close the connections on which, since the last look, the head of a request was awaited all the time."""
        connections: set[Any] = self.server_state.connections
        halves = {
            each: each.cycle
            for each in connections
            if each.timeout_keep_alive_task is None and (each.cycle is None or each.cycle.response_complete)
        }
        for each, before in halves.items():
            if self._halves.get(each, self) is before:
                each.transport.close()
        self._halves = halves

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.end()
        # what is cut now is no error, and its traceback helps nobody
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


async def _serve(home: str, guard: Guard, listener: socket.socket) -> None:
    hub = Hub(home)
    config = uvicorn.Config(
        make_app(hub, guard), log_level="warning", access_log=False, lifespan="on", server_header=False,
        timeout_graceful_shutdown=1, timeout_keep_alive=20, ws="none", backlog=64,
        http="h11",  # httptools takes a head of any size
    )  # fmt: skip
    await _Server(config, hub).serve([listener])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before it served
        sys.exit(Exit.INTERRUPTED)

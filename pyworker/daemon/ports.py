"""Daemon: ports of workers that a dispatcher relays to. Chosen outside of the range that connections go out from."""

from __future__ import annotations

import errno
import random
import re
import socket
from collections.abc import Collection

from pyworker.config.schema import AppConfig
from pyworker.errors import WANTING
from pyworker.record import replace

_FIRST, _LAST = 20000, 32767
_EPHEMERAL = "/proc/sys/net/ipv4/ip_local_port_range"
_TRIES = 200
_PORT = re.compile(r"\$PORT\b|\$\{PORT\}")


def free_port(taken: Collection[int]) -> int:
    """Return a port that nobody listens on now and that no outgoing connection will be given. Raises OSError."""
    first, last = _range()
    for _ in range(_TRIES):
        port = random.randint(first, last)
        if port not in taken and _is_free(port):
            return port
    raise OSError(errno.EADDRINUSE, f"no port from {first} to {last} is free")


def proxied(config: AppConfig, python: str, port: int) -> AppConfig:
    """Return the config of a worker that is told its port: as $PORT, and in place of $PORT in its arguments."""
    command = config.command or (python, "-u", config.script or "", *config.args)
    words = tuple(_PORT.sub(str(port), word) for word in command)
    return replace(config, command=words, script=None, args=())


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((host, port))
        except OSError as error:
            if error.errno in WANTING:  # it says nothing of the port
                raise
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # a machine without IPv6
                return False
    return True


def _range() -> tuple[int, int]:
    """Return the ports to choose from: below the machine's ephemeral ones where there is room, else above."""
    try:
        with open(_EPHEMERAL) as file:
            low, high = map(int, file.read().split())
    except (OSError, ValueError):
        return _FIRST, _LAST
    if low > _FIRST + 1000:
        return _FIRST, min(_LAST, low - 1)
    if high < 64000:
        return high + 1, 65535
    return (10000, low - 1) if low > 11000 else (_FIRST, _LAST)

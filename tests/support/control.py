"""The control socket without a command around it: for tests that ask often."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from pyworker import __version__
from pyworker.protocol.control import PROTOCOL


def connect(home: str, timeout: float = 30.0) -> socket.socket:
    """Return a connected control socket, however long the path of the home is."""
    folder = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(f"/proc/self/fd/{folder}/control.sock")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


def ask(home: str, request: dict[str, Any], timeout: float = 30.0) -> dict[str, Any] | None:
    """Return the last line of the answer; None when nobody is there, or the daemon went away before it."""
    line = json.dumps({"type": "call", "protocol": PROTOCOL, "version": __version__, "request": request})
    try:
        with connect(home, timeout) as sock:
            sock.sendall(line.encode() + b"\n")
            with sock.makefile() as file:
                lines = list(file)
    except TimeoutError:
        raise AssertionError(f"the daemon does not answer {request}") from None
    except OSError:
        return None
    answer: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return answer if answer is not None and answer["type"] in ("reply", "refused") else None


@contextlib.contextmanager
def crowded(home: str) -> Iterator[socket.socket]:
    """Give a control socket at which as many wait as may; who comes now must wait until one is let in."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{home}/control.sock")
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(f"{home}/control.sock")
        yield listener

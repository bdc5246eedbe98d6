"""The control socket without a command around it: for tests that ask often."""

from __future__ import annotations

import json
from typing import Any

from pyworker import __version__
from pyworker.protocol.control import PROTOCOL
from pyworker.unix.files import connect_unix


def ask(home: str, request: dict[str, Any], timeout: float = 30.0) -> dict[str, Any] | None:
    """Return the last line of the answer; None when nobody is there, or the daemon went away before it."""
    line = json.dumps({"type": "call", "protocol": PROTOCOL, "version": __version__, "request": request})
    try:
        with connect_unix(home, "control.sock", timeout=timeout) as sock:
            sock.sendall(line.encode() + b"\n")
            with sock.makefile() as file:
                lines = list(file)
    except TimeoutError:
        raise AssertionError(f"the daemon does not answer {request}") from None
    except OSError:
        return None
    answer: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return answer if answer is not None and answer["type"] in ("reply", "refused") else None

"""Load: wrk for throughput, `client.py` in a process of its own for what is lost and how long it took."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
from typing import Any, Self

from benchmarks.harness import peers

CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "client.py")


class Refused(Exception):
    """The connection ended without an answer."""


def wrk(port: int, connections: int, seconds: float, *, close: bool = False, path: str = "/") -> float:
    """Return requests (with `close`: connections) a second."""
    program = peers.binary("wrk")
    if program is None:
        raise RuntimeError("wrk is not installed")
    header = ["-H", "Connection: close"] if close else []
    command = [program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", *header, f"http://127.0.0.1:{port}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=peers.environment(), timeout=seconds + 30, check=True)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    if found is None or bad is not None:
        raise RuntimeError(done.stdout[-300:])
    return float(found[1])


def ask(port: int, path: str = "/", timeout: float = 5.0) -> str:
    """One request on a new connection; return the body."""
    with socket.create_connection(("127.0.0.1", port), timeout) as conn:
        conn.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while part := conn.recv(65536):
            data += part
            head, end, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower()) if end else None
            if length and len(body) >= int(length[1]):
                break
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        raise Refused
    return body.decode()


class Client:
    """A running `client.py`: `with Client(port, "rate", 300) as client: ...`; its report is in `client.report` after."""

    def __init__(self, port: int, kind: str, amount: int, path: str = "/pid") -> None:
        command = [peers.PYTHON, CLIENT, str(port), kind, str(amount), path]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=peers.environment()
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has had its first answer
        self.report: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            out, _err = self._process.communicate(timeout=30)
            self.report = json.loads(out)
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.wait()
            self.report = {"failed": [], "answered": 0, "error": "the client did not report"}


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


def many_files() -> None:
    """Raise this process's limit of open files as far as it may go."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_many(port: int, count: int) -> list[socket.socket]:
    """Open lasting connections, each of which has asked once."""
    many_files()
    opened = []
    for _ in range(count):
        conn = socket.create_connection(("127.0.0.1", port), 10)
        conn.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
        opened.append(conn)
        conn.recv(4096)
    return opened


if __name__ == "__main__":
    sys.exit("a module")

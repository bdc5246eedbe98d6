"""The dashboard as a process, on a made-up daemon."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.support.cli import environment


class Dashboard:
    """`url` is what it printed; `ask` sends one request with the token."""

    def __init__(self, home: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyworker", "web", "--listen", "127.0.0.1:0", *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home), text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.communicate()[1]
        address, _, fragment = self.url.partition("#")
        self.port = int(address.rstrip("/").rpartition(":")[2])
        self.token = fragment.partition("=")[2]

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Authorization": f"Bearer {self.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        with contextlib.closing(connection):
            connection.request(method, path, body, {k: v for k, v in given.items() if v})
            with connection.getresponse() as answer:
                yield answer

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        if body is not None:
            headers["Content_Type"] = "application/json"
        with self.open(method, path, None if body is None else json.dumps(body), **headers) as answer:
            text = answer.read().decode()
            kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(text) if kind.startswith("application/json") else text

    @contextlib.contextmanager
    def stream(self, path: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """Give the (kind, value) pairs of a stream."""
        with self.open("GET", path) as answer:
            assert answer.status == 200
            yield _pairs(answer)


def _pairs(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    kind = ""
    while line := answer.readline().decode():
        if line.startswith("event: "):
            kind = line[7:].strip()
        elif line.startswith("data: "):
            yield kind, json.loads(line[6:])


@contextlib.contextmanager
def dashboard(home: str, *args: str) -> Iterator[Dashboard]:
    os.makedirs(home, mode=0o700, exist_ok=True)
    made = Dashboard(home, *args)
    try:
        yield made
    finally:
        made.process.terminate()
        out, err = made.process.communicate(timeout=30)
        assert made.process.returncode in (0, -15, 143), (made.process.returncode, out, err)
        assert "Traceback" not in err, err

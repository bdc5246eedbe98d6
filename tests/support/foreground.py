"""`pyworker run` for one test: started as a user would, its output in files, its whole tree gone at the end."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.support.pyworker import LONG, Pyworker
from tests.support.wait import wait_until


class Foreground:
    """One running command; `pid` is the guardian it has become."""

    def __init__(self, pw: Pyworker, arguments: Sequence[str], prefix: Sequence[str]) -> None:
        self._pw = pw
        self.out_path = os.path.join(pw.folder, "run.out")
        self.err_path = os.path.join(pw.folder, "run.err")
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "pyworker", "run", *arguments],
                env=pw.environ, cwd=pw.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        with open(self.out_path, errors="replace") as file:
            return file.read()

    @property
    def err(self) -> str:
        with open(self.err_path, errors="replace") as file:
            return file.read()

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until it has said something on stderr."""
        wait_until(
            lambda: self.err.count(text) >= count or self.process.poll() is not None, LONG, lambda: f"{text!r} in\n{self.err}"
        )
        assert self.err.count(text) >= count, f"ended with {self.process.returncode}\n{self.err}"

    def wait_out(self, text: str) -> None:
        """Wait until an app has printed something."""
        wait_until(lambda: text in self.out, LONG, f"{text!r} on stdout")

    def running(self) -> None:
        self.wait_for(" ready in ")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Return its exit code once it has ended."""
        try:
            return self.process.wait(LONG)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.err}") from None

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.ends()

    def children(self) -> dict[str, int]:
        """The processes below it, by what they call themselves: daemon, logger, template, or a worker's name."""
        found = {}
        for each in self._pw.processes():
            with contextlib.suppress(Exception):
                words = each.cmdline()
                found[" ".join(words[:3]).strip()] = each.pid
        return found


def probe(port: int, path: str) -> tuple[int, str]:
    """Ask a probe endpoint; (0, "") when nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


@contextlib.contextmanager
def foreground(pw: Pyworker, *arguments: str, prefix: Sequence[str] = ()) -> Iterator[Foreground]:
    """Run it; at the end it is stopped if it still runs."""
    one = Foreground(pw, arguments, prefix)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.signal(signal.SIGTERM)
            try:
                one.process.wait(LONG)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait(LONG)

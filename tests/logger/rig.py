"""The real logger, and the test as its guardian."""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from pyworker.protocol import store as protocol
from pyworker.protocol import wire
from pyworker.protocol.logs import LogRecord, LogsSpec, parse_record
from pyworker.unix import fds, process
from tests.support.wait import wait_until


class Rig:
    """A store of fds and a logger that is handed them; `start` again after a kill, as the guardian does."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir(mode=0o700, exist_ok=True)
        self.store: dict[str, int] = {}
        self.life_reads, self.life_writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.heard: list[Any] = []
        self.pid = 0
        self.errors = os.open(home / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def start(self, stdout: int | None = None) -> None:
        """`stdout`: the logs go there (it stays the caller's)."""
        self.channel, theirs = fds.socketpair()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        lifeline = os.open(f"/proc/self/fd/{self.life_reads}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.pid = process.spawn(
            [sys.executable, "-I", "-m", "pyworker.logger", "--home", str(self.home), *(["--stdout", "plain"] if stdout else [])],
            dict(os.environ),
            {0: null, 1: stdout or self.errors, 2: self.errors, 3: theirs.fileno(), 4: lifeline},
        )
        theirs.close()
        os.close(null)
        os.close(lifeline)
        names = list(self.store)
        for first in range(0, len(names), protocol.BATCH):
            batch = names[first : first + protocol.BATCH]
            self.say(protocol.Restore(tuple(batch)), [self.store[n] for n in batch])
        self.say(protocol.RestoreDone(0, "boot", os.getpid(), "0"))

    def say(self, message: Any, numbers: list[int] | None = None) -> None:
        assert fds.send_packet(self.channel, wire.encode(message), numbers or [])

    def put(self, name: str, fd: int) -> None:
        """Store an fd (the rig's from here) and hand it to the logger if it runs."""
        old = self.store.pop(name, None)
        if old is not None:
            os.close(old)
        self.store[name] = fd
        if self.pid:
            self.say(protocol.Restore((name,)), [fd])

    def configure(self, app: str, **fields: Any) -> Path:
        """Say how an app's log is written; return its file."""
        values = {"format": "text", "max_size": 50_000_000, "max_files": 5, "compress": False, **fields}
        path = Path(str(values.pop("file", self.home / "logs" / f"{app}.log")))
        self.put(f"logs.{app}", fds.memfd("logs", wire.encode(LogsSpec(str(path), **values))))
        return path

    def pipe(self, name: str, pid: int | None = None) -> int:
        """Store the read end of a new pipe; return the write end (the test's)."""
        reads, writes = os.pipe2(os.O_CLOEXEC)
        kind, _, rest = name.partition(".")
        if pid is not None:
            self.put({"out": "pid", "err": "pid"}.get(kind, "tpid") + "." + rest, os.pidfd_open(pid))
        self.put(name, reads)
        return writes

    def hear_until(self, kind: type, **fields: Any) -> Any:
        def found() -> Any:
            self.listen()
            for index, message in enumerate(self.heard):
                if isinstance(message, kind) and all(getattr(message, k) == v for k, v in fields.items()):
                    return self.heard.pop(index)
            return None

        return wait_until(found, what=f"{kind.__name__} {fields}")

    def listen(self) -> None:
        while True:
            try:
                packet = fds.recv_packet(self.channel, wire.MAX_MESSAGE, 0)
            except ConnectionResetError:
                return
            if packet is None or not packet.data:
                return
            self.heard.append(wire.decode(protocol.FromLogger, packet.data))

    def settle(self) -> None:
        """Return when the logger has obeyed all that was said."""
        self.say(protocol.Ping(7))
        self.hear_until(protocol.Pong)

    def relieve(self) -> None:
        """As the guardian after one that has died, when its own logger has everything."""
        os.write(self.life_writes, b"\n")

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self, deadline: float = 15.0) -> int:
        """Wait for its end and return its exit code."""
        pidfd = os.pidfd_open(self.pid)
        try:
            assert select.select([pidfd], [], [], deadline)[0], "the logger did not end"
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self.channel.close()
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGCONT)
            self.kill()
        for fd in (*self.store.values(), self.life_reads, self.errors):
            os.close(fd)
        if self.life_writes >= 0:
            os.close(self.life_writes)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def records(*paths: Path) -> list[LogRecord]:
    """Return all records of files that have nothing else in them."""
    found = []
    for path in paths:
        data = path.read_bytes() if path.exists() else b""
        assert data == b"" or data.endswith(b"\n"), "torn at the end"
        for line in data.split(b"\n")[:-1]:
            record = parse_record(line)
            assert record is not None, line[:200]
            found.append(record)
    return found


def lines(found: list[LogRecord]) -> list[bytes]:
    """Return the lines of records of one stream, parts rejoined."""
    whole, parts = [], b""
    for record in found:
        parts += record.msg
        if not record.partial:
            whole.append(parts)
            parts = b""
    return [*whole, parts] if parts else whole

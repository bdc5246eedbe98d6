"""Clients of every kind at once against tests/chaos/app.py, and an account of all that they lose.

Each answer begins with the pid of the worker that gives it, so a loss is known to be of a worker, or of none that a byte
came from. What counts as lost: a refused or reset connection, an answer that is cut short or none, a keep-alive connection
that is closed while it is idle without an announcement (`Connection: close` in the answer before) and before its
time-out, a websocket that ends without a close frame.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Self

HTTP = ("new", "new", "keep", "keep", "gaps", "gaps", "pipelined", "post", "stream")
ALL = (*HTTP, "websocket", "websocket")
GONE_CODES = frozenset({1000, 1001, 1012})


class Lost(Exception):
    """What a client expected and did not get."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """One request (or idle connection) that was lost. pid 0: no byte told whose it was."""

    kind: str
    began: float
    noticed: float
    pid: int
    why: str

    def is_explained(self, killed: Collection[tuple[int, float]]) -> bool:
        """True when the worker that had it was killed; where nobody knows which one had it, when one was meanwhile.

        killed: (pid, when) of each kill. A pid may be there more than once: the kernel gives each again within an hour.
        """
        return any(pid == (self.pid or pid) and self.began - 0.5 <= at <= self.noticed + 0.1 for pid, at in killed)


@dataclasses.dataclass
class Tally:
    """What all clients saw."""

    answered: Counter[str] = dataclasses.field(default_factory=Counter)  # by kind
    announced: Counter[str] = dataclasses.field(default_factory=Counter)  # connections closed as they should be
    versions: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: list[str] = dataclasses.field(default_factory=list)
    lost: list[Loss] = dataclasses.field(default_factory=list)
    latencies: list[float] = dataclasses.field(default_factory=list)  # of plain requests

    @property
    def requests(self) -> int:
        return self.answered.total()

    def unexplained(self, killed: Collection[tuple[int, float]]) -> list[Loss]:
        return [loss for loss in self.lost if not loss.is_explained(killed)]

    def percentile(self, share: float) -> float:
        """Return a latency in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class Fleet:
    """Used with `with`: one thread per element of `kinds`, each as busy as its kind allows, until the end."""

    def __init__(
        self,
        port: int,
        kinds: Sequence[str] = ALL,
        *,
        keepalive: float = 5.0,
        seed: int = 1,
        tally: Tally | None = None,
    ) -> None:
        self.tally = tally or Tally()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._clients = [
            _Client(kind, ("127.0.0.1", port), keepalive, random.Random(seed * 1000 + i), self)
            for i, kind in enumerate(kinds)
        ]
        self._threads = [threading.Thread(target=client.run, name=f"client-{client.kind}") for client in self._clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Have every client finish what it does, and wait for that."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} hangs"

    # ---- for the clients -----------------------------------------------------------------------------
    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def pause(self, seconds: float) -> bool:
        """Wait; True when the end has come."""
        return self._over.wait(seconds)

    def answered(self, kind: str, version: str, took: float) -> None:
        with self._lock:
            self.tally.answered[kind] += 1
            self.tally.versions[version] += 1
            if kind in ("new", "keep"):
                self.tally.latencies.append(took)

    def announced(self, kind: str) -> None:
        with self._lock:
            self.tally.announced[kind] += 1

    def refused(self, why: str) -> None:
        with self._lock:
            self.tally.refused.append(why)

    def lost(self, loss: Loss) -> None:
        with self._lock:
            self.tally.lost.append(loss)


class _Client:
    """One client. `pid` is the worker that its connection belongs to, 0 while no byte has told."""

    def __init__(
        self, kind: str, address: tuple[str, int], keepalive: float, chance: random.Random, fleet: Fleet
    ) -> None:
        self.kind, self._address, self._keepalive, self._chance, self._fleet = kind, address, keepalive, chance, fleet
        self._pid = 0
        self._began = 0.0
        self._buffer = b""
        self._idle_since = self._idle_until = math.inf  # as the clock says, not as was meant
        self._sock: socket.socket  # of the connection that is open

    def run(self) -> None:
        fleet = self._fleet
        while not fleet.is_over:
            self._pid, self._buffer, self._began = 0, b"", time.monotonic()
            self._idle_since = math.inf
            try:
                self._sock = socket.create_connection(self._address, timeout=30)
            except OSError as error:
                fleet.refused(f"{self.kind}: {error}")
                fleet.pause(0.05)
                continue
            with self._sock:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    self._websocket() if self.kind == "websocket" else self._talk()
                except (OSError, Lost) as error:
                    if not self._buffer and self._was_held_up:
                        fleet.announced(self.kind)
                        continue
                    why = f"{type(error).__name__} {error}"
                    fleet.lost(Loss(self.kind, self._began, time.monotonic(), self._pid, why))

    @property
    def _was_held_up(self) -> bool:
        """Whether a busy machine had it idle for longer than a connection is kept: its end is as it should be."""
        return self._idle_until - self._idle_since >= self._keepalive

    # ---- http ----------------------------------------------------------------------------------------
    def _talk(self) -> None:
        for _ in range(1 if self.kind == "new" else 40):
            if self._fleet.is_over:
                return
            self._began = time.monotonic()
            count = 4 if self.kind == "pipelined" else 1
            try:
                self._ask(count)
            finally:
                self._idle_until = time.monotonic()
            for number in range(1, count + 1):
                closes, version = self._answer()
                self._fleet.answered(self.kind, version, time.monotonic() - self._began)
                if closes:
                    self._fleet.announced(self.kind)
                    if number < count:
                        raise Lost(f"{count - number} pipelined requests behind an announced end")
                    return
            if self._buffer:
                raise Lost(f"{len(self._buffer)} bytes that nobody asked for")
            self._idle_since = self._began  # at the earliest: the answer may have waited for this client
            if not self._idle():
                return

    def _ask(self, count: int) -> None:
        if self.kind == "post":
            self._sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")
            for _ in range(4):
                self._fleet.pause(0.01)
                self._sock.sendall(b"01234")
        else:
            path = b"/stream" if self.kind == "stream" else b"/"
            self._sock.sendall((b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n") * count)

    def _answer(self) -> tuple[bool, str]:
        """Read one answer; return whether it announces the end of the connection, and the version of the code."""
        head = self._until(b"\r\n\r\n").lower()
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise Lost(f"answer {head[:60]!r}")
        if b"transfer-encoding: chunked" in head:
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                part = self._exactly(size + 2)
                body += part[:-2]
                self._pid = int(part[:7])
            self._exactly(2)
            if len(body) != 4 * 8:
                raise Lost(f"a stream of {len(body)} bytes")
        else:
            self._pid = int(self._exactly(8))
            length = int(self._exactly(8))
            if length != (20 if self.kind == "post" else 0):
                raise Lost(f"the body came to the app as {length} bytes")
        version = head.partition(b"x-version: ")[2].partition(b"\r\n")[0].decode()
        return b"connection: close" in head, version

    def _idle(self) -> bool:
        """Leave the connection open for a while; False when the end has come. Closed meanwhile = lost."""
        gap = 0.0
        if self.kind == "gaps":
            gap = self._chance.uniform(0.0, 0.7) * self._keepalive
        elif self.kind != "keep" and self._chance.random() < 0.3:
            gap = 0.02
        until = time.monotonic() + gap
        self._began = time.monotonic()
        while (left := until - time.monotonic()) > 0 and not self._fleet.is_over:
            if select.select([self._sock], [], [], min(left, 0.2))[0]:
                self._idle_until = time.monotonic()
                data = self._sock.recv(100)
                after = self._idle_until - self._began
                raise Lost(f"{data or 'closed without a word'!r} after {after:.2f} s of idleness")
        return not self._fleet.is_over

    # ---- websocket -----------------------------------------------------------------------------------
    def _websocket(self) -> None:
        key = base64.b64encode(os.urandom(16))
        self._sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        head = self._until(b"\r\n\r\n").lower()
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise Lost(f"answer {head[:60]!r}")
        version = head.partition(b"x-version: ")[2].partition(b"\r\n")[0].decode()
        opcode, payload = self._frame()
        if self._is_told_to_go(opcode, payload):
            return  # it was accepted by one that leaves
        if opcode != 1:
            raise Lost(f"frame {opcode} instead of a greeting")
        self._pid = int(payload)
        for number in range(500):
            text = b"message %d" % number
            self._began = time.monotonic()
            if self._fleet.pause(self._chance.choice((0.0, 0.01, 0.1))):
                self._send_frame(8, struct.pack("!H", 1000))
                return
            if select.select([self._sock], [], [], 0)[0] and self._is_told_to_go(*self._frame(or_ping=True)):
                return
            self._send_frame(1, text)
            opcode, payload = self._frame()
            if self._is_told_to_go(opcode, payload):
                return
            if (opcode, payload) != (1, text):
                raise Lost(f"frame {opcode} {payload!r} instead of an echo")
            self._fleet.answered(self.kind, version, 0.0)
        self._send_frame(8, struct.pack("!H", 1000))

    def _is_told_to_go(self, opcode: int, payload: bytes) -> bool:
        if opcode != 8:
            return False
        code = struct.unpack("!H", payload[:2])[0] if payload else 0
        if code not in GONE_CODES:
            raise Lost(f"closed with code {code}")
        self._send_frame(8, payload[:2])
        self._fleet.announced(self.kind)
        return True

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self._sock.sendall(bytes((0x80 | opcode, 0x80 | len(payload))) + mask + masked)

    def _frame(self, or_ping: bool = False) -> tuple[int, bytes]:
        """Read a frame; pings are answered, and returned only with `or_ping`: no other frame may follow them."""
        while True:
            first, size = self._exactly(2)
            if size == 126:
                size = struct.unpack("!H", self._exactly(2))[0]
            payload = self._exactly(size)
            if first & 15 == 9:
                self._send_frame(10, payload)
                if not or_ping:
                    continue
            return first & 15, payload

    # ---- bytes ---------------------------------------------------------------------------------------
    def _more(self) -> None:
        part = self._sock.recv(65536)
        if not part:
            raise Lost(f"closed after {len(self._buffer)} bytes of an answer")
        self._buffer += part
        if not self._pid and (found := self._buffer.partition(b"\r\n\r\n")[2])[:7].isdigit():
            self._pid = int(found[:7])

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

"""A guardian in a process of its own, and the test as its daemon and logger."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pyworker.protocol import store as protocol
from pyworker.protocol import wire
from pyworker.unix import fds
from tests.support.control import connect

START = Path(__file__).with_name("start.py")


class Peer:
    """The test's hold on one stand-in: its channel, its pid, and what it was restored."""

    def __init__(self, control: socket.socket, pid: int, channel: socket.socket, lifeline: int) -> None:
        self.control = control
        self.pid = pid
        self.channel = channel
        self.lifeline = lifeline
        self.fds: dict[str, int] = {}

    def say(self, message: Any, numbers: tuple[int, ...] = ()) -> None:
        assert fds.send_packet(self.channel, wire.encode(message), numbers)

    def hear(self, *, answer_pings: bool = True, deadline: float = 30.0) -> Any:
        """Return the next message (None at the end of the channel); fds of a Restore are kept in `fds`."""
        end = time.monotonic() + deadline
        while True:
            ready, _, _ = select.select([self.channel], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the guardian said nothing"
            try:
                packet = fds.recv_packet(self.channel, wire.MAX_MESSAGE, 253)
            except ConnectionResetError:  # it left with something unread
                return None
            if packet is None:
                continue
            if not packet.data:
                return None
            message: Any = wire.decode(protocol.ToDaemon | protocol.ToLogger, packet.data)
            if isinstance(message, protocol.Restore):
                assert len(message.names) == len(packet.fds)
                for name, fd in zip(message.names, packet.fds, strict=True):
                    if name in self.fds:
                        os.close(self.fds[name])
                    self.fds[name] = fd
            if isinstance(message, protocol.Ping) and answer_pings:
                self.say(protocol.Pong(message.number))
                continue
            return message

    def hear_until(self, kind: type, **fields: Any) -> Any:
        """Return the next message of a class (with these field values); everything before it is dropped."""
        while True:
            message = self.hear()
            assert message is not None, f"the channel ended before a {kind.__name__}"
            if isinstance(message, kind) and all(getattr(message, k) == v for k, v in fields.items()):
                return message

    def orphan(self) -> int:
        """Make a process whose parent is the guardian; return its pid."""
        self.control.sendall(b"\xff")
        return int(self.control.recv(32))

    def leave(self, code: int = 0) -> None:
        self.control.sendall(bytes([code]))

    def close(self) -> None:
        self.control.close()
        self.channel.close()
        for fd in (*self.fds.values(), *([self.lifeline] if self.lifeline >= 0 else [])):
            os.close(fd)
        self.fds = {}


class Rig:
    """A guardian with short times; `close` ends it and everything it started."""

    def __init__(self, folder: Path, *arguments: str, wait: bool = True, fds: list[int] | None = None) -> None:
        self.home = folder / "home"
        self.peers: list[Peer] = []
        address = str(folder / "test.sock")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(address)
        self.server.listen(16)
        self.server.settimeout(20)
        self.notify, writes = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(START), address, "--home", str(self.home), "--notify-fd", str(writes), *arguments],
            pass_fds=[writes, *(fds or [])], stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(writes)
        if wait:
            assert self.answer() == b"ok\n"

    def answer(self) -> bytes:
        """Return all that the guardian says on its notify fd."""
        words = b""
        while True:
            assert select.select([self.notify], [], [], 20)[0]
            part = os.read(self.notify, 4096)
            if not part:
                return words
            words += part

    def next_peer(self) -> tuple[str, Peer]:
        control, _ = self.server.accept()
        packet = fds.recv_packet(control, 4096, 2)
        while packet is None:
            select.select([control], [], [], 10)
            packet = fds.recv_packet(control, 4096, 2)
        words = json.loads(packet.data)
        channel = socket.socket(fileno=packet.fds[0])
        channel.setblocking(False)
        peer = Peer(control, words["pid"], channel, packet.fds[1] if len(packet.fds) > 1 else -1)
        self.peers.append(peer)
        return words["role"], peer

    def peer(self, role: str) -> Peer:
        """Return the next stand-in, which must have this role."""
        found, peer = self.next_peer()
        assert found == role
        return peer

    def both(self, reason: str = "boot") -> tuple[Peer, Peer]:
        """Return (daemon, logger), both restored."""
        pair = dict(self.next_peer() for _ in range(2))
        for peer in pair.values():
            assert peer.hear_until(protocol.RestoreDone).reason == reason
        pair["daemon"].hear_until(protocol.LoggerState)
        return pair["daemon"], pair["logger"]

    def log(self) -> str:
        return (self.home / "logs" / "pyworker.log").read_text()

    def connect(self) -> socket.socket:
        return connect(str(self.home))

    def close(self) -> None:
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.say(protocol.Stopping())
            peer.close()  # a stand-in that is let go exits 0
        self.server.close()
        os.close(self.notify)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

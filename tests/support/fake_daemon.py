"""The daemon's half of the worker protocols, for tests: real channels, pipes, memfds and processes, no policy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from pyworker.config.schema import AppConfig
from pyworker.daemon.bundle import runtime_zip
from pyworker.protocol import scoreboard, wire
from pyworker.protocol.template import Engine, Fork, Forked, FromTemplate, Launch, Launched, LaunchSpec, Loaded, Parked
from pyworker.protocol.worker import Bind, Bound, FromWorker
from pyworker.unix.fds import memfd, memfd_fixed, pass_credentials, recv_packet, send_packet, socketpair
from pyworker.unix.process import spawn
from pyworker.worker.row import Row
from tests.support.wait import wait_until

T = TypeVar("T")
SITE = sysconfig.get_path("purelib")
DEADLINE = 20.0


class Ended(AssertionError):
    """The process closed its channel where a message was expected."""


class Peer:
    """One channel to a process, and its output."""

    def __init__(self, sock: socket.socket, incoming: Any, out_fd: int, err_fd: int) -> None:
        self.sock = sock
        self.incoming = incoming
        self.out_fd, self.err_fd = out_fd, err_fd
        self.out = self.err = b""
        self.pid = 0

    def send(self, message: Any, *fds: int) -> None:
        assert send_packet(self.sock, wire.encode(message), fds)

    def receive(self, deadline: float = DEADLINE) -> Any:
        """Return the next message; fail with the output of the process when it ends or stays silent."""
        end = time.monotonic() + deadline
        while True:
            packet = recv_packet(self.sock, wire.MAX_MESSAGE, 4)
            if packet is not None:
                if not packet.data:
                    raise Ended(f"channel closed; stderr: {self.read_err().decode(errors='replace')}")
                self.pid = packet.pid or self.pid
                assert not packet.fds
                return wire.decode(self.incoming, packet.data)
            left = end - time.monotonic()
            assert left > 0, f"no message; stderr: {self.read_err().decode(errors='replace')}"
            select.select([self.sock], [], [], left)

    def expect(self, kind: type[T]) -> T:
        """Return the next message, which must be of this kind."""
        message = self.receive()
        while isinstance(message, Parked) and kind is not Parked:  # comes whenever there is time for it
            message = self.receive()
        assert isinstance(message, kind), (message, self.read_err().decode(errors="replace"))
        return message

    def wait_closed(self, deadline: float = DEADLINE) -> None:
        """Wait for the end of the channel, dropping what is said until then."""
        with contextlib.suppress(Ended, ConnectionResetError):
            while True:
                self.receive(deadline)

    def read_out(self) -> bytes:
        self.out += _drain(self.out_fd)
        return self.out

    def read_err(self) -> bytes:
        self.err += _drain(self.err_fd)
        return self.err

    def close(self) -> None:
        self.sock.close()
        for name in ("out_fd", "err_fd"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


def _drain(fd: int) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(fd, 65536):
            data += part
    return data


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, writer


@dataclass
class FakeDaemon:
    """Launches one app; use as a context manager. It becomes the parent of the workers, as the guardian would."""

    app: AppConfig
    listeners: list[socket.socket] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    generation: int = 1
    notify_socket: str = ""
    pem: tuple[bytes, bytes] | None = None

    def __post_init__(self) -> None:
        self.peers: list[Peer] = []
        self.pids: set[int] = set()
        self.serial = 0
        self.runtime_fd = memfd("runtime", runtime_zip())
        self.board_fd = memfd_fixed("board", scoreboard.SIZE)
        # TCP_NODELAY and the like are the daemon's business; O_NONBLOCK is what workers rely on
        for listener in self.listeners:
            listener.setblocking(False)
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids | {p.pid for p in self.peers if p.pid}:
            self.kill(pid)
        for pid in spares():
            self.kill(pid)  # of another one that is used beside this: its template makes a new one
        for peer in self.peers:
            peer.close()
        for listener in self.listeners:
            listener.close()
        os.close(self.runtime_fd)
        os.close(self.board_fd)

    def kill(self, pid: int) -> None:
        """SIGKILL one of ours and its group, and reap it. One that was reaped already is left alone: its pid may be
        another process's by now.
        """
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # no such group when it has not called setsid yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.reap(pid)

    def reap(self, pid: int, deadline: float = DEADLINE) -> int | None:
        """Wait for the end of a worker; return its status like Popen.returncode, None when it is no child (any more)."""
        end = time.monotonic() + deadline
        while True:
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                return None
            if found:
                self.pids.discard(pid)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, f"process {pid} does not end"
            time.sleep(0.005)

    def row(self, row: int) -> Row:
        return Row.mapped(self.board_fd, row)

    def launch(
        self, role: Any, *, slot: int = 0, row: int = 0, held: bool = False, workers: int = 1, direct: bool = False,
        spoken: Any = None,
    ) -> Peer:
        """Start the launcher; the Peer speaks for a template or a script or command worker.

        One that was started directly says nothing; its `pid` is what the launcher has told.
        """
        ours, theirs = socketpair()
        pass_credentials(ours)
        out, out_writer = _pipe()
        err, err_writer = _pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        pems = [memfd("pem", text) for text in self.pem or ()]
        sources = [theirs.fileno(), self.runtime_fd, self.board_fd, *(s.fileno() for s in self.listeners), *pems]
        numbers = list(range(10, 10 + len(sources)))
        spec = LaunchSpec(
            role=role,
            app=self.app,
            generation=self.generation,
            slot=slot,
            serial=0,
            held=held,
            python=self.python,
            env={"PATH": os.environ["PATH"], **self.env},
            uid=self.uid,
            gid=self.gid,
            groups=self.groups,
            engine=Engine(SITE, str(sysconfig.get_config_var("SOABI"))),
            channel_fd=10,
            runtime_fd=11,
            board_fd=12,
            row=row,
            listener_fds=tuple(numbers[3 : 3 + len(self.listeners)]),
            cert_fd=numbers[-2] if pems else -1,
            key_fd=numbers[-1] if pems else -1,
            notify_socket=self.notify_socket,
            workers=workers,
        )
        spec_fd = memfd("spec", wire.encode(spec))
        fds = {0: null, 1: out_writer, 2: err_writer, 9: spec_fd, **dict(zip(numbers, sources, strict=True))}
        launcher, argument = None, "9"
        if spoken is not None:  # before the launcher sees it
            assert send_packet(ours, wire.encode(spoken))
        if role != "template":
            launcher, asked = socketpair()
            assert send_packet(launcher, wire.encode(Launch(1, 9, tuple(fds), direct)), list(fds.values()))
            fds, argument = {0: null, 1: 2, 2: 2, 3: asked.fileno()}, "3"
        command = [sys.executable, "-I", "-m", "pyworker.template", *(["--serve"] if launcher else []), argument]
        pid = spawn(command, {"PATH": "/usr/bin:/bin"}, fds)
        theirs.close()
        for fd in (null, out_writer, err_writer, spec_fd, *pems):
            os.close(fd)
        peer = Peer(ours, FromTemplate if role == "template" else FromWorker, out, err)
        self.peers.append(peer)
        self.pids.add(pid)
        if launcher is None:
            peer.pid = pid
            return peer
        asked.close()
        answer = wait_until(lambda: recv_packet(launcher, wire.MAX_MESSAGE, 0), DEADLINE, "the launcher's answer")
        told: Launched = wire.decode(Launched, answer.data)
        assert (told.number, told.errno) == (1, 0)
        if told.pid:
            peer.pid = told.pid
            self.pids.add(told.pid)
        launcher.close()
        assert self.reap(pid) == 0  # nothing more is asked for, so it leaves; the guardian has its grandchild
        return peer

    def load(self) -> Peer:
        """Start a template and wait until it has imported the app."""
        template = self.launch("template")
        self.loaded = template.expect(Loaded)
        return template

    def fork(self, template: Peer, slot: int, *, held: bool = False, workers: int = 1) -> Peer:
        """Fork a worker; its row is the slot's number times two plus nothing in use: the serial."""
        self.serial += 1
        ours, theirs = socketpair()
        pass_credentials(ours)
        out, out_writer = _pipe()
        err, err_writer = _pipe()
        template.send(Fork(slot, self.serial, self.serial, held, workers), theirs.fileno(), out_writer, err_writer)
        theirs.close()
        os.close(out_writer)
        os.close(err_writer)
        forked = template.expect(Forked)
        assert forked.serial == self.serial
        peer = Peer(ours, FromWorker, out, err)
        peer.pid = forked.pid
        self.pids.add(forked.pid)
        self.peers.append(peer)
        return peer

    def answer_bind(self, peer: Peer, *, errno: int = 0) -> Bind:
        """Answer a script's Bind with the first listener."""
        asked = peer.expect(Bind)
        peer.send(Bound(errno), *([] if errno else [self.listeners[0].fileno()]))
        return asked


def spares() -> list[int]:
    """Return the spares (forked ahead by a template) that are children of this process."""
    found = []
    with open(f"/proc/self/task/{os.getpid()}/children") as listing:
        children = listing.read().split()
    for pid in children:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as comm:
            if comm.read().startswith("spare "):
                found.append(int(pid))
    return found


def tcp_listener(host: str = "127.0.0.1") -> socket.socket:
    """Return a listener on a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, 0))
    listener.listen(512)
    listener.setblocking(False)
    return listener

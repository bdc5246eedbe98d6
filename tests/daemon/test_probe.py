"""The probe endpoint: real sockets, a real loop in a thread."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.daemon import probe
from pyworker.daemon.loop import READ, Loop
from tests.support.pyworker import free_port
from tests.support.wait import wait_until


class Store:
    """Keeps fds as the guardian does."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}

    def get(self, name: str) -> int | None:
        return self.fds.get(name)

    def put(self, name: str, fd: int) -> None:
        self.fds[name] = fd


class Rig:
    """A probe that says what `ready` holds."""

    def __init__(self) -> None:
        self.ready: dict[str, bool] = {"": True, "api": True, "mail": False}
        self.port = free_port()
        self.store: Any = Store()
        self.loop = Loop()
        self._stop, self._stopper = os.pipe()
        self.loop.add(self._stop, READ, lambda _: self.loop.stop())
        self.probe = probe.Probe(self.loop, self.store, f"127.0.0.1:{self.port}", self._say, lambda: "up 1\n")
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _say(self, name: str) -> tuple[bool, str]:
        return self.ready.get(name, False), f"{name or 'all'}\n"

    def ask(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as sock:
            sock.sendall(data)
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
            return answer

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        head, _, body = self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def close(self) -> None:
        os.write(self._stopper, b"x")
        self._thread.join(20)
        self.probe._listener.close()
        for fd in (self._stop, self._stopper, *self.store.fds.values()):
            os.close(fd)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_each_path_has_its_answer(rig: Rig) -> None:
    assert rig.get("/livez") == (200, "ok\n")
    assert rig.get("/readyz") == (200, "all\n")
    assert rig.get("/readyz/api") == (200, "api\n")
    assert rig.get("/readyz/mail") == (503, "mail\n")
    assert rig.get("/metrics?x=1") == (200, "up 1\n")
    assert rig.get("/")[0] == 404
    assert rig.get("/livez", "POST")[0] == 405
    assert rig.get("/livez", "HEAD") == (200, "")
    rig.ready[""] = False
    assert rig.get("/readyz")[0] == 503


@pytest.mark.parametrize("nonsense", [b"hello\r\n\r\n", b"\x16\x03\x01\x00\r\n\r\n", b"GET / SPDY/3\r\n\r\n"])
def test_nonsense_is_refused_and_the_next_is_served(rig: Rig, nonsense: bytes) -> None:
    assert rig.ask(nonsense).startswith(b"HTTP/1.1 400")
    assert rig.get("/livez")[0] == 200


def test_a_request_that_is_too_long_is_dropped(rig: Rig) -> None:
    try:
        answer = rig.ask(b"GET /" + b"x" * (probe.MAX_REQUEST * 2) + b" HTTP/1.1\r\n\r\n")
    except ConnectionError:
        answer = b""
    assert answer == b""
    assert rig.get("/livez")[0] == 200


def test_those_who_say_nothing_are_let_go_and_cannot_crowd_it_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0.1)
    idle = [socket.create_connection(("127.0.0.1", rig.port), timeout=20) for _ in range(probe.MAX_CONNECTIONS + 20)]
    try:

        def served() -> bool:
            try:
                return rig.get("/livez")[0] == 200
            except (ConnectionError, IndexError):
                return False

        wait_until(served, what="room for a request")
        assert all(sock.recv(1) == b"" for sock in idle)
    finally:
        for sock in idle:
            sock.close()


def test_those_who_say_nothing_keep_nobody_out_meanwhile(rig: Rig) -> None:
    idle = [socket.create_connection(("127.0.0.1", rig.port), timeout=20) for _ in range(probe.MAX_CONNECTIONS)]
    try:
        assert rig.get("/livez") == (200, "ok\n")
        assert idle[0].recv(1) == b""
    finally:
        for sock in idle:
            sock.close()


def test_a_socket_file_that_was_left_behind_is_in_nobodys_way(rig: Rig, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/probe.sock"
    for _ in range(2):
        store: Any = Store()
        again = probe.Probe(Loop(), store, address, rig._say, str)
        again._listener.close()
        for fd in store.fds.values():
            os.close(fd)


def test_without_a_descriptor_for_who_asks_the_loop_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_PAUSE", 3600.0)
    loop, store, tries = Loop(), Store(), 0
    made = probe.Probe(loop, store, "127.0.0.1:0", lambda _: (True, ""), str)  # type: ignore[arg-type]
    listener = made._listener

    class WithoutDescriptors:
        fileno = listener.fileno

        def accept(self) -> Any:
            nonlocal tries
            tries += 1
            if tries > 1:
                return listener.accept()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    made._listener = WithoutDescriptors()  # type: ignore[assignment]
    with socket.create_connection(listener.getsockname(), timeout=20) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        for _ in range(5):
            loop.turn(0)
        assert tries == 1
        made._resume()
        while not select.select([client], [], [], 0)[0]:
            loop.turn(1)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    listener.close()
    os.close(store.fds.popitem()[1])
    loop.close()


def test_the_next_daemon_goes_on_with_the_same_listener(rig: Rig) -> None:
    loop = Loop()
    again = probe.Probe(loop, rig.store, "127.0.0.1:1", rig._say, str)
    assert again._listener.getsockname() == ("127.0.0.1", rig.port)
    again._listener.close()

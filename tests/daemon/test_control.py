"""The control socket: who is let in, what is refused, and what a bad client costs the others."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker import __version__
from pyworker.daemon import client as client_module
from pyworker.daemon.client import Client
from pyworker.daemon.control import ControlServer
from pyworker.daemon.loop import Loop
from pyworker.protocol.control import PROTOCOL, Follow, Ps, Request, Shutdown, Status, Upgrade, is_older
from pyworker.protocol.wire import MAX_REQUEST

from .test_loop import Clock


def call(request: dict[str, Any], protocol: object = PROTOCOL, **more: object) -> bytes:
    return (
        json.dumps({"type": "call", "protocol": protocol, "version": __version__, "request": request} | more).encode()
        + b"\n"
    )


PS = call({"type": "ps"})
FOLLOW = call({"type": "follow"})


class Daemon:
    """A control server whose brain answers Ps, keeps followers and fails at Shutdown."""

    def __init__(self, path: Path, own_uid: int | None = None, max_clients: int = 64) -> None:
        self.clock = Clock()
        self.reports: list[str] = []
        self.loop = Loop(self.clock, self.reports.append)
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(256)
        self.requests: list[Request] = []
        self.followers: list[Client] = []
        uid = os.getuid() if own_uid is None else own_uid
        self.server = ControlServer(
            self.loop, self.listener, uid, self.on_call, max_clients=max_clients, report=self.reports.append
        )

    def on_call(self, client: Client, request: Request) -> None:
        self.requests.append(request)
        match request:
            case Follow():
                self.followers.append(client)
            case Shutdown():
                raise RuntimeError("a bug")
            case _:
                client.progress({"n": 1})
                client.reply(True, {"pid": client.pid})

    def connect(self, data: bytes = b"") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        sock.connect(str(self.path))
        sock.sendall(data)
        return sock

    def turn(self, times: int = 20) -> None:
        for _ in range(times):
            self.loop.turn(0)

    def ask(self, data: bytes) -> list[dict[str, Any]]:
        with self.connect(data) as sock:
            self.turn()
            return read_all(sock)

    def close(self) -> None:
        self.server.close()
        self.listener.close()
        self.loop.close()


def read_all(sock: socket.socket) -> list[dict[str, Any]]:
    data = b""
    while part := sock.recv(1 << 20):
        data += part
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "s")
    yield daemon
    daemon.close()


def test_request_gets_its_progress_and_one_reply_and_is_closed(daemon: Daemon) -> None:
    answers = daemon.ask(PS)
    assert [a["type"] for a in answers] == ["progress", "reply"]
    assert answers[1]["body"] == {"pid": os.getpid()}
    assert daemon.requests == [Ps()]
    assert daemon.server.clients == ()


def test_request_in_pieces_is_put_together(daemon: Daemon) -> None:
    with daemon.connect() as sock:
        for byte in PS:
            sock.sendall(bytes([byte]))
            daemon.turn(2)
        assert read_all(sock)[-1]["ok"] is True


def test_client_that_closes_its_half_still_gets_its_answer(daemon: Daemon) -> None:
    with daemon.connect(FOLLOW) as sock:
        sock.shutdown(socket.SHUT_WR)
        daemon.turn()
        (follower,) = daemon.followers
        assert not follower.gone
        follower.progress({"n": 2})
        follower.reply(True, {})
        assert [a["type"] for a in read_all(sock)] == ["progress", "reply"]


def test_client_that_leaves_is_gone_and_says_so_once(daemon: Daemon) -> None:
    left: list[str] = []
    sock = daemon.connect(FOLLOW)
    daemon.turn()
    (follower,) = daemon.followers
    follower.on_gone(lambda: left.append("gone"))
    sock.close()
    daemon.turn()
    assert follower.gone
    assert left == ["gone"]
    follower.progress({})
    follower.reply(True, {})
    daemon.turn()
    assert left == ["gone"]
    assert daemon.server.clients == ()


def test_bytes_after_the_request_are_thrown_away(daemon: Daemon) -> None:
    with daemon.connect(FOLLOW + b"more\n" * 1000) as sock:
        daemon.turn()
        daemon.followers[0].reply(True, {})
        assert len(read_all(sock)) == 1
    assert len(daemon.requests) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"null\n",
        b'"\\ud800"\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"1" * 5000 + b"\n",
        b"\0" * 5000 + b"\n",
        b"GET / HTTP/1.1\r\n",
        call({"type": "ps"}, surprise=1),
        call({"type": "ps", "sample": "yes"}),
        call({"type": "ps", "selectors": ["\ud800"]}),
        call({"type": "exec", "command": "rm"}),
        call({"type": ["ps"]}),
        call({}),
    ],
)
def test_what_is_no_request_is_refused_in_words(daemon: Daemon, line: bytes) -> None:
    (answer,) = daemon.ask(line)
    assert (answer["type"], answer["code"], answer["exit"]) == ("refused", "usage", 2)
    assert answer["message"]
    assert daemon.requests == []
    assert daemon.ask(PS)[-1]["ok"] is True


def test_request_over_the_limit_is_refused(daemon: Daemon) -> None:
    with daemon.connect() as sock:
        sock.setblocking(False)
        left = b"x" * (MAX_REQUEST + 1)
        while left:
            try:
                left = left[sock.send(left) :]
            except BlockingIOError:
                daemon.turn(1)
        daemon.turn()
        sock.settimeout(10)
        (answer,) = read_all(sock)
        assert answer["code"] == "usage"


@pytest.mark.parametrize("protocol", [PROTOCOL + 1, "1", None])
def test_other_protocol_is_refused_with_what_to_do(daemon: Daemon, protocol: object) -> None:
    (answer,) = daemon.ask(call({"type": "ps", "unknown": 1}, protocol))
    assert (answer["code"], answer["exit"]) == ("protocol", 69)
    assert "pyworker daemon upgrade" in answer["hint"]


@pytest.mark.parametrize("protocol", [PROTOCOL + 1, PROTOCOL])
@pytest.mark.parametrize("request_", [{"type": "ps", "new": 1}, {"type": "teleport"}])
def test_newer_command_is_told_to_upgrade_the_daemon(
    daemon: Daemon, protocol: int, request_: dict[str, Any]
) -> None:
    (answer,) = daemon.ask(call(request_, protocol, version="99.0"))
    assert (answer["code"], answer["exit"]) == ("protocol", 69)
    assert f"the daemon is pyworker {__version__}, this command 99.0" in answer["message"]
    assert "pyworker daemon upgrade" in answer["hint"]


def test_older_command_is_told_that_it_is_the_older_one(daemon: Daemon) -> None:
    (answer,) = daemon.ask(call({"type": "ps"}, PROTOCOL - 1, version="0.0.9"))
    assert answer["code"] == "protocol"
    assert answer["hint"] == f"this command is the older one: use (or install here) pyworker {__version__}"


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
def test_every_version_may_ask_for_an_upgrade(daemon: Daemon, protocol: int) -> None:
    assert daemon.ask(call({"type": "upgrade", "python": "/x"}, protocol, version="99.0"))[-1]["ok"] is True
    assert daemon.requests == [Upgrade("/x")]


def test_every_version_may_ask_for_the_status(daemon: Daemon) -> None:
    assert daemon.ask(call({"type": "status"}, PROTOCOL + 7))[-1]["ok"] is True
    assert daemon.requests == [Status()]


@pytest.mark.parametrize(
    ("version", "than", "older"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.9", "0.10", True),
        ("0.10", "0.9", False),
        ("1.0", "1.0", False),
        ("", "1.0", False),
        ("nonsense", "1.0", False),
        ("1.0rc1", "1.1", True),
    ],
)
def test_which_version_is_older(version: str, than: str, older: bool) -> None:
    assert is_older(version, than) is older


def test_another_listener_takes_over_and_who_waits_at_the_old_one_is_let_in(daemon: Daemon) -> None:
    with daemon.connect(PS) as early:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = str(daemon.path) + "2"
        fresh.bind(path)
        fresh.listen(8)
        daemon.server.listen_on(fresh)
        daemon.turn()
        assert read_all(early)[-1]["ok"] is True
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
            late.connect(path)
            late.sendall(PS)
            daemon.turn()
            assert read_all(late)[-1]["ok"] is True
    daemon.server.close()
    fresh.close()


def test_request_that_fails_is_refused_and_reported_and_the_next_one_works(daemon: Daemon) -> None:
    (answer,) = daemon.ask(call({"type": "shutdown"}))
    assert answer["code"] == "failed"
    assert "RuntimeError" in answer["message"]
    assert len(daemon.reports) == 1
    assert daemon.ask(PS)[-1]["ok"] is True


def test_client_without_a_request_is_refused_after_ten_seconds(daemon: Daemon) -> None:
    with daemon.connect(b'{"half') as sock:
        daemon.turn()
        daemon.clock.now += client_module.REQUEST_TIMEOUT + 0.1
        daemon.turn()
        (answer,) = read_all(sock)
        assert answer["code"] == "usage"
    assert daemon.server.clients == ()


def test_follower_may_stay_for_ever(daemon: Daemon) -> None:
    with daemon.connect(FOLLOW):
        daemon.turn()
        daemon.clock.now += 1e6
        daemon.turn()
        assert not daemon.followers[0].gone


def test_client_that_reads_nothing_is_dropped_and_costs_a_bounded_amount(daemon: Daemon) -> None:
    with daemon.connect(FOLLOW):
        daemon.turn()
        (follower,) = daemon.followers
        for _ in range(200):
            follower.progress({"text": "x" * 65536})
            daemon.turn(1)
        assert follower.gone


@pytest.mark.parametrize("size", [3_000_000, 9_000_000], ids=["some", "ps -w of ten thousand workers"])
def test_answer_larger_than_the_socket_buffer_arrives_whole(daemon: Daemon, size: int) -> None:
    with daemon.connect(FOLLOW) as sock:
        daemon.turn()
        daemon.followers[0].reply(True, {"text": "x" * size})
        sock.setblocking(False)
        data = b""
        while not data.endswith(b"\n"):
            assert not daemon.followers[0].gone
            daemon.turn(1)
            try:
                data += sock.recv(1 << 20)
            except BlockingIOError:
                pass
        assert len(json.loads(data)["body"]["text"]) == size


def test_an_answer_that_there_is_no_memory_for_comes_when_there_is(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def want(*_: object) -> int:
        tries.append(daemon.clock.now)
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with daemon.connect(PS) as sock, monkeypatch.context() as without:
        without.setattr(socket.socket, "send", want)
        daemon.turn()
        assert len(tries) < 5, "it spins"
        without.undo()
        daemon.clock.now += 1
        daemon.turn()
        assert [answer["type"] for answer in read_all(sock)] == ["progress", "reply"]


def test_final_answer_that_is_not_taken_is_given_up(daemon: Daemon) -> None:
    with daemon.connect(FOLLOW):
        daemon.turn()
        daemon.followers[0].reply(True, {"text": "x" * 3_000_000})
        assert not daemon.followers[0].gone
        daemon.clock.now += client_module.FAREWELL_TIMEOUT + 0.1
        daemon.turn()
        assert daemon.followers[0].gone


def test_two_hundred_idle_clients_do_not_keep_anybody_out(daemon: Daemon) -> None:
    idle = [daemon.connect() for _ in range(200)]
    with daemon.connect(PS) as sock:
        daemon.turn(40)
        assert read_all(sock)[-1]["ok"] is True
    assert len(daemon.server.clients) <= 64
    for one in idle:
        one.close()


def test_client_whose_request_was_only_not_read_yet_is_not_taken_for_idle(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "s", max_clients=4)
    early = [daemon.connect() for _ in range(4)]
    daemon.turn()
    early[0].sendall(PS)
    with daemon.connect(PS) as late:
        daemon.turn()
        assert read_all(early[0])[-1]["ok"] is True
        assert read_all(late)[-1]["ok"] is True
    for one in early:
        one.close()
    daemon.close()


def test_full_house_of_busy_clients_refuses_the_next_with_a_reason(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "s", max_clients=4)
    busy = [daemon.connect(FOLLOW) for _ in range(4)]
    daemon.turn()
    (answer,) = daemon.ask(PS)
    assert (answer["code"], answer["exit"]) == ("busy", 75)
    for one in busy:
        one.close()
    daemon.turn()
    assert daemon.ask(PS)[-1]["ok"] is True
    daemon.close()


def test_another_user_is_refused(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root is let in everywhere; the other half of this test needs another user")
    daemon = Daemon(tmp_path / "s", own_uid=os.getuid() + 1)
    (answer,) = daemon.ask(PS)
    assert (answer["code"], answer["exit"]) == ("no_permission", 77)
    daemon.close()


def test_uid_of_the_peer_comes_from_the_kernel(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    daemon = Daemon(tmp_path / "s")
    os.chmod(tmp_path / "s", 0o777)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    # The kernel notes the effective uid at connect; a relative path is not stopped by the folders above.
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chmod(tmp_path, 0o755)
    os.chdir(tmp_path)
    os.seteuid(65534)
    try:
        sock.connect("s")
    finally:
        os.seteuid(0)
        os.fchdir(before)
        os.close(before)
    with sock:
        sock.sendall(PS)
        daemon.turn()
        (answer,) = read_all(sock)
    assert (answer["code"], answer["exit"]) == ("no_permission", 77)
    assert daemon.requests == []
    daemon.close()


def test_without_fds_the_client_is_told_and_the_loop_does_not_spin(daemon: Daemon) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    sock = daemon.connect(PS)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        daemon.turn()
        (answer,) = read_all(sock)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert answer["code"] == "busy"
    assert daemon.reports == []
    sock.close()
    daemon.clock.now += 1
    daemon.turn()
    assert daemon.ask(PS)[-1]["ok"] is True


def test_closing_the_server_drops_clients_and_keeps_the_listener(daemon: Daemon) -> None:
    with daemon.connect(FOLLOW) as sock:
        daemon.turn()
        daemon.server.close()
        assert sock.recv(1) == b""
    assert daemon.listener.fileno() >= 0

"""Single health checks against real servers and real commands, well-behaved and not."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from pyworker.config.schema import AppConfig, HealthConfig, ResolvedApp
from pyworker.daemon import check
from pyworker.daemon.loop import READ, Loop
from pyworker.unix import fds, process
from pyworker.unix.ready import ready
from tests.support.words import TOO_MANY_OPEN_FILES

HTTP = HealthConfig(path="/healthz", host="shop.example", timeout=5.0)
TCP = HealthConfig(type="tcp", timeout=5.0)


@dataclass
class Outcome:
    calls: list[tuple[bool | None, str]] = field(default_factory=list)

    def __call__(self, ok: bool | None, reason: str) -> None:
        self.calls.append((ok, reason))


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def loop(reports: list[str]) -> Iterator[Loop]:
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, which some tests set: orphans are not ours here
    loop = Loop(report=reports.append)
    yield loop
    loop.close()
    assert reports == []


@pytest.fixture
def outcome() -> Outcome:
    return Outcome()


def turn_until(loop: Loop, outcome: Outcome, deadline: float = 20.0) -> tuple[bool | None, str]:
    end = time.monotonic() + deadline
    while not outcome.calls:
        assert time.monotonic() < end, "the check has not ended"
        loop.turn(0.1)
    (call,) = outcome.calls
    return call


def let_pass(seconds: float, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have so much time passed at once, between two turns."""
    now = loop.clock() + seconds
    monkeypatch.setattr(loop, "clock", lambda: now)
    loop.turn(0)


class App:
    """The other end of a private connection: notes the request, answers in pieces."""

    def __init__(self, loop: Loop, *answer: bytes, close: bool = True) -> None:
        self.loop = loop
        self.ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.request = b""
        self.answer = list(answer)
        self.close = close
        loop.add(self.sock.fileno(), READ, self.on_readable)

    def on_readable(self, _: int) -> None:
        data = self.sock.recv(65536)
        self.request += data
        if not data:
            self.end()
        elif self.request.endswith(b"\r\n\r\n"):
            self.say()

    def say(self) -> None:
        if self.answer:
            try:
                self.sock.send(self.answer.pop(0))
            except BrokenPipeError:  # the check has heard enough
                return
            self.loop.call_soon(self.say)
        elif self.close:
            self.end()

    def end(self) -> None:
        if self.sock.fileno() >= 0:
            self.loop.remove(self.sock.fileno())
            self.sock.close()


def ask(loop: Loop, outcome: Outcome, *answer: bytes, close: bool = True, config: HealthConfig = HTTP) -> App:
    app = App(loop, *answer, close=close)
    check.http(loop, app.ours, config, outcome)
    turn_until(loop, outcome)
    app.end()
    assert app.ours.fileno() == -1
    return app


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def test_good_answer_is_healthy_and_the_request_is_what_apps_expect(loop: Loop, outcome: Outcome) -> None:
    app = ask(loop, outcome, OK)
    assert outcome.calls == [(True, "")]
    lines = app.request.decode().split("\r\n")
    assert lines[0] == "GET /healthz HTTP/1.1"
    assert "Host: shop.example" in lines
    assert "x-pyworker-check: 1" in lines
    assert "Connection: close" in lines


@pytest.mark.parametrize("answer", [OK, b"HTTP/1.1 204 No Content\r\n\r\n"])
def test_answer_of_known_length_need_not_be_followed_by_a_close(loop: Loop, outcome: Outcome, answer: bytes) -> None:
    ask(loop, outcome, answer, close=False)
    assert outcome.calls == [(True, "")]


def test_answer_may_come_byte_by_byte_after_an_interim_one(loop: Loop, outcome: Outcome) -> None:
    whole = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + b"HTTP/1.1 204 No Content\r\n\r\n"
    ask(loop, outcome, *[bytes([b]) for b in whole])
    assert outcome.calls == [(True, "")]


def test_other_status_is_unhealthy_and_says_what_was_expected(loop: Loop, outcome: Outcome) -> None:
    ask(loop, outcome, b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    assert outcome.calls == [(False, "GET /healthz answered 500, expected 2xx")]


@pytest.mark.parametrize(
    ("answer", "more"),
    [
        (b"400 Bad Request", "; it was asked as shop.example: set health.host to a name that the app knows (one of Django's ALLOWED_HOSTS)"),
        (b"301 Moved\r\nLOCATION: https://shop.example/\x1b[2Jhealthz", " (to https://shop.example/?[2Jhealthz)"),
        (b"302 Found\r\nlocation: /" + b"x" * 200, " (to /" + "x" * 98 + "…)"),
        (b"302 Found", ""),
        (b"404 Not Found\r\nLocation: /", ""),
    ],
)  # fmt: skip
def test_a_name_that_the_app_does_not_know_and_a_redirect_are_said(
    loop: Loop, outcome: Outcome, answer: bytes, more: str
) -> None:
    """Both are what a Django app of production says to the first check, and it logs neither."""
    ask(loop, outcome, b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n")
    said = answer[:3].decode()
    words = f"GET /healthz answered {said}{more}, expected 2xx" if said[0] == "3" else f"GET /healthz answered {said}, expected 2xx{more}"
    assert outcome.calls == [(False, words)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed without an answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 999 What\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200", "not an HTTP answer"),
        (b"x" * 100_000, "not an HTTP answer"),
    ],
)
def test_what_is_no_answer_is_unhealthy(loop: Loop, outcome: Outcome, answer: bytes, words: str) -> None:
    ask(loop, outcome, *[answer[i : i + 20_000] for i in range(0, len(answer), 20_000)])
    assert outcome.calls[0][0] is False
    assert words in outcome.calls[0][1]


def test_endless_page_is_not_read_for_ever(loop: Loop, outcome: Outcome) -> None:
    ask(loop, outcome, b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 16_000] * 20, close=False)
    assert outcome.calls == [(True, "")]


def test_silent_worker_is_unhealthy_after_the_timeout(loop: Loop, outcome: Outcome) -> None:
    ask(loop, outcome, close=False, config=HealthConfig(timeout=0.05))
    assert outcome.calls == [(False, "no answer within 0.05 s")]


def test_half_an_answer_is_unhealthy_after_the_timeout(loop: Loop, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(loop, OK[:-1], close=False)
    check.http(loop, app.ours, HTTP, outcome)
    while app.answer or ready(app.ours.fileno(), select.POLLIN):
        loop.turn(0.1)
    let_pass(HTTP.timeout, loop, monkeypatch)
    app.end()
    assert outcome.calls == [(False, "no whole answer within 5 s")]


def test_worker_that_died_is_unhealthy(loop: Loop, outcome: Outcome) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    check.http(loop, ours, HTTP, outcome)
    assert turn_until(loop, outcome)[0] is False


def test_cancelled_check_says_nothing_and_closes_its_socket(loop: Loop, outcome: Outcome) -> None:
    app = App(loop, OK)
    running = check.http(loop, app.ours, HTTP, outcome)
    running.cancel()
    running.cancel()
    loop.turn(0)
    app.end()
    assert outcome.calls == []
    assert app.ours.fileno() == -1


# ---- ports -----------------------------------------------------------------------------------------
@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_port_that_accepts_is_healthy(loop: Loop, outcome: Outcome, listener: socket.socket) -> None:
    check.at(loop, listener.getsockname(), TCP, outcome)
    assert turn_until(loop, outcome) == (True, "")


def test_port_that_nobody_listens_on_is_unhealthy(loop: Loop, outcome: Outcome) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        for config in (TCP, HTTP):
            outcome.calls.clear()
            check.at(loop, bound.getsockname(), config, outcome)
            ok, reason = turn_until(loop, outcome)
            assert not ok
            assert "refused" in reason


def test_http_over_a_port_and_over_a_unix_socket(
    loop: Loop, outcome: Outcome, listener: socket.socket, tmp_path: Path
) -> None:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    for server, address in ((listener, listener.getsockname()), (unix, str(tmp_path / "s"))):
        outcome.calls.clear()
        check.at(loop, address, HTTP, outcome)
        connection = server.accept()[0]
        with connection:
            connection.sendall(OK)
            assert turn_until(loop, outcome) == (True, "")
    unix.close()


def test_missing_unix_socket_is_unhealthy(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    check.at(loop, str(tmp_path / "none"), TCP, outcome)
    assert turn_until(loop, outcome)[0] is False


@pytest.mark.parametrize("address", ["/" + "x" * 200, ("::1%none", 1)])
def test_address_that_cannot_even_be_tried_is_unhealthy_once(
    loop: Loop, outcome: Outcome, address: check.Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    check.at(loop, address, TCP, outcome)
    ok, reason = turn_until(loop, outcome)
    assert (ok, reason.startswith("cannot connect: ")) == (False, True)
    let_pass(TCP.timeout, loop, monkeypatch)  # in which it is not judged a second time
    assert len(outcome.calls) == 1


def test_that_no_port_is_left_to_connect_from_says_nothing_of_who_was_to_answer(
    loop: Loop, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoPort(socket.socket):
        def connect_ex(self, _: object) -> int:
            return errno.EADDRNOTAVAIL

    monkeypatch.setattr(check, "_socket_for", lambda _: NoPort())
    check.at(loop, ("127.0.0.1", 1), TCP, outcome)
    assert turn_until(loop, outcome) == (None, "cannot connect: Cannot assign requested address")


def test_a_unix_socket_on_which_nobody_accepts_is_unhealthy(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        check.at(loop, path, TCP, outcome)
        assert turn_until(loop, outcome) == (False, "cannot connect: Resource temporarily unavailable")


# ---- commands --------------------------------------------------------------------------------------
def resolved(tmp_path: Path, *, uid: int | None = None) -> ResolvedApp:
    config = AppConfig("api", command=("true",), cwd=str(tmp_path))
    env = {"PATH": os.environ["PATH"], "TOKEN": "from the app"}
    return ResolvedApp(config, 1, sys.executable, env, (), uid, uid, (), "", 0)


def execute(loop: Loop, outcome: Outcome, app: ResolvedApp, *command: str, timeout: float = 15.0) -> tuple[bool | None, str]:
    before, descriptors = children(), {*os.listdir("/proc/self/fd")}
    check.Command(loop, app, HealthConfig(type="exec", command=command, timeout=timeout), outcome)
    result = turn_until(loop, outcome)
    end = time.monotonic() + 10
    while loop._registrations:  # a killed command is reaped by and by
        assert time.monotonic() < end
        loop.turn(0.1)
    assert children() <= before
    assert {*os.listdir("/proc/self/fd")} <= descriptors
    return result


def children() -> set[bytes]:
    """Return the pids of ours, also of those that have ended; other tests may have left some."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_bytes().split())


def test_command_that_exits_with_0_is_healthy(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    script = 'test "$TOKEN" = "from the app" && test "$PWD" = "$0"'
    assert execute(loop, outcome, resolved(tmp_path), "sh", "-c", script, str(tmp_path)) == (True, "")


def test_command_has_the_umask_of_the_app_and_not_the_daemons(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        assert execute(loop, outcome, resolved(tmp_path), "sh", "-c", "test $(umask) = 0022") == (True, "")
    finally:
        os.umask(old)


def test_command_has_signals_as_a_shell_gives_them(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    ok, reason = execute(loop, outcome, resolved(tmp_path), "sh", "-c", "kill -PIPE $$")
    assert not ok, "it would write into a pipe that nobody reads for ever"
    assert "signal 13" in reason


def test_command_that_fails_says_why_in_its_own_words(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    ok, reason = execute(loop, outcome, resolved(tmp_path), "sh", "-c", "echo queue is full >&2; exit 3")
    assert (ok, reason) == (False, "sh: exit code 3: queue is full")


def test_last_words_of_a_command_that_says_much_at_once_are_not_lost(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    script = "yes | head -c 60000; echo the cause; exit 3"
    config = HealthConfig(type="exec", command=("sh", "-c", script), timeout=15.0)
    running = check.Command(loop, resolved(tmp_path), config, outcome)
    assert isinstance(running, check.Command)
    select.select([running.pidfd], [], [], 10)  # all of it is in the pipe before anybody looks
    ok, reason = turn_until(loop, outcome)
    assert (ok, reason.endswith("the cause")) == (False, True)


def test_command_that_cannot_be_run_says_so(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    ok, reason = execute(loop, outcome, resolved(tmp_path), "no-such-command")
    assert not ok
    assert "cannot run no-such-command" in reason


def test_command_that_hangs_is_killed_with_all_it_started(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    ok, reason = execute(loop, outcome, resolved(tmp_path), "sh", "-c", "echo busy; sleep 100 & sleep 100", timeout=0.5)
    assert not ok
    assert reason.startswith("sh did not end within 0.5 s")


def test_command_ends_by_itself_where_nobody_is_left_to_end_it_and_not_before_the_daemon_goes_on_after_a_standstill(
    loop: Loop, outcome: Outcome, tmp_path: Path
) -> None:
    script = "import signal; left = signal.alarm(0); raise SystemExit(0 if 15 + 120 < left <= 15 + 600 else 1)"
    assert execute(loop, outcome, resolved(tmp_path), sys.executable, "-c", script, timeout=14.5) == (True, "")


def test_what_a_command_prints_without_end_is_read_at_leisure(
    loop: Loop, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`yes` as a check, or as a hook, had most of a CPU of the daemon's, too."""
    reads: list[int] = []

    def read(fd: int, size: int, real: Callable[[int, int], bytes] = os.read) -> bytes:
        reads.append(fd)
        return real(fd, size)

    now = 100.0  # it stands still until it prints: a busy machine starts it late
    monkeypatch.setattr(loop, "clock", lambda: now)
    config = HealthConfig(type="exec", command=("yes",), timeout=0.5)
    command = check.Command(loop, resolved(tmp_path), config, outcome)
    monkeypatch.setattr(os, "read", read)
    while not outcome.calls:
        assert select.select([command._pipe], [], [], 30)[0], "it does not print"
        loop.turn(0)
        now += 0.001
    assert outcome.calls[0][0] is False
    assert 1 < reads.count(command._pipe) <= config.timeout / 0.01 + 2


def test_command_that_leaves_a_child_with_its_output_does_not_hold_the_check(
    loop: Loop, outcome: Outcome, tmp_path: Path
) -> None:
    assert execute(loop, outcome, resolved(tmp_path), "sh", "-c", "sleep 100 & exit 0") == (True, "")


def test_cancelled_command_is_killed_and_reaped(loop: Loop, outcome: Outcome, tmp_path: Path) -> None:
    config = HealthConfig(type="exec", command=("sleep", "100"), timeout=60)
    before, descriptors = children(), {*os.listdir("/proc/self/fd")}
    running = check.Command(loop, resolved(tmp_path), config, outcome)
    running.cancel()
    running.cancel()
    end = time.monotonic() + 10
    while loop._registrations:
        assert time.monotonic() < end
        loop.turn(0.1)
    assert outcome.calls == []
    assert children() <= before
    assert {*os.listdir("/proc/self/fd")} <= descriptors


@pytest.mark.parametrize("missing", ["memfd", "pipe", "process"])
def test_command_for_which_there_is_no_room_is_no_success_and_leaves_no_descriptor(
    loop: Loop, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    where, name = {"memfd": (fds, "memfd"), "pipe": (os, "pipe2"), "process": (process, "spawn_watched")}[missing]
    monkeypatch.setattr(where, name, refuse)
    assert execute(loop, outcome, resolved(tmp_path), "true") == (None, f"cannot start it: {TOO_MANY_OPEN_FILES}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up rights")
def test_command_runs_as_the_apps_user(loop: Loop, outcome: Outcome) -> None:
    app = resolved(Path("/"), uid=65534)
    assert execute(loop, outcome, app, "sh", "-c", 'test "$(id -u):$(id -g):$(id -G)" = 65534:65534:65534') == (
        True,
        "",
    )

"""The watch over one worker: check after check, verdicts on change, nothing after stop."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyworker.config.address import parse_bind
from pyworker.config.schema import AppConfig, HealthConfig, ResolvedApp
from pyworker.daemon.check import Check, Done
from pyworker.daemon.health import HealthWatch, check_of, where_to_ask
from pyworker.daemon.listener import open_listener
from pyworker.daemon.loop import Loop
from pyworker.daemon.shortage import is_want
from tests.support.descriptors import open_fds

from .test_loop import Clock

CONFIG = HealthConfig(interval=10.0, retries=2)


class FakeCheck(Check):
    """A check that ends when the test says so."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Watched:
    def __init__(self) -> None:
        self.clock = Clock()
        self.loop = Loop(self.clock)
        self.checks: list[FakeCheck] = []
        self.verdicts: list[tuple[str, str]] = []
        self.broken = 0
        self.watch = HealthWatch(self.loop, CONFIG, self.begin, lambda v, why: self.verdicts.append((v, why)))

    def begin(self, done: Done) -> Check:
        if self.broken:
            raise OSError(self.broken, os.strerror(self.broken))
        self.checks.append(FakeCheck(done))
        return self.checks[-1]

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.loop.turn(0)

    def answer(self, ok: bool) -> None:
        self.checks[-1].done(ok, "" if ok else "it said no")


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.watch.stop()
    watched.loop.close()


def test_verdict_is_told_when_it_changes_and_only_then(watched: Watched) -> None:
    watched.later(0)
    watched.answer(True)
    watched.later(10)
    watched.answer(True)
    for _ in range(3):
        watched.later(10)
        watched.answer(False)
    watched.later(10)
    watched.answer(True)
    assert watched.verdicts == [("ok", ""), ("failing", "it said no"), ("ok", "")]


def test_one_check_at_a_time(watched: Watched) -> None:
    watched.later(0)
    watched.later(1000)
    assert len(watched.checks) == 1


def test_nothing_happens_after_stop(watched: Watched) -> None:
    watched.later(0)
    watched.watch.stop()
    assert watched.checks[0].cancelled
    watched.answer(True)
    watched.later(1000)
    assert watched.verdicts == []
    assert len(watched.checks) == 1


def test_nothing_is_asked_any_more_after_a_stop_between_two_checks(watched: Watched) -> None:
    watched.later(0)
    watched.answer(True)
    watched.watch.stop()
    watched.later(1000)
    assert len(watched.checks) == 1


def test_the_interval_is_from_one_question_to_the_next_however_long_the_answer_took(watched: Watched) -> None:
    watched.later(0)
    watched.later(4)
    watched.answer(True)
    watched.later(5.9)
    assert len(watched.checks) == 1
    watched.later(0.2)
    assert len(watched.checks) == 2


@pytest.mark.parametrize(
    ("number", "verdicts"),
    [
        (errno.ECONNRESET, [("ok", ""), ("failing", "cannot begin a check: Connection reset by peer")]),
        (errno.EMFILE, [("ok", "")]),
    ],
)
def test_check_that_cannot_begin_is_a_failed_one_unless_it_is_the_daemon_that_lacks_something(
    watched: Watched, number: int, verdicts: list[tuple[str, str]]
) -> None:
    watched.later(0)
    watched.answer(True)
    watched.broken = number
    for _ in range(3):
        watched.later(10)
    assert watched.verdicts == verdicts
    assert watched.watch.health.reason == f"cannot begin a check: {os.strerror(number)}"


def test_why_nobody_could_be_asked_is_told_to_whoever_waits_for_the_first_check(watched: Watched) -> None:
    watched.broken = errno.EMFILE
    for _ in range(20):
        watched.later(0.5)
    assert watched.verdicts == [("late", "cannot begin a check: Too many open files")]


def resolved(config: AppConfig) -> ResolvedApp:
    return ResolvedApp(config, 1, sys.executable, {}, (), None, None, (), "", 0)


def test_worker_of_a_target_is_asked_over_a_connection_of_its_own() -> None:
    loop = Loop()
    handed: list[socket.socket] = []
    answers: list[bool] = []
    app = resolved(AppConfig("api", target="m:app", health=HealthConfig(timeout=30)))

    def hand_over(sock: socket.socket) -> bool:
        handed.append(sock.dup())
        return True

    check_of(loop, app, hand_over, None)(lambda ok, _: answers.append(ok))
    loop.turn(5)
    (worker_end,) = handed
    worker_end.settimeout(10)
    assert worker_end.recv(65536).startswith(b"GET / HTTP/1.1\r\n")
    worker_end.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    while not answers:
        loop.turn(5)
    assert answers == [True]
    worker_end.close()
    loop.close()


def no_room(_: object) -> bool:
    return False


def no_more_under_way(_: object) -> bool:
    raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))


@pytest.mark.parametrize(
    ("hand_over", "is_a_failure"),
    [(no_room, True), (no_more_under_way, False)],  # of the second it is the daemon that lacks something
)
def test_worker_that_takes_no_message_fails_its_check(hand_over: Callable[[object], bool], is_a_failure: bool) -> None:
    loop = Loop()
    app = resolved(AppConfig("api", target="m:app", health=HealthConfig()))
    before = open_fds()
    with pytest.raises(OSError, match=r"does not take|Too many references") as refused:
        check_of(loop, app, hand_over, None)(lambda ok, reason: None)
    assert is_want(refused.value.errno) is not is_a_failure
    assert open_fds() == before
    loop.close()


@pytest.mark.parametrize("text", ["127.0.0.1:0", "0.0.0.0:0", "localhost:0", "[::]:0", "unix:{}", ""])
def test_command_is_asked_at_its_port_or_where_the_app_listens(text: str, tmp_path: Path) -> None:
    loop = Loop()
    address = parse_bind(text.format(tmp_path / "s") if text else "127.0.0.1:0")
    with open_listener(address) as server:
        health = HealthConfig(type="tcp", port=None if text else server.getsockname()[1], timeout=30)
        where = where_to_ask(health, 0, (address, server) if text else None)
        answers: list[bool] = []
        check_of(loop, resolved(AppConfig("api", command=("x",), health=health)), lambda _: False, where)(
            lambda ok, _: answers.append(ok)
        )
        while not answers:
            loop.turn(5)
        assert answers == [True]
    loop.close()


@pytest.mark.parametrize(("own", "asked"), [(81, 81), (0, 80)])
def test_a_worker_with_a_port_of_its_own_is_asked_there(own: int, asked: int) -> None:
    assert where_to_ask(HealthConfig(type="tcp", port=80), own, None) == ("127.0.0.1", asked)

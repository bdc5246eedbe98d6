"""The clients notice what they are there to notice: a test of the judge, with servers that misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.chaos import Sample, judge
from tests.support.fleet import Fleet, Loss, Tally
from tests.support.wait import wait_until

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n0000123\n0000000\n"
BYE = GOOD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Call `answer` with every connection after its first request has come; then close it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                data = connection.recv(65536)
                while data.startswith(b"POST") and not data.endswith(b"01234" * 4):
                    data += connection.recv(65536)
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def tally_of(
    kind: str, answer: Callable[[socket.socket], None], *, until: Callable[[Tally], object], keepalive: float = 5.0
) -> Tally:
    with server(answer) as port, Fleet(port, (kind,), keepalive=keepalive) as fleet:
        wait_until(lambda: until(fleet.tally))
    return fleet.tally


@pytest.mark.parametrize(
    ("kind", "answer", "why"),
    [
        ("new", lambda c: None, "closed after 0 bytes"),
        ("new", lambda c: c.sendall(GOOD[:-3]), "closed after"),
        ("new", lambda c: c.sendall(GOOD.replace(b"200", b"503")), "503"),
        ("post", lambda c: c.sendall(GOOD), "came to the app as 0 bytes"),
        ("gaps", lambda c: c.sendall(GOOD), "closed without a word"),
        ("gaps", lambda c: c.sendall(GOOD + b"?"), "nobody asked for"),
        ("pipelined", lambda c: c.sendall(BYE), "pipelined requests behind an announced end"),
        ("pipelined", lambda c: c.sendall(GOOD * 2), "closed after 0 bytes"),
        (
            "stream",
            lambda c: c.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n0000123\n"),
            "closed",
        ),
        ("websocket", lambda c: c.sendall(b"HTTP/1.1 101 Switching\r\n\r\n\x81\x070000123"), "closed after 0 bytes"),
        ("websocket", lambda c: c.sendall(b"HTTP/1.1 101 S\r\n\r\n\x81\x070000123\x88\x02\x03\xf3"), "code 1011"),
    ],
)
def test_a_loss_is_counted_with_its_reason(kind: str, answer: Callable[[socket.socket], None], why: str) -> None:
    tally = tally_of(kind, answer, until=lambda tally: tally.lost)
    assert why in tally.lost[0].why


def test_an_announced_end_is_no_loss() -> None:
    tally = tally_of("keep", lambda c: c.sendall(BYE), until=lambda tally: tally.announced["keep"] > 3)
    assert tally.lost == []


def test_the_end_of_a_connection_that_was_idle_for_its_whole_time_is_no_loss() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(GOOD)
        connection.recv(65536)

    tally = tally_of("keep", answer, until=lambda tally: tally.announced["keep"] > 3, keepalive=0.0)
    assert tally.lost == []


def test_a_ping_that_nothing_follows_is_answered_and_not_waited_behind() -> None:
    def echo(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 101 S\r\n\r\n\x81\x070000123")
        with connection.makefile("rb") as sent:
            while len(head := sent.read(6)) == 6:
                payload = sent.read(head[1] & 127)
                if head[0] == 0x81:
                    text = bytes(b ^ head[2 + i % 4] for i, b in enumerate(payload))
                    connection.sendall(bytes((0x81, len(text))) + text)
                    connection.sendall(b"\x89\x00")

    tally = tally_of("websocket", echo, until=lambda tally: tally.answered["websocket"] > 20)
    assert tally.lost == []


def test_a_closed_port_is_refused() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with Fleet(probe.getsockname()[1], ("new",)) as fleet:
            wait_until(lambda: fleet.tally.refused)
    assert fleet.tally.lost == []


def test_only_a_kill_of_the_worker_itself_explains_a_loss() -> None:
    known = Loss("new", 10.0, 11.0, 7, "")
    assert known.is_explained([(7, 10.5)])
    assert not known.is_explained([(8, 10.5)])
    assert not known.is_explained([(7, 9.0)])  # the pid of another one, long ago
    assert known.is_explained([(7, 10.5), (7, 2000.0)])  # and of another one, long after
    unknown = Loss("new", 10.0, 11.0, 0, "")
    assert unknown.is_explained([(8, 10.5)])
    assert not unknown.is_explained([(8, 12.0)])
    assert not unknown.is_explained([(8, 3.0)])


def test_memory_that_only_varies_is_judged_over_an_hour_and_no_less() -> None:
    memory = (81.1, 78.9, 86.6, 79.0, 78.9, 82.4, 82.2, 82.2, 70.5, 82.1, 86.4, 83.4)  # of twelve minutes
    samples: list[Sample | None] = [Sample(40 * i, {}, mb, {}) for i, mb in enumerate(memory)]
    assert judge(samples, is_hour=False) == []
    assert judge(samples, is_hour=True) != []

"""A WSGI app in threads."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines.pool import UNSENT, ThreadPool
from tests.support.apps import hello
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve


def test_each_thread_has_a_request_and_the_rest_waits(serve: Serve) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        inside.release()
        go.wait(20)
        return hello.wsgi(environ, start_response)

    site = serve(app, "wsgi", loop="uvloop", threads=4)
    told: list[bool] = []
    site.running.server.on_saturation = told.append
    clients = [site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(3)]
    for _ in range(3):
        assert inside.acquire(timeout=30)
    assert told == []
    clients += [site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(3)]
    assert inside.acquire(timeout=30)
    wait_until(lambda: site.row[F.IN_FLIGHT] == 6, what="six requests")
    assert not inside.acquire(blocking=False)
    assert site.running.call(lambda: site.running.server.saturated)
    go.set()
    assert all(client.recv() is not None for client in clients)
    wait_until(lambda: site.running.server.pool.pending == 0, what="idle threads")
    site.running.call(lambda: None)  # the turn in which that came is over
    assert told[0] is True  # not again for each request
    assert set(told[1:]) == {False}


class Turns:
    """In the place of a loop: what it is asked to call soon waits for `turn`."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.call_soon = self.call_soon_threadsafe = self.soon.append

    def turn(self) -> None:
        called, self.soon[:] = self.soon[:], []
        for each in called:
            each()


class Job:
    """In the place of an exchange."""

    def __init__(self, go: threading.Event | None = None) -> None:
        self.go = go
        self.thread = ""

    def run(self) -> None:
        self.thread = threading.current_thread().name
        if self.go is not None:
            self.go.wait(20)


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def pool(turns: Turns) -> Iterator[ThreadPool]:
    made = ThreadPool(4, turns, lambda: None)  # type: ignore[arg-type]
    wait_until(lambda: len(made._idle) == 4, what="idle threads")
    yield made
    made.close()
    for thread in made._threads:
        thread.join(30)
        assert not thread.is_alive()


def test_the_requests_of_one_turn_wake_nobody_before_its_end(turns: Turns, pool: ThreadPool) -> None:
    jobs = [Job() for _ in range(3)]
    for job in jobs:
        pool.submit(job)  # type: ignore[arg-type]
    assert len(turns.soon) == 1
    assert len(pool._idle) == 4
    turns.turn()
    wait_until(lambda: all(job.thread for job in jobs), what="all jobs to run")


def test_requests_of_one_turn_that_take_their_time_have_a_thread_each(turns: Turns, pool: ThreadPool) -> None:
    go = threading.Event()
    jobs = [Job(go) for _ in range(5)]
    for job in jobs:
        pool.submit(job)  # type: ignore[arg-type]
    turns.turn()
    wait_until(lambda: len({job.thread for job in jobs} - {""}) == 4, what="four threads to be inside")
    go.set()
    wait_until(lambda: all(job.thread for job in jobs), what="the fifth")


def test_the_thread_that_slept_last_is_woken_first(turns: Turns, pool: ThreadPool) -> None:
    jobs = [Job() for _ in range(5)]
    for job in jobs:
        pool.submit(job)  # type: ignore[arg-type]
        turns.turn()
        wait_until(lambda job=job: job.thread and len(pool._idle) == 4, what="the job to be over")  # type: ignore[misc]
    assert len({job.thread for job in jobs}) == 1


def test_a_request_that_finds_all_threads_busy_is_taken_by_the_first_that_is_free(turns: Turns, pool: ThreadPool) -> None:
    go, others_go = threading.Event(), threading.Event()
    first, others, late = Job(go), [Job(others_go) for _ in range(3)], Job()
    for job in (first, *others):
        pool.submit(job)  # type: ignore[arg-type]
    turns.turn()
    wait_until(lambda: all(job.thread for job in (first, *others)), what="all to be inside")
    pool.submit(late)  # type: ignore[arg-type]
    turns.turn()
    assert not late.thread
    go.set()
    wait_until(lambda: late.thread == first.thread, what="its thread to take the next")
    others_go.set()


def test_a_request_that_comes_while_a_thread_lies_down_is_not_left(turns: Turns, pool: ThreadPool) -> None:
    job, late = Job(), Job()

    class Idle(list[Any]):
        def append(self, gate: Any) -> None:
            if not late.thread:
                pool._jobs.append(late)  # type: ignore[arg-type]
            super().append(gate)

    pool._idle = Idle(pool._idle)
    pool.submit(job)  # type: ignore[arg-type]
    turns.turn()
    wait_until(lambda: late.thread, what="the late one to run")


def test_a_change_is_told_when_threads_are_full_no_longer_full_and_all_idle(turns: Turns) -> None:
    told: list[int] = []
    pool = ThreadPool(2, turns, lambda: told.append(pool.pending))  # type: ignore[arg-type]
    gates = [threading.Event() for _ in range(3)]
    for go in gates:
        pool.submit(Job(go))  # type: ignore[arg-type]
    turns.turn()
    for left, go in zip((2, 1, 0), gates, strict=True):
        go.set()
        wait_until(lambda left=left: turns.turn() or pool.pending == left, what="one job less")  # type: ignore[misc]
    assert told == [2, 1, 0]
    pool.close()
    for thread in pool._threads:
        thread.join(30)


def test_an_answer_and_the_end_of_its_thread_s_work_are_one_word(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve(hello.wsgi, "wsgi", threads=2)
    pool = site.running.server.pool
    words: list[Any] = []
    deliver = pool.deliver
    monkeypatch.setattr(pool, "deliver", lambda exchange, *rest: (words.append(exchange), deliver(exchange, *rest)))
    client = site.client()
    for _ in range(3):
        assert client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").recv() is not None
    assert words == [None] * 3


def test_a_thread_is_ahead_of_a_busy_loop_by_so_much_and_no_more(serve: Serve) -> None:
    given: list[int] = []
    busy, go = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        site.running.loop.call_soon_threadsafe(lambda: (busy.set(), go.wait(20)))
        assert busy.wait(20)
        for n in range(100):
            given.append(n)
            yield bytes(UNSENT // 4)

    site = serve(app, "wsgi", threads=2)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert busy.wait(20)
    (exchange,) = site.running.server._running
    wait_until(lambda: exchange.room is not None or len(given) == 100, what="the thread to wait")
    assert len(given) < 10
    go.set()
    response = client.recv()
    assert response is not None
    assert len(response.body) == 25 * UNSENT


def test_a_request_whose_client_has_left_is_the_oldest_though_nobody_is_connected(serve: Serve) -> None:
    called, gates = ({path: threading.Event() for path in ("/1", "/2")} for _ in range(2))

    def app(environ: Any, start_response: Any) -> Any:
        called[environ["PATH_INFO"]].set()
        assert gates[environ["PATH_INFO"]].wait(30)
        return hello.wsgi(environ, start_response)

    site = serve(app, "wsgi", threads=2, keepalive_timeout=0.2)
    server = site.running.server
    for path in gates:
        site.client().send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert called[path].wait(30)
    for client in site.clients:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    wait_until(lambda: site.row[F.OPEN] == 0, what="the clients to be gone")

    def tick() -> None:
        server._ticking.cancel()
        server._tick()

    site.running.call(tick)
    _, second = server._running.values()
    gates["/1"].set()
    wait_until(lambda: site.row[F.OLDEST_AT] == second, what="the other to be the oldest")
    gates["/2"].set()
    wait_until(lambda: site.row[F.IN_FLIGHT] == 0)

"""A drain loses no request: closed-loop clients, idle ones, long ones, pipelines, websockets, and its time-out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.schema import AppConfig, HttpConfig
from pyworker.protocol.scoreboard import F
from pyworker.worker.engines import server
from pyworker.worker.engines.connection import LINGERING
from tests.support.apps import echo, hello
from tests.support.engine import Running, listener, running
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
KINDS = [
    pytest.param("asgi", "asyncio", 1, id="asgi-asyncio"),
    pytest.param("asgi", "uvloop", 1, id="asgi-uvloop"),
    pytest.param("wsgi", "asyncio", 1, id="wsgi-asyncio"),
    pytest.param("wsgi", "uvloop", 1, id="wsgi-uvloop"),
    pytest.param("wsgi", "uvloop", 4, id="wsgi-uvloop-threads"),
]


class Loop(threading.Thread):
    """A keep-alive client without think time. A request that was sent and not answered is lost."""

    def __init__(self, address: Any, stop: threading.Event) -> None:
        super().__init__()
        self.address, self.stop = address, stop
        self.answered = self.lost = self.closes = 0

    def run(self) -> None:
        client: Client | None = None
        while not self.stop.is_set():
            if client is None:
                client = Client(self.address)
            response = client.get()
            if response is None or response.status != 200:
                self.lost += 1
            else:
                self.answered += 1
                if not response.closes:
                    continue
                self.closes += 1
            client.close()
            client = None
        if client is not None:
            client.close()


@pytest.mark.parametrize(("interface", "loop", "threads"), KINDS)
def test_ten_keep_alive_clients_without_think_time_lose_nothing(interface: str, loop: str, threads: int) -> None:
    """Server after server on one listener, as generations of workers do it: the next accepts, then the old one drains."""
    # nobody's pause counts as idle: a client that gets no processor time for long would lose its next request, as anywhere
    app = AppConfig(name="test", threads=threads, http=HttpConfig(keepalive_timeout=60))
    stop = threading.Event()
    with listener() as sock, contextlib.ExitStack() as servers:

        def start() -> Running:
            made = servers.enter_context(running(getattr(hello, interface), interface, loop=loop, app=app))
            made.listen(sock)
            return made

        server = start()
        clients = [Loop(sock.getsockname(), stop) for _ in range(10)]
        for client in clients:
            client.start()
        try:
            for _ in range(5):
                before = sum(client.answered for client in clients)
                wait_until(lambda n=before: sum(client.answered for client in clients) > n + 100, what="traffic")
                old, server = server, start()
                old.begin_drain(60)
                assert old.finish(70).cancelled == 0
                assert old.row[F.OPEN] == old.row[F.IN_FLIGHT] == 0
        finally:
            stop.set()
            for client in clients:
                client.join(15)
    assert sum(client.lost for client in clients) == 0
    # one that gets no processor time comes back after the next server has gone, too, and has missed a close
    assert sum(client.closes for client in clients) > 25


async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Says when it was called, and answers when it is told to."""
    gate = slow_gate[scope["path"]]
    gate[0].set()
    await asyncio.get_running_loop().run_in_executor(None, gate[1].wait, 20)
    await hello.asgi(scope, receive, send)


slow_gate: dict[str, tuple[threading.Event, threading.Event]] = {}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_request_in_flight_is_finished_and_its_connection_closed(serve: Serve, loop: str) -> None:
    entered, go = slow_gate["/a"] = threading.Event(), threading.Event()
    site = serve(slow, loop=loop, keepalive_timeout=0.2)
    client = site.client().send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    site.running.begin_drain(10)
    go.set()
    response = client.recv()
    assert response is not None
    assert (response.status, response.closes) == (200, True)
    client.close()
    report = site.running.finish()
    assert (report.requests, report.cancelled) == (1, 0)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_request_that_has_begun_to_arrive_behind_one_in_flight_is_answered(serve: Serve, loop: str) -> None:
    entered, go = slow_gate["/next"] = threading.Event(), threading.Event()
    site = serve(slow, loop=loop)
    request = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    client = site.client().send(request + request[:20])
    assert entered.wait(30)
    site.running.begin_drain(10)
    go.set()
    first = client.recv()
    second = client.send(request[20:]).recv()
    assert first is not None
    assert second is not None
    assert (first.closes, second.closes) == (False, True)
    client.close()
    assert site.running.finish().requests == 2


@pytest.mark.parametrize(("interface", "loop", "threads"), KINDS)
def test_idle_and_silent_connections_get_one_more_answer(serve: Serve, interface: str, loop: str, threads: int) -> None:
    site = serve(getattr(hello, interface), interface, loop=loop, threads=threads)
    idle, silent, half = site.client(), site.client(), site.client()
    assert idle.get() is not None
    half.send(b"GET / HTTP/1.1\r\nHo")
    wait_until(lambda: site.row[F.ACCEPTED] == 3, what="all three accepted")
    site.running.begin_drain(10)
    for client in (idle, silent):
        response = client.get()
        assert response is not None
        assert (response.status, response.closes) == (200, True)
        client.close()
    response = half.send(b"st: a\r\n\r\n").recv()
    assert response is not None
    assert response.closes
    half.close()
    assert site.running.finish().requests == 3


def test_idle_connections_are_closed_after_their_time(serve: Serve) -> None:
    site = serve(hello.asgi, keepalive_timeout=0.1)
    client = site.client()
    assert client.get() is not None
    site.running.begin_drain(20)
    assert client.closed()
    assert site.running.finish().cancelled == 0


@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_of_a_pipeline_only_the_last_answer_closes(serve: Serve, interface: str) -> None:
    site = serve(getattr(echo, interface), interface)
    client = site.client()
    assert client.get() is not None
    site.running.begin_drain(10)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5)
    answers = [client.recv() for _ in range(5)]
    assert [answer is not None and answer.closes for answer in answers] == [False] * 4 + [True]
    client.close()
    site.running.finish()


def test_at_the_time_out_requests_are_answered_503(serve: Serve) -> None:
    entered, go = slow_gate["/b"] = threading.Event(), threading.Event()
    site = serve(slow)
    client = site.client().send(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    site.running.begin_drain(0.1)
    response = client.recv()
    go.set()
    assert response is not None
    assert (response.status, response.closes) == (503, True)
    client.close()
    report = site.running.finish()
    assert (report.requests, report.cancelled) == (0, 1)


def test_a_worker_that_was_frozen_as_its_time_to_drain_ended_waits_for_what_the_daemon_says(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "NOTICED", -1.0)  # so late is any
    monkeypatch.setattr(server, "ANOTHER_WORD", 30.0)
    entered, go = slow_gate["/b"] = threading.Event(), threading.Event()
    site = serve(slow)
    client = site.client().send(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    draining = site.running.server
    site.running.begin_drain(0.01)
    first = draining._cut_timers[0]
    wait_until(lambda: draining._cut_timers[0] is not first)
    site.running.call(lambda: draining.cut_in(30))
    go.set()
    response = client.recv()
    assert response is not None
    assert response.status == 200
    client.close()
    assert site.running.finish().cancelled == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_request_that_comes_in_the_turn_of_the_time_out_is_answered_503(serve: Serve, loop: str) -> None:
    called: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        called.append(scope["path"])
        await hello.asgi(scope, receive, send)

    site = serve(app, loop=loop)
    client = site.client()
    assert client.get("/first") is not None
    server = site.running.server
    connection = next(iter(server._connections))

    def come_and_cut() -> None:
        server.begin_drain(30)
        connection.data_received(b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n")
        server._cut()

    site.running.call(come_and_cut)
    response = client.recv()
    assert response is not None
    assert (response.status, response.closes) == (503, True)
    assert called == ["/first"]
    client.close()
    site.running.call(site.running.stop.set)
    assert site.running.finish().cancelled == 1


def test_what_is_cut_is_in_flight_no_longer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "AFTER_CUT", 0.0)
    entered, go = threading.Event(), threading.Event()

    async def stubborn(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        entered.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    site = serve(stubborn)
    site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    assert site.row[F.IN_FLIGHT] == 1
    site.running.begin_drain(0)
    wait_until(lambda: site.row[F.OPEN] == 0, what="its end")
    assert site.row[F.IN_FLIGHT] == 0
    go.set()
    site.running.finish()


def test_at_the_time_out_a_thread_that_does_not_answer_is_given_up(serve: Serve) -> None:
    entered, go = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        entered.set()
        go.wait(20)
        start_response("200 OK", [])
        return [b"late"]

    site = serve(app, "wsgi", threads=2)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    site.running.begin_drain(0.1)
    response = client.recv()
    assert response is not None
    assert (response.status, response.closes) == (503, True)
    client.close()
    assert site.running.finish().cancelled == 1
    go.set()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_at_the_time_out_a_thread_whose_client_has_left_keeps_nobody(serve: Serve, loop: str) -> None:
    entered, go = threading.Semaphore(0), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        entered.release()
        go.wait(20)
        start_response("200 OK", [])
        return [b"late"]

    site = serve(app, "wsgi", threads=2, loop=loop)
    gone, client = (site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(2))
    for _ in range(2):
        assert entered.acquire(timeout=30)
    gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    wait_until(lambda: site.row[F.OPEN] == 1, what="the first to be gone")
    site.running.begin_drain(0.1)
    response = client.recv()
    assert response is not None
    assert (response.status, response.closes) == (503, True)
    client.close()
    assert site.running.finish().cancelled == 2
    go.set()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_client_that_leaves_while_it_is_written_to_holds_no_drain(
    serve: Serve, kind: str, loop: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 30)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        if kind == "file":
            return environ["wsgi.file_wrapper"](path.open("rb"))
        return (bytes(65536) for _ in range(1 << 16))

    site = serve(app, "wsgi", loop=loop)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    got = 0
    while got < 20_000_000:  # as fast as it is written
        got += len(client.sock.recv(1 << 20))
    site.running.begin_drain(300)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()
    assert site.running.finish(60).cancelled == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_that_leaves_when_it_has_just_taken_all_holds_no_drain(serve: Serve, loop: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return (bytes(65536) for _ in range(1 << 16))

    site = serve(app, "wsgi", loop=loop)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.sock.recv(10)
    (connection,) = site.running.server._connections
    wait_until(lambda: connection.write_paused, what="the client to be behind")
    site.running.begin_drain(300)
    site.running.call(
        lambda: (connection.resume_writing(), connection.transport.abort(), connection.connection_lost(None))
    )
    assert site.running.finish(60).cancelled == 0


def test_a_connection_taken_over_while_draining_is_answered(serve: Serve) -> None:
    site = serve(hello.asgi)
    site.running.unlisten()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    site.running.call(lambda: site.running.server.begin_drain(10))
    site.running.call(lambda: site.running.server.serve(theirs, unix=True))
    site.running.call(site.running.stop.set)
    with ours:
        ours.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"connection: close" in ours.recv(4096)
    assert site.running.finish().requests == 1


def test_the_answer_after_the_drain_began_in_a_stream_is_whole(serve: Serve) -> None:
    entered, go = threading.Event(), threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        entered.set()
        await asyncio.get_running_loop().run_in_executor(None, go.wait, 20)
        await send({"type": "http.response.body", "body": b"two"})

    site = serve(app)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    site.running.begin_drain(10)
    go.set()
    response = client.recv()
    assert response is not None
    assert response.body == b"onetwo"
    again = client.get()  # its head could not announce the end any more, so the connection is still good
    assert again is not None
    assert again.closes
    client.close()
    site.running.finish()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_slow_reader_gets_its_last_answer_whole(serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyworker.worker.engines.connection.LINGER", 0.1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(20_000_000)})

    site = serve(app, loop=loop, keepalive_timeout=0.2)
    client = site.client()
    wait_until(lambda: site.row[F.OPEN] == 1)
    connection = next(iter(site.running.server._connections))
    site.running.begin_drain(60)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: connection.reading == LINGERING)
    first = connection.deadline
    wait_until(lambda: connection.deadline != first, what="the time to linger to be over")
    response = client.recv()
    assert response is not None
    assert len(response.body) == 20_000_000


@pytest.mark.parametrize("kind", ["answered", "refused", "left", "thread left", "websocket left"])
def test_work_that_nobody_waits_for_is_waited_for_and_no_longer(serve: Serve, kind: str) -> None:
    entered, go, done = threading.Event(), threading.Event(), threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        if kind == "answered":
            await hello.asgi(scope, receive, send)
        elif kind == "websocket left":
            await receive()
            await send({"type": "websocket.accept"})
        entered.set()
        await asyncio.get_running_loop().run_in_executor(None, go.wait, 20)
        done.set()

    def thread(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        entered.set()
        go.wait(20)
        done.set()
        return []

    site = serve(thread, "wsgi", threads=2) if kind == "thread left" else serve(app)
    server = site.running.server
    upload = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = site.client().send(UPGRADE if kind == "websocket left" else upload + b"0\r\n\r\n" * (kind != "refused"))
    assert entered.wait(30)
    if kind == "refused":
        client.send(b"no size\r\n")
    if kind in ("answered", "refused"):
        assert client.recv() is not None
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: server.open_connections == 0, what="the client to be gone")
    site.running.begin_drain(300)
    wait_until(lambda: server._empty is not None)
    assert server._empty is not None
    assert not server._empty.done()
    go.set()
    assert site.running.finish().cancelled == 0
    assert done.is_set()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_at_the_time_out_work_after_the_answer_is_cut(serve: Serve, loop: str) -> None:
    cut: list[bool] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await hello.asgi(scope, receive, send)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut.append(True)
            raise

    site = serve(app, loop=loop)
    assert site.client().get("/", "Connection: close") is not None
    site.running.begin_drain(0.1)
    assert site.running.finish().cancelled == 1
    assert cut == [True]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_at_the_time_out_an_upload_that_has_not_ended_is_answered_503(serve: Serve, loop: str) -> None:
    site = serve(hello.wsgi, "wsgi", loop=loop)
    client = site.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12345")
    wait_until(lambda: any(each.parsing for each in list(site.running.server._connections)), what="the head to be read")
    site.running.begin_drain(0.1)
    response = client.recv()
    assert response is not None
    assert (response.status, response.closes) == (503, True)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_websockets_are_closed_with_1012(serve: Serve, loop: str) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise AssertionError(scope["type"])
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps([scope["path"], scope["scheme"]])})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    site = serve(app, loop=loop)
    with connect(f"ws://127.0.0.1:{site.address[1]}/chat") as websocket:
        assert json.loads(websocket.recv(timeout=30)) == ["/chat", "ws"]
        assert site.running.call(lambda: site.running.server.open_connections) == 1
        assert site.row[F.OPEN] == 1
        site.running.begin_drain(10)
        with pytest.raises(ConnectionClosed) as caught:
            websocket.recv(timeout=30)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
    assert site.running.finish().cancelled == 0
    assert site.row[F.OPEN] == 0


@pytest.mark.parametrize("pause", [3600, 0.01])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_of_many_websockets_some_are_closed_later_and_serve_until_then(
    serve: Serve, loop: str, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from websockets.sync.client import connect

    from pyworker.worker.engines import websocket as engine

    monkeypatch.setattr(engine, "PAUSE", pause)
    monkeypatch.setattr(engine, "closed_at_once", lambda count, timeout: 2)
    told: set[str] = set()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        if message["code"] == 1012:
            told.add(scope["path"])

    site = serve(app, loop=loop)
    with contextlib.ExitStack() as stack:
        paths = [f"/{n}" for n in range(5)]
        clients = {path: stack.enter_context(connect(f"ws://127.0.0.1:{site.address[1]}{path}")) for path in paths}
        site.running.begin_drain(10)
        many = 2 if pause > 1 else 5
        wait_until(lambda: len(told) == many, 30, "them to be told")
        for path in set(paths) - told:
            clients[path].send("there?")
            assert clients[path].recv(timeout=30) == "there?"
    assert site.running.finish().cancelled == 0
    assert len(told) == many


@pytest.mark.parametrize(
    ("count", "timeout", "at_once"),
    [(10, 30.0, 50), (15_000, 30.0, 50), (30_000, 30.0, 100), (3_000, 1.0, 300), (400, 0.0, 400)],
)
def test_all_websockets_are_closed_within_half_of_the_drain_timeout(count: int, timeout: float, at_once: int) -> None:
    from pyworker.worker.engines.websocket import closed_at_once

    assert closed_at_once(count, timeout) == at_once


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("late", [False, True])
def test_a_websocket_that_is_just_opening_is_accepted_and_then_told_to_go(serve: Serve, loop: str, late: bool) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    entered, go = threading.Event(), threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        entered.set()
        await asyncio.get_running_loop().run_in_executor(None, go.wait, 20)
        await send({"type": "websocket.accept"})
        assert await receive() == {"type": "websocket.disconnect", "code": 1012}

    site = serve(app, loop=loop)
    sock = site.client().sock
    wait_until(lambda: site.row[F.ACCEPTED] == 1)
    opened: list[Any] = []
    opening = threading.Thread(target=lambda: opened.append(connect("ws://127.0.0.1/", sock=sock)))
    if late:
        site.running.begin_drain(10)
    opening.start()
    assert entered.wait(30)
    if not late:
        site.running.begin_drain(10)
    go.set()
    opening.join(30)
    with opened[0] as websocket, pytest.raises(ConnectionClosed) as caught:
        websocket.recv(timeout=30)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1012
    assert site.running.finish().cancelled == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_websocket_peer_that_goes_on_sending_is_not_reset(serve: Serve, loop: str) -> None:
    """What arrives behind a close frame must be read: a reset could overtake the frame."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    site = serve(app, loop=loop)
    client = site.client()
    client.send(UPGRADE)
    response = client.recv(head_only=True)
    assert response is not None
    assert response.status == 101
    text = b"\x81\x85\0\0\0\0hello"
    client.send(text)
    site.running.begin_drain(10)
    client.send(text * 1000)
    assert client.sock.recv(4, socket.MSG_WAITALL) == b"\x88\x02\x03\xf4"
    client.send(text * 1000)
    client.send(b"\x88\x82\0\0\0\0\x03\xf4")
    assert client.closed()
    assert site.running.finish().cancelled == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_websocket_that_is_cut_is_no_mistake_of_the_app(
    serve: Serve, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled: list[bool] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    site = serve(app, loop=loop)
    client = site.client()
    client.send(UPGRADE)
    assert client.recv(head_only=True) is not None
    site.running.begin_drain(0.1)
    assert site.running.finish().cancelled == 1
    assert cancelled == [True]
    assert not [each for each in caplog.records if each.exc_info]

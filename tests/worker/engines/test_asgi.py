"""ASGI: scope, receive and send, lifespan, websockets, real frameworks, and apps that break the rules."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines.lifespan import LifespanFailed
from tests.support.apps import echo, fast, frameworks, hello
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

pytestmark = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def test_the_scope_says_what_was_asked(serve: Serve, loop: str) -> None:
    site = serve(echo.asgi, loop=loop, root_path="/shop")
    response = site.client().get("/caf%C3%A9?a=b%20c", "X-Some: \t Thing \t ")
    assert response is not None
    said = json.loads(response.body)
    assert (said["path"], said["root"], said["query"]) == ("/shop/café", "/shop", "a=b%20c")
    assert (said["client"], said["server"]) == (["127.0.0.1"], ["127.0.0.1", site.address[1]])
    assert (said["scheme"], said["headers"]["x-some"]) == ("http", "Thing")


def test_a_single_body_gets_its_length_and_a_stream_is_chunked(serve: Serve, loop: str) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        if scope["path"] == "/stream":
            for n in range(3):
                await send({"type": "http.response.body", "body": b"%d" % n, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})

    client = serve(app, loop=loop).client()
    response = client.get("/")
    assert response is not None
    assert (response.headers["content-length"], response.body) == ("3", b"end")
    response = client.get("/stream")
    assert response is not None
    assert (response.headers["transfer-encoding"], response.body) == ("chunked", b"012end")


def test_only_an_answer_that_requires_an_upgrade_may_name_one(serve: Serve, loop: str) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
        await send({"type": "http.response.start", "status": int(scope["path"][1:]), "headers": headers})
        await send({"type": "http.response.body", "body": b"a"})

    client = serve(app, loop=loop).client()
    for status, upgrade in ((426, ("websocket", "upgrade")), (200, (None, None)), (426, ("websocket", "upgrade"))):
        response = client.get(f"/{status}")
        assert response is not None
        assert (response.headers.get("upgrade"), response.headers.get("connection")) == upgrade, status


def test_an_upload_is_taken_as_fast_as_the_app_reads(serve: Serve, loop: str) -> None:
    go = threading.Event()
    sizes: list[int] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await asyncio.get_running_loop().run_in_executor(None, go.wait, 20)
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await hello.asgi(scope, receive, send)

    client = serve(app, loop=loop).client()
    sender = threading.Thread(
        target=lambda: client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n" + bytes(20_000_000)
        )
    )
    sender.start()
    go.set()
    response = client.recv()
    sender.join(30)
    assert response is not None
    assert response.status == 200
    assert sum(sizes) == 20_000_000
    assert max(sizes) < 1_000_000


@pytest.mark.parametrize("behind", [b"", b"nonsense\r\n\r\n"])
def test_a_slow_reader_holds_the_app_back(serve: Serve, loop: str, behind: bytes) -> None:
    given = [0]

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/other":
            await hello.asgi(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200})
        for _ in range(200):
            given[0] += 1
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await send({"type": "http.response.body"})

    site = serve(app, loop=loop)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + behind)
    last = [-1]

    def stands_still() -> bool:
        before, last[0] = last[0], given[0]
        response = site.client().get("/other")
        assert response is not None
        return given[0] == before > 0

    wait_until(stands_still, what="the app to be held back")
    assert given[0] < 150
    response = client.recv()
    assert response is not None
    assert len(response.body) == 20_000_000


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_a_scoreboard_that_a_sibling_has_written_over_costs_no_request(serve: Serve, loop: str, byte: int) -> None:
    site = serve(hello.asgi, loop=loop)
    client = site.client()
    assert client.get("/") is not None
    cells = site.row.cells.cast("B")
    cells[:] = bytes([byte]) * len(cells)
    for _ in range(2):
        for one in (client, site.client()):
            response = one.get("/")
            assert response is not None
            assert response.status == 200
    client.close()
    response = site.client().get("/")
    assert response is not None


def test_the_end_of_a_body_may_come_alone(serve: Serve, loop: str) -> None:
    heard = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while (message := await receive())["more_body"]:
            heard.append(message["body"])
        await hello.asgi(scope, receive, send)

    client = serve(app, loop=loop).client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    wait_until(lambda: heard == [b"a"])
    assert client.send(b"0\r\n\r\n").recv() is not None


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_is_sent_without(serve: Serve, loop: str, status: int) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"def"})

    client = serve(app, loop=loop).client()
    for _ in range(2):
        response = client.get()
        assert response is not None
        assert ("content-length" in response.headers) == (status == 304)


@pytest.mark.parametrize("half", [False, True])
def test_a_client_that_leaves_is_a_disconnect(serve: Serve, loop: str, half: bool) -> None:
    told: list[str] = []
    entered = threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        entered.set()
        told.append((await receive())["type"])
        await hello.asgi(scope, receive, send)  # ignored, unless it was half of a close

    site = serve(app, loop=loop)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    if half:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.recv() is not None
    else:
        client.close()
    wait_until(lambda: told == ["http.disconnect"], what="the disconnect")
    wait_until(lambda: site.row[F.OPEN] == site.row[F.IN_FLIGHT] == 0, what="the end")


def test_all_that_wait_for_a_disconnect_are_told(serve: Serve, loop: str) -> None:
    """Starlette's streams wait for it while the app's generator asks is_disconnected(), which is a cancelled receive()."""
    told: list[str] = []
    entered = threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        listening = asyncio.create_task(receive())
        await asyncio.sleep(0)
        asking = asyncio.create_task(receive())
        await asyncio.sleep(0)
        asking.cancel()
        entered.set()
        told.append((await listening)["type"])

    site = serve(app, loop=loop)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    client.close()
    wait_until(lambda: told == ["http.disconnect"], what="the disconnect")


def test_one_that_waits_for_a_disconnect_is_told_when_the_answer_is_complete(serve: Serve, loop: str) -> None:
    said: list[Any] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        waiting = asyncio.ensure_future(receive())  # as Litestar does beside its streams
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"all"})
        said.append((await waiting)["type"])

    client = serve(app, loop=loop).client()
    response = client.get("/")
    assert response is not None
    assert "connection" not in response.headers
    wait_until(lambda: said == ["http.disconnect"])


def test_one_that_waits_for_a_disconnect_is_told_when_the_app_has_failed(serve: Serve, loop: str) -> None:
    said: list[Any] = []
    waiting: list[Any] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()

        async def wait() -> None:
            said.append((await receive())["type"])

        waiting.append(asyncio.ensure_future(wait()))
        await asyncio.sleep(0)
        raise ValueError("on purpose")

    response = serve(app, loop=loop).client().get("/")
    assert response is not None
    assert response.status == 500
    wait_until(lambda: said == ["http.disconnect"])


def test_an_answer_to_a_client_that_has_just_left_is_no_error(serve: Serve, loop: str) -> None:
    went: list[str] = []
    entered, go = threading.Event(), threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        entered.set()
        assert go.wait(30)  # the loop does not learn that the client leaves
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"a"})
        went.append("well")

    site = serve(app, loop=loop)
    client = site.client()
    wait_until(lambda: site.row[F.OPEN] == 1)
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
    assert entered.wait(30)
    client.close()
    go.set()
    wait_until(lambda: went == ["well"], what="the answer")
    wait_until(lambda: site.row[F.OPEN] == 0, what="the end")


def test_an_app_that_breaks_the_rules_is_a_500_or_cut(
    serve: Serve, loop: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if path == "/raise":
            raise ValueError("the app's own words")
        if path == "/exit":
            raise SystemExit(3)
        if path == "/body-first":
            await send({"type": "http.response.body"})
        if path == "/split":
            await send({**start, "headers": [(b"x-a", b"b\r\nset-cookie: c")]})
            await send({"type": "http.response.body"})
        if path == "/nul":
            await send({**start, "headers": [(b"x-a", b"b\0c")]})
            await send({"type": "http.response.body"})
        if path == "/status":
            await send({**start, "status": 99})
        if path in ("/text", "/list"):
            await send(start)
            await send({"type": "http.response.body", "body": "a text" if path == "/text" else [b"a", b"list"]})
        if path == "/unknown":
            await send(start)
            await send({"type": "http.response.bodies"})
        if path == "/start-twice":
            await send(start)
            await send(start)
        if path == "/start-only":
            await send(start)
        if path == "/cut":
            await send(start)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if path == "/short":
            await send({**start, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"x"})

        if path == "/long":
            await send({**start, "headers": [(b"content-length", b"1")]})
            await send({"type": "http.response.body", "body": b"xyz", "more_body": True})

    site = serve(app, loop=loop)
    paths = ["/nothing", "/raise", "/exit", "/body-first", "/split", "/nul", "/status", "/text", "/list"]
    paths += ["/unknown", "/start-twice", "/start-only"]
    for path in paths:
        response = site.client().get(path)
        assert response is not None, path
        assert (response.status, response.closes) == (500, True), path
    for path in ("/cut", "/short", "/long"):
        assert site.client().get(path) is None, path
    site.end()
    said = capfd.readouterr().err
    assert "ValueError: the app's own words" in said
    assert "error in GET /nothing: the app returned without a response" in said


def test_a_stream_without_an_end_does_not_have_the_loop_to_itself_when_its_client_has_left(
    serve: Serve, loop: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It waits for nothing but its client, who never makes it wait any more."""
    stop = threading.Event()
    sent = [0]

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        while scope["path"] == "/stream" and not stop.is_set():
            await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
            sent[0] += 1
        await send({"type": "http.response.body", "body": b"other"})

    site = serve(app, loop=loop)
    streaming = site.client()
    streaming.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    assert streaming.recv(head_only=True) is not None
    connection = next(iter(site.running.server._connections))
    wait_until(lambda: connection.write_paused, what="the client to be behind")
    before = sent[0]
    streaming.close()
    try:
        wait_until(lambda: sent[0] > before + 1000, what="the app to go on")
        response = site.client().get("/other")
    finally:
        stop.set()
    assert response is not None
    assert response.body == b"other"
    site.end()
    assert capfd.readouterr().err == ""


def test_a_stream_that_stops_because_its_client_has_left_is_no_mistake_of_the_app(
    serve: Serve, loop: str, capfd: pytest.CaptureFixture[str]
) -> None:
    returned: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        returned.append(scope["path"])

    site = serve(app, loop=loop)
    client = site.client()
    client.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(head_only=True) is not None
    client.sock.shutdown(socket.SHUT_WR)  # as a client that has read all and closes: no reset
    wait_until(lambda: returned == ["/stream"] and site.row[F.IN_FLIGHT] == 0)
    site.end()
    assert "error" not in capfd.readouterr().err


def test_an_app_that_fails_and_has_taken_stderr_away_is_a_500(
    serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/raise":
            raise ValueError

    site = serve(app, loop=loop)
    monkeypatch.setattr("sys.stderr", None)
    for path in ("/nothing", "/raise"):
        response = site.client().get(path)
        assert response is not None, path
        assert response.status == 500, path


def test_fastapi_and_its_lifespan(serve: Serve, loop: str) -> None:
    from websockets.sync.client import connect

    app = fast.fastapi_app()
    site = serve(app, loop=loop)
    client = site.client()
    assert app.state.events == ["startup"]
    response = client.get("/hello/you")
    assert response is not None
    assert json.loads(response.body) == {"hello": "you", "ready": "yes"}
    response = client.post("/size", b"x" * 300_000)
    assert response is not None
    assert response.body == b"300000"
    response = client.get("/stream")
    assert response is not None
    assert response.body == b"0 1 2 "
    with connect(f"ws://127.0.0.1:{site.address[1]}/ws") as websocket:
        websocket.send("a")
        assert websocket.recv(timeout=30) == "echo a"
    client.close()
    site.end()
    assert app.state.events == ["startup", "background", "shutdown"]


def test_django_as_asgi(serve: Serve, loop: str) -> None:
    site = serve(frameworks.django_app(asgi=True), loop=loop)
    response = site.client().get("/hello?name=you")
    assert response is not None
    assert response.body == b"hello you"
    server = site.running.server  # the one set takes it before the other lets go of it
    wait_until(lambda: not server.in_flight and not server.background, what="what Django closes after its answer")


def test_a_startup_that_fails_says_why(serve: Serve, loop: str) -> None:
    async def raises(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        raise ConnectionError("no database at db:5432")

    async def says(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": said})

    with pytest.raises(LifespanFailed, match="ConnectionError: no database at db:5432") as caught:
        serve(raises, loop=loop)
    assert 'raise ConnectionError("no database' in caught.value.traceback
    assert "lifespan.py" not in caught.value.traceback
    # that it is a text some apps do not know
    for said, told in (("no cache", "no cache"), (OSError("no disk"), "no disk"), (None, "startup failed")):  # noqa: B007
        with pytest.raises(LifespanFailed, match=told):
            serve(says, loop=loop)


def test_an_app_without_lifespan_is_served(serve: Serve, loop: str) -> None:
    async def answers_anything(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    async def returns(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await hello.asgi(scope, receive, send)

    for app in (hello.asgi, answers_anything, returns):
        response = serve(app, loop=loop).client().get()
        assert response is not None
        assert response.status == 200


def test_a_websocket_message_that_is_too_large_is_refused(serve: Serve, loop: str) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    site = serve(fast.fastapi_app(), loop=loop, websocket_max_size=1000)
    with connect(f"ws://127.0.0.1:{site.address[1]}/ws") as websocket:
        websocket.send("x" * 5000)
        with pytest.raises(ConnectionClosed) as caught:
            websocket.recv(timeout=30)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009


def test_a_long_running_request_shows_as_the_oldest(serve: Serve, loop: str) -> None:
    go, entered = threading.Event(), threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        entered.set()
        await asyncio.get_running_loop().run_in_executor(None, go.wait, 20)
        await hello.asgi(scope, receive, send)

    site = serve(app, loop=loop, keepalive_timeout=0.2)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert entered.wait(30)
    wait_until(lambda: site.row[F.OLDEST_AT] > 0, what="the oldest request")
    assert site.row[F.IN_FLIGHT] == 1
    go.set()
    assert client.recv() is not None
    wait_until(lambda: site.row[F.OLDEST_AT] == 0, what="its end")


def test_the_time_in_which_an_app_waits_for_its_client_is_not_the_apps(serve: Serve, loop: str) -> None:
    gates = [threading.Event(), threading.Event()]
    last = threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        for gate in gates:
            await asyncio.get_running_loop().run_in_executor(None, gate.wait, 20)
            await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x" * 20_000_000, "more_body": True})
        await send({"type": "http.response.body", "more_body": True})
        await asyncio.get_running_loop().run_in_executor(None, last.wait, 20)
        await send({"type": "http.response.body"})

    site = serve(app, loop=loop, keepalive_timeout=0.2)
    client = site.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
    wait_until(lambda: site.row[F.OLDEST_AT] > 0, what="the oldest request")
    gates[0].set()
    wait_until(lambda: site.row[F.OLDEST_AT] == 0, what="the wait for the body")
    arrives = time.monotonic_ns()
    client.send(b"x")
    wait_until(lambda: site.row[F.OLDEST_AT] >= arrives, what="the app's turn")
    client.send(b"y")
    gates[1].set()
    wait_until(lambda: site.row[F.OLDEST_AT] == 0, what="the wait for the reader")
    assert site.row[F.IN_FLIGHT] == 1
    reads = time.monotonic_ns()
    assert client._until(b"\r\n\r\n1312d00\r\n") is not None
    assert client._exactly(20_000_000) is not None
    wait_until(lambda: site.row[F.OLDEST_AT] > 0, what="the app's turn again")
    assert site.row[F.OLDEST_AT] >= reads
    last.set()
    assert client._until(b"0\r\n\r\n") is not None


def test_a_task_that_waits_for_the_client_to_leave_leaves_the_time_the_apps(serve: Serve, loop: str) -> None:
    go = threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        watch = asyncio.create_task(receive())
        await asyncio.get_running_loop().run_in_executor(None, go.wait, 20)
        await hello.asgi(scope, receive, send)
        await watch

    site = serve(app, loop=loop, keepalive_timeout=0.2)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    try:
        wait_until(lambda: site.row[F.OLDEST_AT] > 0, what="the oldest request")
    finally:
        go.set()
    assert client.recv() is not None


def test_an_app_that_has_given_up_the_wait_for_its_client_is_timed_again(serve: Serve, loop: str) -> None:
    given_up, go = threading.Event(), threading.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        try:
            await asyncio.wait_for(receive(), 0.2)
        except TimeoutError:
            given_up.set()
        await asyncio.get_running_loop().run_in_executor(None, go.wait, 20)
        await send({"type": "http.response.start", "status": 408})
        await send({"type": "http.response.body"})

    site = serve(app, loop=loop, keepalive_timeout=0.2)
    client = site.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
    wait_until(lambda: given_up.is_set() and site.row[F.OLDEST_AT] > 0, what="the app's own time")
    go.set()
    assert client.recv() is not None


def test_a_websocket_whose_head_the_library_does_not_take_is_refused(serve: Serve, loop: str) -> None:
    site = serve(fast.fastapi_app(), loop=loop)
    client = site.client()
    response = client.get(
        "/ws", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Cookie: a={'b' * 9000}",
    )  # fmt: skip
    assert response is not None
    assert response.status == 400
    wait_until(lambda: site.row[F.OPEN] == 0)


def test_a_lifespan_that_ends_while_the_app_serves_is_reported(
    serve: Serve, loop: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[bool] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        asyncio.get_running_loop().call_soon(ended.append, True)
        raise ConnectionError("the queue is gone")

    site = serve(app, loop=loop)
    wait_until(lambda: ended)
    site.end()
    assert "ConnectionError: the queue is gone" in capfd.readouterr().err

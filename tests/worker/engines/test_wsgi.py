"""PEP 3333, in the loop and in threads: what an app may do, and what becomes of one that does it wrong."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import gzip
import hashlib
import io
import json
import os
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from wsgiref.validate import validator

import pytest
from werkzeug.utils import send_file

from pyworker.protocol.scoreboard import F
from pyworker.unix import tls
from pyworker.worker.engines import wsgi
from pyworker.worker.engines.files import FileRest
from tests.support.apps import echo, hello
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

MODES = [
    pytest.param("asyncio", 1, id="asyncio"),
    pytest.param("uvloop", 1, id="uvloop"),
    pytest.param("uvloop", 4, id="threads"),
]
pytestmark = pytest.mark.parametrize(("loop", "threads"), MODES)


class Closing:
    """An iterable that remembers its close()."""

    def __init__(self, parts: Any) -> None:
        self.parts = iter(parts)
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self.parts

    def close(self) -> None:
        self.closed.set()


def test_the_validator_of_the_standard_library_is_content(serve: Serve, loop: str, threads: int) -> None:
    @validator
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    for body in (b"", b"abc", b"x" * 100_000):
        response = client.post("/a/b?c=d", body, "Content-Type: text/plain")
        assert response is not None
        assert (response.status, response.body) == (200, body)


def test_every_way_to_give_a_body(serve: Serve, loop: str, threads: int) -> None:
    made: dict[str, Closing] = {}

    def late(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"abc"
        yield b""
        yield b"def"

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/late":
            return late(environ, start_response)
        if path == "/none":
            start_response("204 No Content", [])
            return []
        if path == "/not-modified":
            start_response("304 Not Modified", [("Content-Length", "6"), ("ETag", '"x"')])
            return [b"abcdef"]
        if path == "/write":
            write = start_response("200 OK", [])
            write(b"abc")
            write(b"de")
            return [b"f"]
        start_response("200 OK", [("Content-Length", "6")] if "sized" in path else [])
        if path == "/list":
            return [b"abcdef"]
        if path == "/lists":
            return [b"abc", b"", b"def"]
        if path == "/tuple":
            return (b"abcdef",)
        if path == "/file":
            return environ["wsgi.file_wrapper"](io.BytesIO(b"abcdef"), 4)
        made[path] = Closing([b"abc", b"def"])
        return made[path]

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    for path in ("/list", "/lists", "/tuple", "/file", "/iterable", "/sized", "/late", "/write"):
        response = client.get(path)
        assert response is not None
        assert response.body == b"abcdef", path
        assert ("content-length" in response.headers) == (path in ("/list", "/lists", "/tuple", "/sized")), path
    for path, status in (("/none", 204), ("/not-modified", 304)):
        response = client.get(path)
        assert response is not None
        assert (response.status, response.body) == (status, b"")
        assert "transfer-encoding" not in response.headers
    client.send(b"HEAD /iterable HTTP/1.1\r\nHost: a\r\n\r\n")
    response = client.recv(head_only=True)
    assert response is not None
    assert response.status == 200
    assert client.get("/list") is not None  # no body was in between
    assert made["/iterable"].closed.wait(30)
    assert made["/sized"].closed.wait(30)


def test_an_app_that_fails_before_its_head_is_a_500(
    serve: Serve, loop: str, threads: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/raise":
            raise ValueError("the app's own words")
        if path == "/exit":
            sys.exit(3)
        if path == "/silent":
            return [b"x"]
        if path == "/split":
            start_response("200 OK", [("X-A", "b\r\nSet-Cookie: c")])
        elif path == "/name":
            start_response("200 OK", [("X A", "b")])
        elif path == "/int":
            start_response("200 OK", [("Content-Length", 5)])
        elif path == "/status":
            start_response("ok", [])
        elif path == "/twice":
            start_response("200 OK", [])
            start_response("200 OK", [])
        elif path == "/text":
            start_response("200 OK", [])
            return ["text"]
        elif path == "/exc":
            start_response("200 OK", [])
            try:
                raise KeyError("x")
            except KeyError:
                start_response("502 Bad", [("X-Why", "exc_info")], sys.exc_info())
            return [b"replaced"]
        return [b""]

    site = serve(app, "wsgi", loop=loop, threads=threads)
    for path in ("/raise", "http://test/raise", "/exit", "/silent", "/split", "/name", "/int", "/status", "/twice", "/text"):
        response = site.client().get(path)
        assert response is not None
        assert (response.status, response.closes) == (500, True), path
    response = site.client().get("/exc")
    assert response is not None
    assert (response.status, response.body, response.headers["x-why"]) == (502, b"replaced", "exc_info")
    site.end()
    said = capfd.readouterr().err
    assert "ValueError: the app's own words" in said
    assert "error in GET /raise" in said


def test_an_app_that_fails_after_its_head_is_cut(serve: Serve, loop: str, threads: int) -> None:
    made = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/short":
            start_response("200 OK", [("Content-Length", "10")])
            return [b"abc"]
        if path == "/long":
            start_response("200 OK", [("Content-Length", "2")])
            return [b"abc"]
        start_response("200 OK", [])

        def parts() -> Iterator[bytes]:
            try:
                yield b"abc"
                raise ValueError("later")
            finally:
                made.set()

        return parts()

    site = serve(app, "wsgi", loop=loop, threads=threads)
    assert site.client().get("/chunked") is None
    assert made.wait(30)
    assert site.client().get("/short") is None
    response = site.client().get("/long")
    assert response is not None
    assert response.body == b"ab"


def test_a_slow_reader_holds_the_app_back(serve: Serve, loop: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 parts of 100 kB: the app is asked for more only as the client reads, and the client gets all of it."""
    monkeypatch.setattr(wsgi, "AHEAD", 1 << 20)
    given = [0]
    closed = threading.Event()

    def parts() -> Iterator[bytes]:
        try:
            for n in range(200):
                given[0] += 1
                yield bytes([n]) * 100_000
        finally:
            closed.set()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/other":
            start_response("200 OK", [])
            return [b"other"]
        start_response("200 OK", [("Content-Length", "20000000")])
        return parts()

    site = serve(app, "wsgi", loop=loop, threads=threads)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    last = [-1]

    def stands_still() -> bool:
        before, last[0] = last[0], given[0]
        if threads > 1:
            response = site.client().get("/other")  # and meanwhile others are served
            assert response is not None
        return given[0] == before > 0

    wait_until(stands_still, what="the app to be held back")
    assert given[0] < 150
    response = client.recv()
    assert response is not None
    assert (
        hashlib.sha1(response.body).digest()
        == hashlib.sha1(b"".join(bytes([n]) * 100_000 for n in range(200))).digest()
    )
    assert closed.wait(30)


def test_what_write_gives_a_slow_reader_is_kept_in_order(serve: Serve, loop: str, threads: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", [])
        for n in range(100):
            write(bytes([n]) * 100_000)
        return [b"end"]

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    for _ in range(2):
        response = client.get()
        assert response is not None
        assert response.body == b"".join(bytes([n]) * 100_000 for n in range(100)) + b"end"


def test_a_client_that_leaves_ends_the_iteration(serve: Serve, loop: str, threads: int) -> None:
    made: list[Closing] = []

    def parts() -> Iterator[bytes]:
        while True:
            yield b"x" * 100_000

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        made.append(Closing(parts()))
        return made[0]

    site = serve(app, "wsgi", loop=loop, threads=threads)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: bool(made), what="the app")
    client.close()
    assert made[0].closed.wait(30)
    wait_until(lambda: site.row[F.IN_FLIGHT] == site.row[F.OPEN] == site.row[F.BUSY_THREADS] == 0, what="all to end")


def test_the_body_of_a_request(serve: Serve, loop: str, threads: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        given = environ["wsgi.input"]
        first, second, rest = given.readline(), given.read(3), given.readlines()
        said = [
            first.decode(),
            second.decode(),
            len(b"".join(rest)),
            given.read().decode(),
            environ.get("CONTENT_LENGTH"),
        ]
        start_response("200 OK", [])
        return [json.dumps(said).encode()]

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    for size in (10, 60_000):
        response = client.post("/", b"one\ntwo" + (b"x" * 99 + b"\n") * size)
        assert response is not None
        assert json.loads(response.body) == ["one\n", "two", 100 * size, "", str(7 + 100 * size)]
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\none\ntwo3\n\r\n0\r\n\r\n"
    response = client.send(chunked).recv()
    assert response is not None
    assert json.loads(response.body) == ["one\n", "two", 2, "", "9"]


def test_the_environ(serve: Serve, loop: str, threads: int) -> None:
    site = serve(echo.wsgi, "wsgi", loop=loop, threads=threads, root_path="/shop")
    client = site.client()
    response = client.get(
        "/shop/caf%C3%A9?a=b%20c", "X-Twice: a", "X-Twice: b", "Cookie: c=1", "Cookie: d=2", "X_Evil: 1"
    )
    assert response is not None
    said = json.loads(response.body)
    assert (said["path"], said["root"], said["query"]) == ("/café", "/shop", "a=b%20c")
    assert said["client"] == ["127.0.0.1"]
    assert said["server"] == ["127.0.0.1", str(site.address[1])]
    assert (said["headers"]["x-twice"], said["headers"]["cookie"]) == ("a,b", "c=1; d=2")
    assert "x-evil" not in said["headers"]


def test_flask_and_django_work(serve: Serve, loop: str, threads: int) -> None:
    from tests.support.apps import frameworks

    flask = serve(frameworks.flask_app(), "wsgi", loop=loop, threads=threads).client()
    response = flask.get("/hello/you")
    assert response is not None
    assert response.body == b"hello you"
    response = flask.post("/form", b"a=1&b=2", "Content-Type: application/x-www-form-urlencoded")
    assert response is not None
    assert response.body == b"a1b2"
    response = flask.get("/stream")
    assert response is not None
    assert response.body == b"/stream 0 1 2 "
    response = flask.get("/boom")
    assert response is not None
    assert response.status == 500
    django = serve(frameworks.django_app(), "wsgi", loop=loop, threads=threads).client()
    response = django.get("/hello", "Host: test")
    assert response is None or response.status == 400  # two Host
    django = serve(frameworks.django_app(), "wsgi", loop=loop, threads=threads).client()
    response = django.get("/hello?name=you")
    assert response is not None
    assert response.body == b"hello you"
    response = django.get("/stream")
    assert response is not None
    assert response.body == b"0 1 2 "
    response = django.post("/upload", b"x" * 3_000_000, "Content-Type: application/octet-stream")
    assert response is not None
    assert response.body == b"3000000"


def test_an_app_may_run_a_loop_of_its_own(serve: Serve, loop: str, threads: int) -> None:
    async def part(text: bytes) -> bytes:
        await asyncio.sleep(0)
        return text

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", asyncio.run(part(b"text/plain")).decode())])
        return (asyncio.run(part(each)) for each in (b"a", b"b"))

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    for _ in range(2):
        response = client.get("/")
        assert response is not None
        assert (response.status, response.body) == (200, b"ab")


@pytest.mark.parametrize("lacking", ["disk", "descriptor"])
def test_a_slow_reader_gets_all_of_it_where_there_is_no_file_for_it(
    serve: Serve, loop: str, threads: int, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_is_left(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if lacking == "disk":
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    else:
        monkeypatch.setattr(tempfile, "TemporaryFile", none_is_left)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", [])
        if environ["PATH_INFO"] == "/write":
            write(b"w" * 8_000_000)
            write(b"x" * 8_000_000)
        return (b"y" * 4_000_000 for _ in range(3))

    site = serve(app, "wsgi", loop=loop, threads=threads)
    for path, length in (("/", 12_000_000), ("/write", 28_000_000)):
        response = site.client().get(path)
        assert response is not None
        assert len(response.body) == length


def test_a_slow_reader_of_what_can_be_kept_holds_up_nobody(serve: Serve, loop: str, threads: int) -> None:
    ended = threading.Event()

    def parts() -> Iterator[bytes]:
        for n in range(150):
            yield bytes([n]) * 100_000
        ended.set()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return parts() if environ["PATH_INFO"] == "/stream" else [b"other"]

    site = serve(app, "wsgi", loop=loop, threads=threads, keepalive_timeout=60)  # a busy machine reads for long
    streaming = site.client().send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    response = site.client().get("/other")
    assert response is not None
    assert response.body == b"other"
    assert threads > 1 or ended.wait(30)
    response = streaming.recv()
    assert response is not None
    assert response.body == b"".join(bytes([n]) * 100_000 for n in range(150))
    assert streaming.get("/other") is not None


@pytest.mark.parametrize("path", ["/upload", "/stream"])
def test_a_full_disk_ends_the_request_that_needs_it_and_no_other(
    serve: Serve, loop: str, threads: int, path: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is in a file's buffer finds no room as late as when it is read, or closed."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "w+b", buffering=1 << 24))  # noqa: SIM115 - the server closes it
    monkeypatch.setattr(wsgi, "AHEAD", 4 << 20)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return (b"x" * 100_000 for _ in range(100)) if environ["PATH_INFO"] == "/stream" else [b"other"]

    site = serve(app, "wsgi", loop=loop, threads=threads)
    if path == "/upload":
        response = site.client().post(path, bytes((1 << 20) + 100))
        assert response is not None
        assert response.status == 500
    else:
        site.client().send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: site.row[F.IN_FLIGHT] == 1 or site.row[F.REQUESTS] == 1)
    response = site.client().get("/other")
    assert response is not None
    assert response.body == b"other"
    wait_until(lambda: site.row[F.IN_FLIGHT] == (path == "/stream" and threads > 1), what="its end")
    site.end()
    said = capfd.readouterr().err
    assert ("No space left on device" in said) == (path == "/upload" or threads == 1)
    assert "Exception in callback" not in said
    assert "error in the HTTP server" not in said


@pytest.mark.parametrize("how", ["read", "left"])
def test_an_app_in_the_loop_is_called_for_one_request_at_a_time(
    serve: Serve, loop: str, threads: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it keeps for its thread (a database connection, which Django closes after each request) is one request's."""
    if threads > 1:
        pytest.skip("each thread is asked for one")
    monkeypatch.setattr(wsgi, "AHEAD", 1 << 20)
    kept: contextvars.ContextVar[int] = contextvars.ContextVar("kept", default=0)
    order: list[str] = []

    def parts() -> Iterator[bytes]:
        try:
            for _ in range(100):
                yield b"x" * 100_000
        finally:
            order.append(f"end of stream {kept.get()}")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        kept.set(kept.get() + 1)
        order.append(f"{environ['PATH_INFO']} {kept.get()}")
        return parts() if environ["PATH_INFO"] == "/stream" else [b"other"]

    site = serve(app, "wsgi", loop=loop, threads=threads)
    saturated: list[bool] = []
    site.running.server.on_saturation = saturated.append
    streaming, other, gone = site.client(), site.client(), site.client()
    streaming.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: saturated == [True], what="the stream to stand still")
    for n, client in enumerate((gone, other)):
        client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n)
        wait_until(lambda n=n: site.row[F.IN_FLIGHT] == n + 2, what="the next request")  # type: ignore[misc]
    gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    gone.close()
    wait_until(lambda: site.row[F.IN_FLIGHT] == 2, what="its end")
    assert order == ["/stream 1"]
    if how == "read":
        response = streaming.recv()
        assert response is not None
        assert len(response.body) == 10_000_000
    else:
        streaming.close()
    response = other.recv()
    assert response is not None
    assert response.body == b"other"
    assert order == ["/stream 1", "end of stream 1", "/1 2"]
    wait_until(lambda: saturated == [True, False], what="others to be taken again")


def test_a_stream_without_an_end_holds_up_nobody_when_its_client_has_left(serve: Serve, loop: str, threads: int) -> None:
    ended = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return stream() if environ["PATH_INFO"] == "/stream" else [b"other"]

    def stream() -> Iterator[bytes]:
        try:
            while True:
                yield b"part"
        finally:
            ended.set()

    site = serve(app, "wsgi", loop="asyncio", threads=threads)
    streaming = site.client()
    streaming.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    assert streaming.recv(head_only=True) is not None
    streaming.close()
    assert ended.wait(30)
    response = site.client().get("/other")
    assert response is not None
    assert response.body == b"other"


def test_pipelined_requests_are_answered_in_order(serve: Serve, loop: str, threads: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(300)))
    assert [r.body for _ in range(300) if (r := client.recv()) is not None] == [b"/%d" % n for n in range(300)]


def test_the_answers_of_one_who_asks_on_and_reads_none_do_not_pile_up(serve: Serve, loop: str, threads: int) -> None:
    given = [0]

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        given[0] += 1
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode() * 10_000]

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    client.send(b"".join(b"GET /%04d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(1000)))
    last = [-1]

    def stands_still() -> bool:
        before, last[0] = last[0], given[0]
        return given[0] == before > 0

    wait_until(stands_still, what="the app to be held back")
    assert given[0] < 700  # the kernel takes some megabytes of the 50
    for n in range(1000):
        response = client.recv()
        assert response is not None
        assert response.body == b"/%04d" % n * 10_000


def test_busy_threads_are_counted_and_the_rest_waits(serve: Serve, loop: str, threads: int) -> None:
    if threads == 1:
        pytest.skip("there are none")
    go, inside = threading.Event(), threading.Semaphore(0)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        inside.release()
        go.wait(20)
        return hello.wsgi(environ, start_response)

    site = serve(app, "wsgi", loop=loop, threads=threads)
    told: list[bool] = []
    site.running.server.on_saturation = told.append
    clients = [site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(6)]
    for _ in range(4):
        assert inside.acquire(timeout=30)
    wait_until(lambda: site.row[F.IN_FLIGHT] == 6, what="six requests")
    assert site.row[F.BUSY_THREADS] == 4
    assert site.running.call(lambda: site.running.server.saturated)
    go.set()
    assert all(client.recv() is not None for client in clients)
    wait_until(lambda: site.row[F.BUSY_THREADS] == 0, what="idle threads")
    assert told[0] is False
    assert True in told
    assert told[-1] is False


def test_a_file_of_the_disk_is_sent_and_closed(serve: Serve, loop: str, threads: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"0123456789" * 100_000)
        file.flush()
        opened: list[Any] = []

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            opened.append(open(file.name, "rb"))  # noqa: SIM115 - the server closes it
            start_response("200 OK", [("Content-Length", "1000000")])
            return environ["wsgi.file_wrapper"](opened[0])

        response = serve(app, "wsgi", loop=loop, threads=threads).client().get()
    assert response is not None
    assert len(response.body) == 1_000_000
    wait_until(lambda: opened[0].closed, what="the file to be closed")


def test_a_range_of_a_file_is_not_read_from_the_files_beginning(
    serve: Serve, loop: str, threads: int, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 39)
        file.seek(1 << 38)
        file.write(b"here")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return send_file(path, environ, conditional=True)(environ, start_response)

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    response = client.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=%d-%d\r\n\r\n" % (1 << 38, (1 << 38) + 3)
    ).recv()
    assert response is not None
    assert (response.status, response.body) == (206, b"here")


def test_what_is_no_file_may_be_in_a_file_wrapper(serve: Serve, loop: str, threads: int) -> None:
    class Reader:
        parts = iter((b"ab", b"cd", b""))

        def read(self, size: int) -> bytes:
            return next(self.parts)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        wrapper = environ["wsgi.file_wrapper"](Reader())
        assert not wrapper.seekable()
        start_response("200 OK", [])
        return wrapper

    response = serve(app, "wsgi", loop=loop, threads=threads).client().get()
    assert response is not None
    assert response.body == b"abcd"


class Upper(io.BufferedReader):
    """A file that reads other bytes than there are."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).upper()


class Storage:
    """As Django's File: it leaves its reading to the file in it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.read = file.read

    @property
    def closed(self) -> bool:
        return bool(self.file.closed)

    def close(self) -> None:
        self.file.close()


def test_what_a_file_as_the_answer_holds(
    serve: Serve, loop: str, threads: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    content = bytes(range(97, 107)) * 30_000
    path.write_bytes(content)
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "zipped").write_bytes(gzip.compress(content))
    opened: list[Any] = []

    def opened_as(kind: str) -> Any:  # the server closes it
        match kind:
            case "gzip":
                return gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(content)))
            case "buffered":  # of what has a descriptor, and reads other bytes
                return io.BufferedReader(gzip.open(tmp_path / "zipped"))  # type: ignore[arg-type]
            case "upper":
                return Upper(io.FileIO(path))
            case "storage":
                return Storage(path.open("rb"))
            case "temporary":
                file: Any = tempfile.TemporaryFile()  # noqa: SIM115
                file.write(content)
                file.seek(0)
            case "from":
                file = path.open("rb")
                file.read(1)  # which has Python read on ahead
                file.seek(100_000)
            case "closed":
                file = path.open("rb")
                file.close()
            case "proc":
                file = Path("/proc/version").open("rb")  # noqa: SIM115
            case "small":
                file = (tmp_path / "small").open("rb")
            case _:
                file = path.open("rb")
        return file

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        kind, _, length = environ["PATH_INFO"][1:].partition("/")
        file = opened_as(kind)
        opened.append(file)
        start_response("200 OK", [("Content-Length", length)] if length else [])
        return environ["wsgi.file_wrapper"](file)

    site = serve(app, "wsgi", loop=loop, threads=threads)
    client = site.client()
    for target, body in (
        ("/whole", content), (f"/whole/{len(content)}", content), ("/from", content[100_000:]), ("/from/120000", content[100_000:220_000]),
        ("/from/10", content[100_000:100_010]), ("/small", b"small"), ("/small/2", b"sm"), ("/small/0", b""), ("/whole/0", b""), ("/storage", content),
        ("/gzip", content), ("/buffered", content), ("/upper", content.upper()), ("/temporary", content), ("/proc", Path("/proc/version").read_bytes()),
    ):  # fmt: skip
        response = client.get(target)
        assert response is not None, target
        assert response.status == 200, target
        assert response.body == body, target
    response = client.send(b"HEAD /whole/300000 HTTP/1.1\r\nHost: a\r\n\r\n").recv(head_only=True)
    assert response is not None
    assert response.headers["content-length"] == "300000"
    assert client.get("/small") is not None, "it has sent no body"
    response = client.get("/closed")
    assert response is not None
    assert response.status == 500
    assert "closed file" in capfd.readouterr().err
    wait_until(lambda: all(file.closed for file in opened), what="the files to be closed")
    wait_until(lambda: not _open_in(tmp_path), what="the descriptors")


def _open_in(folder: Path) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith(str(folder)):
                found.append(path)
    return found


@pytest.mark.parametrize("how", ["tls", "unix"])
def test_a_large_file_arrives_whole_whatever_it_goes_through(
    serve: Serve, loop: str, threads: int, how: str, tmp_path: Path, certificate: tuple[str, str]
) -> None:
    path = tmp_path / "file"
    content = os.urandom(1 << 20) * 20
    path.write_bytes(content)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    if how == "tls":
        site = serve(app, "wsgi", loop=loop, threads=threads, context=tls.context(*certificate, None))
        client = site.client(context=ssl.create_default_context(cafile=certificate[0]))
    else:
        address = str(tmp_path / "socket")
        client = serve(app, "wsgi", loop=loop, threads=threads, family=socket.AF_UNIX, address=address).client()
    for _ in range(3):
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        for _ in range(2):
            assert _digest_of_answer(client, len(content)) == hashlib.sha256(content).digest()


def _digest_of_answer(client: Client, size: int) -> bytes:
    """Read an answer whose body has so many bytes, without ever having it whole."""
    response = client.recv(head_only=True)
    assert response is not None
    assert response.headers["content-length"] == str(size)
    found = hashlib.sha256(client.buffer)
    left, client.buffer = size - len(client.buffer), b""
    while left:
        data = client.sock.recv(min(65536, left))
        assert data, f"the connection has ended, {left} bytes are missing"
        found.update(data)
        left -= len(data)
    return found.digest()


def test_a_file_that_becomes_shorter_while_it_is_sent_cuts_its_answer(
    serve: Serve, loop: str, threads: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 50_000_000)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(path, "rb"))

    site = serve(app, "wsgi", loop=loop, threads=threads)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.buffer = client.sock.recv(100)
    assert client.buffer.startswith(b"HTTP/1.1 200")
    os.truncate(path, 100)
    assert client.recv() is None
    assert "shorter than its Content-Length" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_client_that_leaves_while_it_is_written_to_is_nothing_to_tell(
    serve: Serve, loop: str, threads: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A write fails then before the loop has heard of it: asyncio's transport complains of each that follows."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    leaves = threading.Event()

    def leave() -> None:
        if leaves.is_set() and not connection.write_paused:
            leaves.clear()
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        if kind == "file":
            return environ["wsgi.file_wrapper"](path.open("rb"))
        return (leave() or bytes(65536) for _ in range(1000))

    send = FileRest.send
    monkeypatch.setattr(FileRest, "send", lambda rest, connection: leave() or send(rest, connection))
    site = serve(app, "wsgi", loop=loop, threads=threads)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: bool(site.running.server._connections), what="the connection")
    connection = next(iter(site.running.server._connections))
    wait_until(lambda: connection.write_paused, what="the client to be behind")
    leaves.set()
    with contextlib.suppress(OSError):
        while client.sock.recv(1 << 20):
            pass
    wait_until(lambda: not site.running.server._connections, what="the end of the connection")
    wait_until(lambda: site.row[F.IN_FLIGHT] == 0, what="the end of the request")
    wait_until(lambda: not _open_in(tmp_path), what="the descriptors")
    site.end()
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr().err == ""


def test_a_file_for_which_no_descriptor_is_free_is_read_by_the_app(
    serve: Serve, loop: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 100_000)
    asked: list[int] = []

    def refuse(fd: int) -> NoReturn:
        asked.append(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    monkeypatch.setattr(os, "dup", refuse)
    response = client.get()
    assert asked
    assert response is not None
    assert response.body == path.read_bytes()


@pytest.mark.parametrize("end", ["read", "left", "cut"])
def test_slow_readers_of_files_hold_up_nobody_however_large_these_are(
    serve: Serve, loop: str, threads: int, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # more than is kept for a slow reader of anything else

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        if environ["PATH_INFO"] != "/file":
            return [b"other"]
        return environ["wsgi.file_wrapper"](open(path, "rb"))

    site = serve(app, "wsgi", loop=loop, threads=threads)
    slow = [site.client().send(b"GET /file HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(6)]
    for client in slow:
        assert client.sock.recv(100).startswith(b"HTTP/1.1 200")
    response = site.client().get("/other")
    assert response is not None
    assert response.body == b"other"
    assert not site.running.call(lambda: site.running.server.saturated)
    if end == "cut":  # as the drain's time-out does it
        site.running.call(lambda: [exchange.cancel() for exchange in list(site.running.server._running)])
    for client in slow if end == "read" else slow[:2] if end == "left" else []:
        got = 0
        while got < 100_000_000:
            got += len(client.sock.recv(1 << 20))
    for client in slow:
        client.sock.close()
    wait_until(lambda: site.row[F.IN_FLIGHT] == 0, what="the end of all")
    wait_until(lambda: not _open_in(tmp_path), what="the descriptors")


def test_the_oldest_request_and_the_counters_are_in_the_row(serve: Serve, loop: str, threads: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append((site.row[F.IN_FLIGHT], site.row[F.OLDEST_AT]))
        return hello.wsgi(environ, start_response)

    seen: list[tuple[int, int]] = []
    site = serve(app, "wsgi", loop=loop, threads=threads)
    before = time.monotonic_ns()
    client = site.client()
    for _ in range(5):
        assert client.get() is not None
    wait_until(lambda: site.row[F.REQUESTS] == 5, what="the count")
    assert [n for n, _ in seen] == [1] * 5
    assert all(before < at < time.monotonic_ns() for _, at in seen)
    assert (site.row[F.STATUS_2XX], site.row[F.ACCEPTED], site.row[F.OPEN]) == (5, 1, 1)
    assert sum(site.row[F.LATENCY_0 + n] for n in range(32)) == 5
    assert (site.row[F.IN_FLIGHT], site.row[F.OLDEST_AT]) == (0, 0)


def test_an_app_does_not_see_that_what_came_behind_its_request_is_malformed(
    serve: Serve, loop: str, threads: int
) -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(sys.exc_info()[0])
        return hello.wsgi(environ, start_response)

    client = serve(app, "wsgi", loop=loop, threads=threads).client()
    response = client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\0\r\n\r\n").recv()
    assert response is not None
    assert (response.status, seen) == (200, [None])


def test_a_request_is_as_old_as_the_call_of_the_app_not_as_its_upload(serve: Serve, loop: str, threads: int) -> None:
    seen = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(site.row[F.OLDEST_AT])
        start_response("200 OK", [])
        return [b""]

    site = serve(app, "wsgi", loop=loop, threads=threads)
    client = site.client().send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    response = client.recv()
    assert response is not None
    assert response.status == 100
    arrived = time.monotonic_ns()
    assert client.send(b"x").recv() is not None
    assert seen[0] >= arrived


def test_a_request_that_is_over_is_not_the_oldest_any_more(serve: Serve, loop: str, threads: int) -> None:
    if threads == 1:
        pytest.skip("one at a time")
    called, gates = ({path: threading.Event() for path in ("/1", "/2")} for _ in range(2))

    def app(environ: Any, start_response: Any) -> list[bytes]:
        called[environ["PATH_INFO"]].set()
        assert gates[environ["PATH_INFO"]].wait(30)
        start_response("200 OK", [])
        return [b""]

    site = serve(app, "wsgi", loop=loop, threads=threads)
    clients = {}
    for path in gates:
        clients[path] = site.client().send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert called[path].wait(30)
    first = site.row[F.OLDEST_AT]
    assert first
    gates["/1"].set()
    assert clients["/1"].recv() is not None
    assert site.running.call(lambda: site.row[F.OLDEST_AT]) != first
    gates["/2"].set()
    assert clients["/2"].recv() is not None
    wait_until(lambda: site.row[F.OLDEST_AT] == 0)

"""PEP 3333, in the loop and in threads: what an app may do, and what becomes of one that does it wrong."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from pyworker.protocol.scoreboard import F
from tests.support.apps import echo, hello
from tests.support.wait import wait_until
from tests.worker.engines.conftest import MODES, Serve

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
        elif path == "/interim":
            start_response("103 Early Hints", [])
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
    for path in ("/raise", "http://test/raise", "/exit", "/silent", "/split", "/name", "/int", "/status", "/interim", "/twice", "/text"):
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
                try:
                    raise ValueError("later")
                except ValueError:
                    if path != "/told":
                        raise
                    start_response("500 Internal Server Error", [], sys.exc_info())
            finally:
                made.set()

        return parts()

    site = serve(app, "wsgi", loop=loop, threads=threads)
    for path in "/chunked", "/told":
        assert site.client().get(path) is None
        assert made.wait(30)
        made.clear()
    assert site.client().get("/short") is None
    response = site.client().get("/long")
    assert response is not None
    assert response.body == b"ab"


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
    wait_until(lambda: site.row[F.IN_FLIGHT] == site.row[F.OPEN] == site.running.server.pool.pending == 0, what="all to end")


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
    for path in "/list", "/shopping":
        response = client.get(path)
        assert response is not None
        assert json.loads(response.body)["path"] == path


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

    site = serve(app, "wsgi", loop=loop, threads=threads)
    client = site.client()
    for _ in range(2):
        response = client.get("/")
        assert response is not None
        assert (response.status, response.body) == (200, b"ab")
    assert site.running.call(asyncio.get_running_loop) is site.running.loop  # ours is there again


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
    assert 0 < site.row[F.LATENCY_SUM_US] < (time.monotonic_ns() - before) // 1000
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

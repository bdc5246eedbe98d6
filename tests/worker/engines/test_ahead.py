"""An app that is ahead of its client, which takes its time: how far, and what that costs others."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines import ahead
from tests.support.wait import wait_until
from tests.worker.engines.conftest import MODES, Serve

pytestmark = pytest.mark.parametrize(("loop", "threads"), MODES)


def test_a_slow_reader_holds_the_app_back(serve: Serve, loop: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 parts of 100 kB: the app is asked for more only as the client reads, and the client gets all of it."""
    monkeypatch.setattr(ahead, "MOST", 1 << 20)
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

    # on a busy machine this client takes its time, too, to put the parts together
    client = serve(app, "wsgi", loop=loop, threads=threads, keepalive_timeout=60).client()
    for _ in range(2):
        response = client.get()
        assert response is not None
        assert response.body == b"".join(bytes([n]) * 100_000 for n in range(100)) + b"end"


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
    monkeypatch.setattr(ahead, "MOST", 4 << 20)

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

"""A file as the answer of a WSGI app: what arrives of it, and who waits for that."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import socket
import ssl
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
from werkzeug.utils import send_file

from pyworker.protocol.scoreboard import F
from pyworker.unix import tls
from pyworker.worker.engines.files import FileRest
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import MODES, Serve

pytestmark = pytest.mark.parametrize(("loop", "threads"), MODES)


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


class Deciphered(Storage):
    """One that reads other bytes than the file in it holds."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.read = lambda size=-1: file.read(size).upper()


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
            case "deciphered":
                return Deciphered(path.open("rb"))
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
        ("/gzip", content), ("/buffered", content), ("/upper", content.upper()), ("/deciphered", content.upper()), ("/temporary", content), ("/proc", Path("/proc/version").read_bytes()),
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

"""A head that is sent again means what it meant, whatever comes between, before or behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.config.schema import AppConfig, HttpConfig
from pyworker.worker.engines.connection import Connection
from pyworker.worker.engines.exchange import Exchange
from pyworker.worker.engines.server import Server
from tests.support.apps import echo
from tests.worker.engines.conftest import ALL_MODES, Serve

LINES = [
    b"host:b", b"Accept: */*  ", b"X-A:\t1", b"X-Empty:", b"Connection: keep-alive", b"Connection: close", b"Upgrade: h2c",
    b"Content-Length: 0", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"X-Request-Id: theirs",
    b"X-Forwarded-For: 10.1.1.1", b"X-Forwarded-Proto: https", b"X-Check: 1", b" folded", b"No-Colon", b"X-Bytes: \xff",
]  # fmt: skip
LINES_MOSTLY = st.one_of(st.just([]), st.just([b"Accept: */*"]), st.lists(st.sampled_from(LINES), max_size=3))
HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKS = [  # what only looks like a head that was there before, or makes it something else
    HEAD.replace(b"/a", b"/b?c"), HEAD.replace(b"/a", b"/a b"), HEAD.replace(b"/a", b"/" + b"a" * 60), HEAD.replace(b"/a", b"/later"),
    HEAD.replace(b"/a", b""), HEAD.replace(b"Host: a", b"X-A: b"), HEAD + HEAD, HEAD + HEAD[:9], HEAD[:9], HEAD[9:], HEAD[:-2], b"\r\n", b"",
    HEAD[:-2] + b"X-A: ", HEAD[:-2] + b"Expect: 100-continue\r\n\r\n", HEAD[:-2] + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    HEAD[:-2] + b"Content-Length: %d\r\n\r\n" % len(HEAD), HEAD[:-2] + b"Content-Length: %d\r\n\r\n" % (2 * len(HEAD)),
    HEAD.replace(b"/a", b"/early")[:-2] + b"Content-Length: %d\r\n\r\n" % len(HEAD),
]  # fmt: skip

heads = st.builds(
    lambda method, target, version, lines, body: b"".join(
        (method, b" ", target, b" ", version, b"\r\n", *(line + b"\r\n" for line in [b"Host: a", *lines]), b"\r\n", body)
    ),
    st.sampled_from([b"GET", b"GET", b"GET", b"HEAD", b"POST", b"CONNECT"]),
    st.sampled_from([b"/", b"/", b"/a?b=" + b"1" * 30, b"/\xff", b"/#x", b"*", b"http://a/b"]),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]),
    LINES_MOSTLY,
    st.sampled_from([b"", b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n"]),
)


class Asked(Exchange):
    """A request that is answered when its body is there; /early before that, /later when another chunk has come."""

    __slots__ = ()

    def try_start(self) -> None:
        if not self.complete and self.target != b"/early":
            return
        self.started = True
        fields = ("method", "target", "version", "headers", "keep_alive", "client", "scheme", "request_id", "expects", "counted", "body")
        self.server.seen.append([str(getattr(self, each)) for each in fields])
        self.headers.append((b"x-mine", b"an app may change them"))
        if self.target == b"/later":
            self.server.later.append(self)
        else:
            self.answer()

    def answer(self) -> None:
        if not self.gone:
            self.connection.write(self.make_head(200, b"HTTP/1.1 200 OK\r\n", (), 0))
            self.finish()

    def on_body(self, data: bytes) -> None:
        self.body += data


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None: ...

    resume_reading = pause_reading

    def get_extra_info(self, name: str) -> None: ...


class Unlearned(Connection):
    def _note(self, data: bytes, exchange: Exchange) -> None: ...


class Peer:
    """One connection without a loop."""

    def __init__(self, kind: type[Connection], *, ids: bool, limit: int) -> None:
        app = AppConfig(name="test", http=HttpConfig(max_header_size=limit, request_id=ids))
        server: Any = Server(app, None, "asgi", ssl_context=None)
        self.soon: list[Callable[[], None]] = []
        server.loop = SimpleNamespace(call_soon=self.soon.append)
        server.exchange, server.seen, server.later, server.takes_websockets = Asked, [], [], False
        server.new_id = iter([b"%d" % n for n in range(1000)]).__next__ if ids else None
        server.check_header = b"x-check"
        server.finished = server.refused = lambda _: None
        server.date_until, server.date_line = 1 << 62, b"date: today\r\n"
        self.server, self.wire = server, Wire()
        self.connection = kind(server, ("10.9.9.9", 9), ("10.0.0.1", 80), "http", True, True)
        self.connection.connection_made(self.wire)

    def feed(self, data: bytes) -> None:
        waiting, self.server.later = self.server.later, []
        self.connection.data_received(data)
        self.soon += [each.answer for each in waiting]
        while self.soon:
            self.soon.pop(0)()

    def state(self) -> Any:
        made = self.connection
        waits = made.deadline == float("inf"), made.reading, made.in_head, made.current is None, made.parsing is None
        return self.server.seen, self.wire.__dict__, made.deaf, waits


def check_same(chunks: list[bytes], **options: Any) -> None:
    """What comes of these is the same when each is parsed."""
    learning, parsing = (Peer(kind, **options) for kind in (Connection, Unlearned))
    for data in chunks:
        for peer in (learning, parsing):
            peer.feed(data)
        assert learning.state() == parsing.state()


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("limit", [65536, 60])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_comes_beside_a_known_head_is_understood_as_ever(chunk: bytes, limit: int, ids: bool) -> None:
    known = [HEAD] * 3
    for chunks in ([*known, chunk, *known], [*known, chunk, chunk, chunk, *known], [chunk, HEAD, chunk, *known]):
        check_same(chunks, ids=ids, limit=limit)


@given(
    st.lists(st.one_of(heads, st.sampled_from(CHUNKS)), min_size=1, max_size=3),
    st.lists(st.sampled_from([0, 0, 1, 1, 2, 3]), min_size=4, max_size=12),
    st.booleans(),
    st.sampled_from([65536, 60]),
)
def test_nothing_is_understood_otherwise_than_by_the_parser(
    chunks: list[bytes], order: list[int], ids: bool, limit: int
) -> None:
    check_same([[HEAD, *chunks][which % (1 + len(chunks))] for which in order], ids=ids, limit=limit)


def test_only_the_target_is_looked_at_of_a_head_that_has_come_twice() -> None:
    peer = Peer(Connection, ids=True, limit=65536)
    fed: list[bytes] = []
    for number in range(5):
        if number == 2:
            peer.connection.parser = SimpleNamespace(feed_data=fed.append)
        peer.feed(b"GET /%d?a HTTP/1.1\r\nHost: a\r\nX-B: c\r\n\r\n" % number)
    assert fed == []
    assert [seen[1] for seen in peer.server.seen] == [f"b'/{number}?a'" for number in range(5)]
    assert [seen[7] for seen in peer.server.seen] == [f"b'{number}'" for number in range(5)]
    for other in (b"GET / HTTP/1.1\r\nHost: b\r\nX-B: c\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: a\r\nX-B: c\r\n\r\n"):
        peer.feed(other)
        assert fed.pop() == other


@pytest.mark.parametrize(("interface", "loop", "threads"), ALL_MODES)
def test_an_app_is_told_all_of_a_request_that_was_not_parsed(
    serve: Serve, interface: str, loop: str, threads: int
) -> None:
    client = serve(getattr(echo, interface), interface, loop=loop, threads=threads).client()
    for number in range(5):
        response = client.get(f"/{number}?{number}", "X-A: b")
        assert response is not None
        said = json.loads(response.body)
        assert said["path"] == f"/{number}"

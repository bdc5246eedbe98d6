"""Websockets, where uvicorn's class alone would not do."""

from __future__ import annotations

import asyncio
import functools
import zlib
from typing import Any

import pytest
import uvicorn

from pyworker.protocol.scoreboard import F
from pyworker.worker.engines import prepare, stall, websocket
from tests.support.apps import hello
from tests.support.rawhttp import Client
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
LARGE = 20_000_000

pytestmark = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


async def said(scope: Any, receive: Any, send: Any) -> None:
    """Say what was asked, and how it ended."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": f"{scope['root_path']} {scope['path']} {scope['raw_path']!r}"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


def opened(client: Client, behind: bytes = b"") -> Client:
    response = client.send(UPGRADE + behind).recv(head_only=True)
    assert response is not None
    assert response.status == 101
    return client


def test_a_ping_behind_the_handshake_is_answered_behind_it(serve: Serve, loop: str) -> None:
    client = opened(serve(said, loop=loop).client(), b"\x89\x80\0\0\0\0")
    assert client._exactly(2) == b"\x8a\0"


def test_of_what_comes_before_the_handshake_is_answered_no_more_is_read(serve: Serve, loop: str) -> None:
    go: list[asyncio.Event] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        go.append(asyncio.Event())
        await go[0].wait()
        await said(scope, receive, send)

    site = serve(app, loop=loop)
    ping = b"\x89\x80\0\0\0\0"
    client = site.client().send(UPGRADE + ping)
    wait_until(lambda: go and site.running.server._websockets.open == 1)
    (protocol,) = site.running.server._websockets._all()
    # uvloop takes one more read: it was told within connection_made
    client.send(ping)
    wait_until(lambda: not protocol.transport.is_reading())
    site.running.call(go[0].set)
    assert client.recv(head_only=True) is not None
    assert client._until(b"\x8a\0") is not None


def test_nonsense_behind_the_handshake_is_refused_with_1002(serve: Serve, loop: str) -> None:
    site = serve(said, loop=loop)
    client = opened(site.client(), b"\x81\x05hello")  # a client's frames must be masked
    answer = client.rest()
    assert answer[0] == 0x88
    assert answer[2:4] == b"\x03\xea"
    wait_until(lambda: site.row[F.OPEN] == 0)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "in-parts"])
def test_a_text_that_is_no_utf8_is_the_clients_affair(serve: Serve, loop: str, split: bool, caplog: pytest.LogCaptureFixture) -> None:
    codes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        codes.append((await receive())["code"])

    client = opened(serve(app, loop=loop).client())
    client.send(b"\x01\x81\0\0\0\0\xce\x80\x81\0\0\0\0x" if split else b"\x81\x82\0\0\0\0\xcex")
    assert client.rest()[:4] == b"\x88\x02\x03\xef"
    wait_until(lambda: codes == [1007])
    assert caplog.records == []  # uvicorn has a traceback for it


@pytest.mark.parametrize("behind", [b"\x81\x82\0\0\0\0\xcex", b"\x88\x80\0\0\0\0"], ids=["another", "close"])
def test_a_text_that_is_no_utf8_may_have_more_behind_it(
    serve: Serve, loop: str, behind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The library has read all that came together before the first of it is looked at."""
    site = serve(said, loop=loop)
    client = opened(site.client())
    client.send(b"\x81\x82\0\0\0\0\xcex" + behind)
    client.rest()
    wait_until(lambda: site.row[F.OPEN] == 0)
    assert caplog.records == []


@pytest.mark.parametrize("why", ["nonsense", "no pong"])
def test_a_message_to_a_client_that_was_let_go_is_for_one_who_has_left(serve: Serve, loop: str, why: str) -> None:
    """One that is sent before its connection is gone: an app meets an OSError as behind that, and no RuntimeError."""
    site = serve(said, loop=loop)
    opened(site.client())
    (protocol,) = site.running.server._websockets._all()

    async def send_behind() -> None:
        if why == "nonsense":
            protocol.data_received(b"\x83\x80\0\0\0\0")
        else:
            protocol.send_keepalive_ping()
            protocol.keepalive_timeout()
        await protocol.send({"type": "websocket.send", "text": "to all"})

    with pytest.raises(OSError):
        asyncio.run_coroutine_threadsafe(send_behind(), site.running.loop).result(30)


@pytest.mark.parametrize("code", [1000, 1011])
def test_one_whose_app_ends_without_a_close_is_closed_and_not_cut(
    serve: Serve, loop: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 300)
    monkeypatch.setattr(websocket, "UNTAKEN", 0)
    go: list[asyncio.Event] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        go.append(asyncio.Event())
        await receive()
        await send({"type": "websocket.accept"})
        await go[0].wait()
        if code == 1011:
            raise RuntimeError("a mistake of the app's")

    site = serve(app, loop=loop)
    client = opened(site.client())
    text = b"\x81\x81\0\0\0\0x"
    client.send(text)
    (protocol,) = site.running.server._websockets._all()
    wait_until(lambda: protocol.read_paused, what="a message that nobody takes")
    site.running.call(go[0].set)
    close = b"\x88\2" + code.to_bytes(2, "big")
    assert client._exactly(4) == close
    client.send(text * 2 + close[:1] + b"\x82\0\0\0\0" + close[2:])
    assert client.closed()
    wait_until(lambda: site.row[F.OPEN] == 0)


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "websocket.accept", "headers": [(b"x-a: 1\r\nset-cookie", b"s=1")]},
        {"type": "websocket.accept", "headers": [(b"x-a", b"1\r\nset-cookie: s=1")]},
        {"type": "websocket.accept", "subprotocol": "a\r\nset-cookie: s=1"},
        {"type": "websocket.http.response.start", "status": 403, "headers": [(b"x-a: 1\nset-cookie", b"s=1")]},
    ],
)
def test_no_header_of_the_app_splits_the_answer(serve: Serve, loop: str, answer: dict[str, Any]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(answer)
        await send({"type": "websocket.http.response.body", "body": b""})

    response = serve(app, loop=loop).client().send(UPGRADE).recv(head_only=True)
    assert response is not None
    assert response.status == 500
    assert "set-cookie" not in str(response.headers).lower()


def test_a_refusal_of_the_apps_is_its_answer(serve: Serve, loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-a", b"1")]})
        await send({"type": "websocket.http.response.body", "body": b"who?", "more_body": True})
        await send({"type": "websocket.http.response.body"})

    site = serve(app, loop=loop)
    response = site.client().send(UPGRADE).recv()
    assert response is not None
    assert (response.status, response.headers["x-a"], response.body) == (401, "1", b"who?")
    wait_until(lambda: not site.running.server._websockets.busy)
    assert caplog.records == []  # uvicorn has an error for it


@pytest.mark.parametrize("raises", [False, True])
def test_a_refusal_that_the_app_has_only_begun_is_answered_with_500(serve: Serve, loop: str, raises: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 401})
        if raises:
            raise RuntimeError("a mistake of the app's")

    response = serve(app, loop=loop).client().send(UPGRADE).recv()
    assert response is not None
    assert response.status == 500


def test_headers_that_can_be_gone_through_once_only_are_sent(serve: Serve, loop: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": iter([(b"x-a", b"1")])})

    response = serve(app, loop=loop).client().send(UPGRADE).recv(head_only=True)
    assert response is not None
    assert response.headers["x-a"] == "1"


@pytest.mark.parametrize("error", [ImportError, AttributeError])
def test_a_client_is_told_that_websockets_cannot_be_served(
    serve: Serve, loop: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise error("no such package")

    monkeypatch.setattr(prepare, "websockets", broken)
    site = serve(said, loop=loop)
    response = site.client().send(UPGRADE).recv()
    assert response is not None
    assert response.status == 501
    assert site.clients[0].closed()
    wait_until(lambda: site.row[F.OPEN] == 0)


def test_a_root_path_may_have_any_letters(serve: Serve, loop: str) -> None:
    client = opened(serve(said, loop=loop, root_path="/bücher").client())
    text = "/bücher /bücher/chat b'/b\\xc3\\xbccher/chat'".encode()
    assert client._exactly(2 + len(text)) == bytes((0x81, len(text))) + text


def test_a_target_with_a_host_in_it_is_the_path_behind_that(serve: Serve, loop: str) -> None:
    site = serve(said, loop=loop)
    asked = UPGRADE.replace(b"/chat", b"http://a/chat?x", 1)
    response = site.client().send(asked).recv(head_only=True)
    assert response is not None
    text = b" /chat b'/chat'"
    assert site.clients[0]._exactly(2 + len(text)) == bytes((0x81, len(text))) + text
    refused = site.client().send(asked.replace(b"http://a", b"http://a:99999999")).recv()
    assert refused is not None
    assert refused.status == 400


def test_one_that_is_asked_for_before_the_answer_to_another_request_is_refused_behind_that(serve: Serve, loop: str) -> None:
    client = serve(hello.asgi, loop=loop).client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE)
    for status in 200, 400:
        response = client.recv()
        assert response is not None
        assert response.status == status
    assert client.closed()


def test_a_client_that_takes_nothing_is_cut(serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "SEND_STALL", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": bytes(LARGE)})
        await receive()

    site = serve(app, loop=loop, keepalive_timeout=0.2)
    opened(site.client())
    wait_until(lambda: site.row[F.OPEN] == 0, what="the websocket to be cut")


def test_a_client_that_answers_no_ping_is_let_go(serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 seconds after it, which is sent after 20."""
    usual = uvicorn.Config(said, log_config=None)  # else the loggers are other ones in all tests that follow
    assert (usual.ws_ping_interval, usual.ws_ping_timeout) == (20.0, 20.0)
    quick = functools.partial(uvicorn.Config, ws_ping_interval=0.05, ws_ping_timeout=0.05)
    monkeypatch.setattr(uvicorn, "Config", quick)
    site = serve(said, loop=loop)
    assert b"\x03\xf3keepalive ping timeout" in opened(site.client()).rest()
    wait_until(lambda: site.row[F.OPEN] == 0)


def hears_later(heard: list[str], go: list[asyncio.Event]) -> Any:
    """Return an app that takes messages once the event, which it puts into `go`, is set."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        go.append(asyncio.Event())
        await receive()
        await send({"type": "websocket.accept"})
        await go[0].wait()
        while (message := await receive())["type"] != "websocket.disconnect":
            heard.append(message["text"])

    return app


def test_a_ping_behind_messages_that_the_app_has_not_taken_is_answered(serve: Serve, loop: str) -> None:
    """Up to 64 KiB of them: a browser's or library's client would give up a connection whose app is busy for long."""
    heard: list[str] = []
    go: list[asyncio.Event] = []
    site = serve(hears_later(heard, go), loop=loop)
    client = opened(site.client(), b"\x81\x81\0\0\0\0a" * 100)
    (protocol,) = site.running.server._websockets._all()
    for _ in range(2):
        assert client.send(b"\x89\x80\0\0\0\0")._exactly(2) == b"\x8a\0"
    assert not heard
    client.send(b"\x81\x81\0\0\0\0a" * 500)
    wait_until(lambda: protocol.read_paused, what="too many of them")
    site.running.call(go[0].set)
    wait_until(lambda: heard == ["a"] * 600, what="what the client has said")
    assert client.send(b"\x89\x80\0\0\0\0")._exactly(2) == b"\x8a\0"


def test_a_client_whose_answer_to_a_ping_waits_behind_what_the_app_has_not_taken_is_kept(
    serve: Serve, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "UNTAKEN", 0)
    heard: list[str] = []
    go: list[asyncio.Event] = []
    site = serve(hears_later(heard, go), loop=loop)
    client = opened(site.client(), b"\x81\x81\0\0\0\0a\x81\x81\0\0\0\0b")
    (protocol,) = site.running.server._websockets._all()
    wait_until(lambda: protocol.read_paused, what="the first message")
    for asks in protocol.send_keepalive_ping, protocol.keepalive_timeout:
        site.running.call(asks)
        ping = client._exactly(6)
        client.send(b"\x8a\x84\0\0\0\0" + ping[2:])
    site.running.call(go[0].set)
    wait_until(lambda: heard == ["a", "b"], what="what the client has said")
    wait_until(lambda: protocol.pong_timer is None, what="its answer to be read")
    assert not protocol.disconnected


def test_a_client_whose_answer_to_a_ping_came_while_an_app_kept_the_loop_busy_is_kept(serve: Serve, loop: str) -> None:
    site = serve(said, loop=loop)
    client = opened(site.client())
    (protocol,) = site.running.server._websockets._all()

    def be_late() -> None:
        client.send(b"\x8a\x80\0\0\0\0")
        wait_until(lambda: stall.unread(protocol.transport) > 0, what="the answer to be there")
        protocol.keepalive_timeout()  # uvloop calls who is late before it reads

    site.running.call(be_late)
    assert client._until(b"\x89\x04") is not None
    assert not protocol.disconnected


def test_a_client_whose_answer_to_a_ping_waits_behind_a_long_message_is_kept_while_that_comes(
    serve: Serve, loop: str
) -> None:
    site = serve(said, loop=loop)
    client = opened(site.client())
    (protocol,) = site.running.server._websockets._all()
    site.running.call(protocol.send_keepalive_ping)
    assert client._until(b"\x89\x04") is not None
    client.send(b"\x82\xfe\xff\xff\0\0\0\0and much more")
    wait_until(lambda: protocol.conn.reader.buffer, what="its beginning")
    site.running.call(protocol.keepalive_timeout)
    assert client._until(b"\x89\x04") is not None
    site.running.call(protocol.keepalive_timeout)
    assert client._until(b"keepalive ping timeout") is not None


@pytest.mark.parametrize("most", [0, 64 * 1024])
def test_a_client_that_has_left_is_let_go_though_the_app_never_reads(
    serve: Serve, loop: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "UNTAKEN", most)
    monkeypatch.setattr(uvicorn, "Config", functools.partial(uvicorn.Config, ws_ping_interval=0.05, ws_ping_timeout=0.05))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    site = serve(app, loop=loop)
    opened(site.client(), b"\x81\x81\0\0\0\0a").sock.close()
    wait_until(lambda: site.row[F.OPEN] == 0, what="the connection to be closed")


PING = b"\x89\xfd\0\0\0\0" + bytes(125)


async def large(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(LARGE)})
        return
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "bytes": bytes(LARGE)})
    while (await receive())["type"] != "websocket.disconnect":
        pass


def test_one_who_pings_on_and_takes_nothing_is_owed_one_pong(serve: Serve, loop: str) -> None:
    site = serve(large, loop=loop)
    client = opened(site.client())
    (protocol,) = site.running.server._websockets._all()
    wait_until(lambda: not protocol.writable.is_set(), what="the client to be behind")
    size = protocol.transport.get_write_buffer_size()
    client.send(PING * 10_000 + b"\x89\x81\0\0\0\0x")
    wait_until(lambda: protocol.pong == b"\x8a\1x", what="the last one to be read")
    assert protocol.transport.get_write_buffer_size() <= size
    assert client._exactly(10 + LARGE) is not None
    assert client._exactly(3) == b"\x8a\1x"
    client.send(b"\x88\x80\0\0\0\0")
    assert client.rest() == b"\x88\0"


def test_a_close_behind_pings_that_were_not_answered_yet_is_answered(serve: Serve, loop: str) -> None:
    site = serve(large, loop=loop)
    client = opened(site.client())
    (protocol,) = site.running.server._websockets._all()
    wait_until(lambda: not protocol.writable.is_set(), what="the client to be behind")
    client.send(PING + b"\x88\x80\0\0\0\0")
    assert client._exactly(10 + LARGE) is not None
    assert client.rest().endswith(b"\x88\0")
    wait_until(lambda: site.row[F.OPEN] == 0)


def test_a_close_that_its_client_does_not_take_stops_no_drain(serve: Serve, loop: str) -> None:
    site = serve(large, loop=loop)
    client = opened(site.client())
    (protocol,) = site.running.server._websockets._all()
    wait_until(lambda: not protocol.writable.is_set(), what="the client to be behind")
    client.send(b"\x88\x80\0\0\0\0")
    wait_until(lambda: protocol.transport.is_closing(), what="its close to be read")
    site.running.begin_drain(0.1)
    assert site.running.finish().cancelled == 1


def test_a_handshake_behind_an_answer_that_nobody_takes_waits_for_it(serve: Serve, loop: str) -> None:
    site = serve(large, loop=loop)
    client = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: site.row[F.REQUESTS] == 1, what="the answer to be written")
    client.send(UPGRADE + PING)
    wait_until(lambda: site.running.server._websockets is not None and site.running.server._websockets.open == 1)
    (protocol,) = site.running.server._websockets._all()
    assert not site.running.call(protocol.writable.is_set)
    assert client.recv() is not None
    response = client.recv(head_only=True)
    assert response is not None
    assert response.status == 101
    assert client._exactly(127) == b"\x8a\x7d" + bytes(125)


def test_a_message_in_many_parts_takes_no_more_memory_than_it_is_long(serve: Serve, loop: str) -> None:
    heard: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            heard.append(message.get("text") or message["bytes"])

    site = serve(app, loop=loop)
    client = opened(site.client())
    client.send(b"\1\x81\0\0\0\0a" + b"\0\x81\0\0\0\0b" * 9998)
    (protocol,) = site.running.server._websockets._all()
    wait_until(lambda: sum(map(len, protocol.frames)) == 9999)
    assert len(protocol.frames) == 1
    client.send(b"\x80\x81\0\0\0\0c\2\x81\0\0\0\0\0\0\x80\0\0\0\0\x80\x81\0\0\0\0\xff")
    wait_until(lambda: len(heard) == 2)
    assert heard == ["a" + "b" * 9998 + "c", b"\0\xff"]


def deflated(message: bytes) -> bytes:
    """A message as permessage-deflate sends it (RFC 7692), whole and without memory of the one before."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    data = (packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return b"\xc2\xfe" + len(data).to_bytes(2, "big") + bytes(4) + data


def test_of_what_is_read_at_once_no_more_is_unpacked_than_the_app_takes(serve: Serve, loop: str) -> None:
    heard: list[int] = []
    took: list[asyncio.Event] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        took.append(asyncio.Event())
        await receive()
        await send({"type": "websocket.accept"})
        await took[0].wait()
        while (message := await receive())["type"] != "websocket.disconnect":
            heard.append(len(message["bytes"]))

    site = serve(app, loop=loop)
    asked = UPGRADE[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n\r\n"
    response = site.client().send(asked + deflated(bytes(1_000_000)) * 60 + b"\x88\x80\0\0\0\0").recv(head_only=True)
    assert response is not None
    assert response.status == 101
    (protocol,) = site.running.server._websockets._all()
    wait_until(lambda: protocol.read_paused, what="the first to be there")
    assert site.running.call(protocol.queue.qsize) < 10
    site.running.call(took[0].set)
    assert site.clients[0].rest() == b"\x88\0"
    assert heard == [1_000_000] * 60

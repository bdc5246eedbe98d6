"""Who the client is: on TCP, IPv6, Unix sockets, TLS, and behind proxies that are believed or not."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from pyworker.protocol.scoreboard import F
from pyworker.unix import tls
from pyworker.worker.engines.forwarded import Trust, plain_host, split_port
from tests.support.addresses import has_ipv6
from tests.support.apps import echo, hello
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve

APPS = pytest.mark.parametrize("interface", ["asgi", "wsgi"])
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def said(client: Any, *lines: str) -> dict[str, Any]:
    response = client.get("/", *lines)
    assert response is not None
    found: dict[str, Any] = json.loads(response.body)
    return found


@APPS
@LOOPS
def test_a_unix_peer_has_no_address(serve: Serve, interface: str, loop: str, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    site = serve(getattr(echo, interface), interface, loop=loop, family=socket.AF_UNIX, address=path)
    found = said(site.client())
    assert found["client"] is None
    assert found["server"] == (None if interface == "asgi" else ["localhost", "80"])
    found = said(site.client(), "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
    assert found["client"] == ["203.0.113.9"]
    assert found["server"] == (None if interface == "asgi" else ["localhost", "443"])


@APPS
def test_an_ipv6_peer(serve: Serve, interface: str) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    site = serve(getattr(echo, interface), interface, family=socket.AF_INET6)
    assert said(site.client())["client"] == ["::1"]


@APPS
def test_only_trusted_proxies_are_believed(serve: Serve, interface: str) -> None:
    lines = "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.0.0.1", "X-Forwarded-Proto: https"
    near = serve(getattr(echo, interface), interface, forwarded_allow_ips=("127.0.0.0/8", "10.0.0.0/8"))
    found = said(near.client(), *lines)
    assert (found["client"], found["scheme"]) == (["203.0.113.9"], "https")
    far = serve(getattr(echo, interface), interface, forwarded_allow_ips=("10.0.0.0/8",))
    found = said(far.client(), *lines)
    assert (found["client"], found["scheme"]) == (["127.0.0.1"], "http")
    everybody = serve(getattr(echo, interface), interface, forwarded_allow_ips=("*",))
    assert said(everybody.client(), *lines)["client"] == ["6.6.6.6"]


def test_addresses_are_understood() -> None:
    trust = Trust(("192.0.2.7", "2001:db8::/32"))
    assert trust.host("192.0.2.7")
    assert trust.host("::ffff:192.0.2.7")
    assert trust.host("2001:db8::1")
    assert not trust.host("192.0.2.8")
    assert not trust.host("nonsense")
    assert not trust.unix
    assert trust.client([b"", b" , "]) is None
    assert trust.client([b"a, b", b"[2001:db8::1]:80"]) == ("b", 0)
    for forged in (b'1.2.3.4 "GET /admin HTTP/1.1" 200 5 0.1ms -', b"x" * 65, b"\x9b2J"):
        assert trust.client([forged]) is Trust(("*",)).client([forged]) is None
    assert [split_port(hop) for hop in ("1.2.3.4:80", "[::1]:80", "::1", "a:b:c", "x:99999999")] == [
        ("1.2.3.4", 80), ("::1", 80), ("::1", 0), ("a:b:c", 0), ("x", 0),
    ]  # fmt: skip
    assert plain_host("::ffff:1.2.3.4") == "1.2.3.4"
    assert plain_host("::1") == "::1"


@APPS
def test_request_ids_are_made_passed_on_and_never_forged(serve: Serve, interface: str) -> None:
    site = serve(getattr(echo, interface), interface)
    client = site.client()
    first, second = client.get(), client.get()
    assert first is not None
    assert second is not None
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert json.loads(first.body)["headers"]["x-request-id"] == first.headers["x-request-id"]
    failed = serve(None, interface).client().get()
    assert failed is not None
    assert (failed.status, "x-request-id" in failed.headers) == (500, True)
    passed = client.get("/", "X-Request-ID: from-the-proxy")
    assert passed is not None
    assert passed.headers["x-request-id"] == "from-the-proxy"
    strict = serve(getattr(echo, interface), interface, forwarded_allow_ips=()).client()
    forged = strict.get("/", "X-Request-ID: forged")
    assert forged is not None
    assert forged.headers["x-request-id"] != "forged"
    assert b"forged" not in forged.body
    off = serve(getattr(echo, interface), interface, request_id=False).client().get()
    assert off is not None
    assert "x-request-id" not in off.headers


@APPS
def test_the_server_header_is_sent_only_when_asked_for(serve: Serve, interface: str) -> None:
    response = serve(getattr(hello, interface), interface).client().get()
    assert response is not None
    assert "server" not in response.headers
    assert response.headers["date"].endswith(" GMT")
    response = serve(getattr(hello, interface), interface, server_header=True).client().get()
    assert response is not None
    assert response.headers["server"] == "pyworker"


@APPS
def test_no_keep_alive_with_a_time_out_of_zero(serve: Serve, interface: str) -> None:
    client = serve(getattr(hello, interface), interface, keepalive_timeout=0).client()
    response = client.get()
    assert response is not None
    assert response.closes


@APPS
@LOOPS
def test_https_is_served_and_a_bad_handshake_hurts_nobody(
    serve: Serve, interface: str, loop: str, certificate: tuple[str, str]
) -> None:
    cert, key = certificate
    context = ssl.create_default_context(cafile=cert)
    site = serve(getattr(echo, interface), interface, loop=loop, context=tls.context(cert, key, None))
    plain = site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    plain.rest()
    client = site.client(context=context)
    found = said(client)
    assert (found["scheme"], found["client"]) == ("https", ["127.0.0.1"])
    response = client.post("/", b"x" * 1_000_000)
    assert response is not None
    assert json.loads(response.body)["body"] == 1_000_000
    wait_until(lambda: site.row[F.OPEN] == 1, what="only the good one to be left")
    site.running.begin_drain(10)
    response = client.get()
    assert response is not None
    assert response.closes
    client.close()
    site.running.finish()


def test_a_client_certificate_can_be_asked_for(serve: Serve, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    site = serve(hello.asgi, context=tls.context(cert, key, cert))
    with_one = ssl.create_default_context(cafile=cert)
    with_one.load_cert_chain(cert, key)
    response = site.client(context=with_one).get()
    assert response is not None
    assert response.status == 200
    without = site.client(context=ssl.create_default_context(cafile=cert))  # TLS 1.3: refused after the handshake
    answer = None
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        answer = without.get()
    assert answer is None


@APPS
def test_health_checks_are_neither_counted_nor_logged(
    serve: Serve, interface: str, capfd: pytest.CaptureFixture[str]
) -> None:
    site = serve(getattr(hello, interface), interface, access_log="text")
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    site.running.call(lambda: site.running.server.serve(theirs, unix=True, tls=False, check=True))
    with ours:
        ours.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Pyworker-Check: 1\r\nConnection: close\r\n\r\n")
        assert ours.recv(4096).startswith(b"HTTP/1.1 200")
    assert site.row[F.REQUESTS] == site.row[F.ACCEPTED] == 0
    assert site.client().get("/real", "X-Pyworker-Check: 1") is not None  # from outside the header means nothing
    wait_until(lambda: site.row[F.REQUESTS] == 1, what="the count")
    site.end()
    assert [line.split('"')[1] for line in capfd.readouterr().out.splitlines()] == ["GET /real HTTP/1.1"]


@APPS
def test_the_access_log(serve: Serve, interface: str, capfd: pytest.CaptureFixture[str]) -> None:
    site = serve(getattr(hello, interface), interface, access_log="json")
    response = site.client().get('/a"b?c=d')
    assert response is not None
    site.end()
    line = json.loads(capfd.readouterr().out)
    assert (line["method"], line["path"], line["status"], line["bytes"]) == ("GET", '/a"b?c=d', 200, 6)
    assert (line["client"], line["request_id"]) == ("127.0.0.1", response.headers["x-request-id"])
    assert line["ms"] >= 0
    site = serve(getattr(hello, interface), interface, access_log="text")
    assert site.client().get('/a"b') is not None
    site.end()
    text = capfd.readouterr().out
    assert text.startswith('127.0.0.1 "GET /a\\"b HTTP/1.1" 200 6 ')
    assert text.count("\n") == 1


def test_the_access_log_does_not_need_the_json_of_the_app(
    serve: Serve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "dumps", lambda value: repr(value).encode())  # as orjson's, which knows no separators
    site = serve(hello.asgi, "asgi", access_log="json")
    assert site.client().get() is not None
    site.end()
    assert json.loads(capfd.readouterr().out)["status"] == 200


@APPS
def test_a_worker_asks_once_to_be_recycled(serve: Serve, interface: str) -> None:
    from pyworker.config.schema import LimitsConfig

    site = serve(getattr(hello, interface), interface, limits=LimitsConfig(max_requests=3))
    client = site.client()
    for _ in range(10):
        assert client.get() is not None
    assert site.running.recycled == ["max_requests 3"]


def test_workers_of_an_app_that_seeds_random_do_not_leave_together(serve: Serve) -> None:
    from pyworker.config.schema import LimitsConfig

    drawn = set()
    for _ in range(2):
        random.seed(0)  # as an import does
        site = serve(hello.asgi, "asgi", limits=LimitsConfig(max_requests=1, max_requests_jitter=1_000_000_000))
        drawn.add(site.running.server._recycle_at)
    random.seed()
    assert len(drawn) == 2

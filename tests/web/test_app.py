"""The HTTP interface of the dashboard, as a process, without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyworker.protocol.control import Refused
from tests.cli import documents, results
from tests.support.cli import environment, run
from tests.support.fake_control import HANG, FakeControl, event, refuses, replies
from tests.support.wait import wait_until
from tests.web.server import Dashboard, dashboard

pytest.importorskip("starlette", reason="the dashboard is an extra: pip install 'pyworker[web]'")
from pyworker.web import app as routes
from pyworker.web.__main__ import _listen, token_of
from pyworker.web.guard import Guard
from pyworker.web.hub import Hub


def follow(_request: Any) -> Iterator[Any]:
    yield event("api", None, "scaled", **{"from": 2, "to": 4})
    yield HANG


def refused(_request: Any) -> Iterator[Any]:
    yield Refused("busy", 75, "another reload is under way", "wait for it")


HANDLERS = {
    "ps": replies(documents.ps()), "follow": follow, "reload": results.reload, "stop": refused,
    "scale": lambda _request: [results.reply("scaled", workers={"want": 6, "ready": 6})],
    "start": results.start, "restart": results.start_fails,
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Any) -> str:
    return str(tmp_path / "state")


class Web(NamedTuple):
    """A dashboard and the made-up daemon behind it."""

    board: Dashboard
    daemon: FakeControl
    home: str

    def done(self) -> list[Any]:
        """What was asked of the daemon besides looking."""
        return [r for r in self.daemon.requests if type(r).__name__ not in {"Ps", "Follow"}]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    home = str(tmp_path_factory.mktemp("web") / "state")
    with FakeControl(home, HANDLERS) as daemon, dashboard(home) as made:
        yield Web(made, daemon, home)


@pytest.fixture
def web(both: Web) -> Dashboard:
    return both.board


@pytest.fixture
def nothing_done(both: Web) -> Iterator[None]:
    before = len(both.done())
    yield
    assert len(both.done()) == before


@pytest.mark.usefixtures("nothing_done")
def test_every_door_but_the_page_wants_the_token(web: Dashboard) -> None:
    doors = [("GET", p) for p in ("/metrics", "/api/state", "/api/stream", "/api/apps/api/history", "/api/apps/api/logs")]
    doors += [("POST", f"/api/apps/api/{action}") for action in ("reload", "restart", "stop", "start", "scale")]
    for method, path in doors:
        for token in ("", "Bearer wrong"):
            with web.open(method, path, Authorization=token) as answer:
                assert answer.status == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "`Authorization: Bearer TOKEN`" in json.loads(answer.read())["error"]["hint"], path
    for path in ("/", "/app.js", "/app.css", "/healthz"):
        with web.open("GET", path, Authorization="") as answer:
            assert answer.status == 200
            assert web.token not in answer.read().decode()


def test_no_answer_can_be_framed_cached_or_sniffed_and_no_script_comes_from_elsewhere(web: Dashboard) -> None:
    for path in ("/", "/api/state", "/nosuch"):
        with web.open("GET", path) as answer:
            answer.read()
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
    page = web.ask("GET", "/")[1]
    assert "http://" not in page
    assert "https://" not in page


def test_another_name_for_this_address_gets_nothing(web: Dashboard) -> None:
    for host in ("evil.com", f"evil.com:{web.port}"):
        assert web.ask("GET", "/api/state", Host=host)[0] == 421
        assert web.ask("GET", "/", Host=host)[0] == 421


@pytest.mark.usefixtures("nothing_done")
def test_another_sites_page_can_change_nothing_even_with_the_token(web: Dashboard) -> None:
    for headers in ({"Origin": "http://evil.com"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        status, body = web.ask("POST", "/api/apps/api/reload", {}, **headers)
        assert (status, body["error"]["code"]) == (403, "other_origin")


def test_state_and_stream_say_what_ps_says_and_what_happens(web: Dashboard) -> None:
    seen: dict[str, Any] = {}
    with web.stream("/api/stream") as pairs:
        for kind, value in pairs:
            seen[kind] = value
            if {"look", "point"} <= seen.keys() and ("event" in seen or seen["state"]["events"]):
                break
    assert seen["look"]["document"] == documents.ps()
    status, state = web.ask("GET", "/api/state")
    assert (status, state["away"], state["document"]) == (200, "", documents.ps())
    assert state["events"][0]["words"] == "scaled 2 → 4 workers by the daemon"
    history = web.ask("GET", "/api/apps/api/history")[1]
    assert len(history["points"][0]) == len(history["fields"])


def test_metrics_are_those_of_the_cli(web: Dashboard) -> None:
    status, text = web.ask("GET", "/metrics")
    assert status == 200
    assert {f.name for f in text_string_to_metric_families(text)} >= {"pyworker_up", "pyworker_http_requests"}


def test_a_daemon_that_is_not_there_is_said(home: str) -> None:
    with dashboard(home) as web:
        assert web.ask("GET", "/metrics")[1].endswith("pyworker_up 0\n")
        with web.stream("/api/stream") as pairs:
            value = next(value for kind, value in pairs if kind == "look")
        assert (value["document"], value["away"]) == (None, "the pyworker daemon is not running")
        assert web.ask("POST", "/api/apps/api/reload", {})[0] == 503


def test_actions_are_those_of_the_cli(both: Web, web: Dashboard) -> None:
    before = len(both.done())
    status, body = web.ask("POST", "/api/apps/api/reload", {}, Origin=f"http://127.0.0.1:{web.port}")
    assert (status, body["ok"], body["apps"][0]["action"]) == (200, True, "reloaded")
    assert web.ask("POST", "/api/apps/api/scale", {"workers": 6})[0] == 200
    status, body = web.ask("POST", "/api/apps/api/stop", {})
    assert (status, body["error"]["code"], body["error"]["hint"]) == (409, "busy", "wait for it")
    status, body = web.ask("POST", "/api/apps/api/restart", {})
    assert (status, body["ok"], body["apps"][0]["reason"]) == (200, False, "importing shop.main failed")
    reload, scale, stop, restart = both.done()[before:]
    assert (reload.selectors, scale.changes, stop.selectors, restart.selectors) == (("api",), {"api": "6"}, ("api",), ("api",))
    assert reload.shell_env == {}  # nothing of this process's environment gets into an app


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/apps/all/stop", {}, 404), ("/api/apps/all*/stop", {}, 404), ("/api/apps/*/stop", {}, 404), ("/api/apps/API/stop", {}, 404),
        ("/api/apps/api/shutdown", {}, 404), ("/api/apps/api/scale", {}, 400), ("/api/apps/api/scale", {"workers": "-1"}, 400),
        ("/api/apps/api/scale", {"workers": 10**9}, 400), ("/api/apps/api/scale", {"workers": "x" * 5000}, 400),
        ("/api/apps/api/scale", [], 400), ("/api/apps/api/scale", {"workers": "٣"}, 400), ("/api/apps/..%2f..%2fetc%2fpasswd/stop", {}, 404),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("nothing_done")
def test_what_is_no_app_or_no_number_is_refused(web: Dashboard, path: str, body: Any, status: int) -> None:
    assert web.ask("POST", path, body)[0] == status


@pytest.mark.usefixtures("nothing_done")
def test_a_body_of_more_levels_than_can_be_read_is_no_number(web: Dashboard) -> None:
    with web.open("POST", "/api/apps/api/scale", "[" * 999, Content_Type="application/json") as answer:
        assert answer.status == 400


@pytest.mark.usefixtures("nothing_done")
def test_a_page_of_plain_forms_cannot_scale(web: Dashboard) -> None:
    with web.open("POST", "/api/apps/api/scale", '{"workers":1}', Content_Type="text/plain") as answer:
        assert answer.status == 400


def test_the_log_is_its_end_then_what_is_added_across_a_rotation(both: Web, web: Dashboard) -> None:
    home = both.home
    os.makedirs(f"{home}/logs", mode=0o700, exist_ok=True)

    def write(text: str) -> None:
        with open(f"{home}/logs/api.log", "a") as file:
            file.write(f"2026-11-23T14:02:31.104Z api.1 41210 out| {text}\n")

    for i in range(400):
        write(f"line {i}")
    with web.stream("/api/apps/api/logs") as pairs:
        lines = (record["msg"] for _, batch in pairs for record in batch)
        assert [next(lines) for _ in range(300)] == [f"line {i}" for i in range(100, 400)]
        write("more")
        assert next(lines) == "more"
        os.rename(f"{home}/logs/api.log", f"{home}/logs/api.log.1")
        write("after the rotation")
        assert next(lines) == "after the rotation"
    for name in ("..%2F..%2Fevents", "pyworker", "%2e%2e"):
        assert web.ask("GET", f"/api/apps/{name}/logs")[0] == 404


def test_the_log_of_an_app_that_there_is_not_is_no_empty_one(home: str) -> None:
    def ps(request: Any) -> Iterator[Any]:
        if request.selectors == ("nope",):
            return refuses("no_such_app", 4, "no app matches 'nope'")(request)
        return replies({"v": 1, "apps": []})(request)

    with FakeControl(home, {"ps": ps, "follow": follow}), dashboard(home) as web:
        status, body = web.ask("GET", "/api/apps/nope/logs")
        assert (status, body["error"]["code"]) == (404, "no_such_app")
        with web.open("GET", "/api/apps/new/logs") as answer:  # which has printed nothing yet
            assert answer.status == 200


def test_what_happens_after_the_home_was_made_anew_is_seen(tmp_path: Path) -> None:
    hub = Hub(str(tmp_path))
    event = {"v": 1, "time": "2026-11-23T14:02:31.104Z", "seq": 900, "app": "api", "worker": None, "type": "app_stopped", "data": {}}
    for more in ({}, {"seq": 899}, {"seq": 1, "time": "2026-11-23T15:00:00.000Z"}):
        hub._add_event(event | more)
    assert [shown["seq"] for shown in hub.events] == [900, 1]


def test_what_happens_has_the_daemon_asked_at_once_only_while_somebody_looks(tmp_path: Path) -> None:
    hub = Hub(str(tmp_path))

    def is_asked(seq: int) -> bool:
        hub._wake.clear()
        stamp = f"2026-11-23T14:02:31.{seq}Z"
        hub._add_event({"v": 1, "time": stamp, "seq": seq, "app": "api", "worker": None, "type": "app_stopped", "data": {}})
        return hub._wake.is_set()

    async def look() -> bool:
        stream = hub.stream()
        await anext(stream)
        return is_asked(102)

    assert not is_asked(101)
    assert asyncio.run(look())


def test_a_reader_that_is_behind_gets_only_the_newest_look(tmp_path: Path) -> None:
    hub = Hub(str(tmp_path))

    async def read() -> list[tuple[str, Any]]:
        stream = hub.stream()
        await anext(stream)
        for number in range(100):
            hub.document = {"number": number}
            hub._tell("look")
        hub._tell("event", {"seq": 1})
        hub.end()
        return [message async for message in stream]

    look, event = asyncio.run(read())
    assert (look[0], look[1]["document"]) == ("look", {"number": 99})
    assert event == ("event", {"seq": 1})


def test_what_a_slow_reader_has_not_taken_waits_here_and_not_in_the_kernel() -> None:
    with _listen("127.0.0.1", 0) as listener, socket.socket() as browser:
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        browser.connect(listener.getsockname())
        connection, _ = listener.accept()
        taken = 0
        with connection, contextlib.suppress(BlockingIOError):
            connection.setblocking(False)
            while taken < 1_000_000:
                taken += connection.send(bytes(4096))
    assert taken < 500_000


def test_a_stream_is_packed_for_who_can_unpack_it_and_each_message_comes_at_once(web: Dashboard) -> None:
    unpack, text = zlib.decompressobj(wbits=31), b""
    with web.open("GET", "/api/stream", Accept_Encoding="gzip, br") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        while b"event: look" not in text or not text.endswith(b"\n\n"):
            text += unpack.decompress(answer.read1())
    with web.open("GET", "/api/stream") as answer:
        assert answer.headers["content-encoding"] is None


def test_the_token_is_kept_private_and_can_be_made_anew(home: str) -> None:
    first = token_of(home, new=False)
    assert stat.S_IMODE(os.stat(f"{home}/web-token").st_mode) == 0o600
    assert token_of(home, new=False) == first
    os.chmod(f"{home}/web-token", 0o644)  # somebody else may have read it
    third = token_of(home, new=False)
    assert third != first
    assert stat.S_IMODE(os.stat(f"{home}/web-token").st_mode) == 0o600
    assert token_of(home, new=True) not in (first, third)
    os.unlink(f"{home}/web-token")
    os.symlink("/etc/hostname", f"{home}/web-token")  # is not followed
    assert len(token_of(home, new=False)) > 20


def test_without_a_token_only_on_loopback(home: str) -> None:
    with dashboard(home, "--no-token") as web:
        assert web.url.endswith("/")
        assert web.ask("GET", "/api/state", Authorization="")[0] == 200
    found = run("web", "--no-token", "--listen", "0.0.0.0:0", home=home)
    assert found.code == 2
    assert "would let everybody" in found.err


def test_who_asks_for_the_head_of_the_stream_gets_that_and_no_more(web: Dashboard) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)) as connection:
        for method, path in (("HEAD", "/api/stream"), ("GET", "/healthz")):
            connection.request(method, path, headers={"Authorization": f"Bearer {web.token}"})
            with connection.getresponse() as answer:
                assert answer.status == 200
                answer.read()


def test_a_port_that_is_taken_is_said(home: str) -> None:
    with dashboard(home) as web:
        found = run("web", "--listen", f"127.0.0.1:{web.port}", home=home)
        told = run("web", "--json", "--listen", f":{web.port}", home=home)  # which is no word for every address
    assert found.code == told.code == 1
    assert "cannot listen on" in found.err
    assert "pyworker web" not in found.err  # typed as it is, it would show another home
    assert "--listen" in found.err
    assert f"cannot listen on 127.0.0.1:{web.port}" in json.loads(told.err)["error"]["message"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_an_address_that_cannot_be_written_is_said(home: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyworker", "web", "--listen", "127.0.0.1:0"],
            env=environment(home), timeout=60, check=False, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be written: No space left on device\n  = help: ")
    assert done.stderr.count("\n") == 2


def test_a_reader_that_has_ended_is_not_taken_for_a_full_disk(home: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pyworker", "web", "--listen", "127.0.0.1:0"],
        env=environment(home), timeout=60, check=False, stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 1
    assert "Broken pipe" in done.stderr
    assert "disk" not in done.stderr


def test_a_head_that_is_too_large_is_refused_before_it_is_whole(home: str) -> None:
    with dashboard(home) as web, socket.create_connection(("127.0.0.1", web.port), 30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + 70_000 * b"x")
        assert client.recv(1000).startswith(b"HTTP/1.1 400")


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    with dashboard(str(tmp_path / "state")) as web, web.open("GET", "/api/apps/api/logs") as logs:  # somebody looks
        assert logs.status == 200
        web.process.send_signal(signal.SIGINT)
        assert web.process.wait(30) == 0


def test_ctrl_c_ends_it_without_a_traceback_before_it_serves_too(home: str) -> None:
    argv = [sys.executable, "-m", "pyworker", "web", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: b"pyworker.web" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), what="the dashboard's program")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_the_page_is_the_one_of_the_version_that_serves_it(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("index.html", "app.js", "app.css"):
        (tmp_path / name).write_text("this version")
    monkeypatch.setattr(routes, "_PAGE", tmp_path)
    made = routes.make_app(Hub(home), Guard(""))
    (tmp_path / "app.js").write_text("the next version")
    route = next(route for route in made.routes if getattr(route, "path", "") == "/app.js")
    assert asyncio.run(route.endpoint(None)).body == b"this version"  # type: ignore[attr-defined]

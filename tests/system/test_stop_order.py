"""Apps that are stopped together: who depends on another goes first, and has its requests answered until then."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.support.foreground import Foreground, foreground
from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.wait import wait_until

WEB = """
import asyncio, os, urllib.request

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    open("asked", "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    url = "http://127.0.0.1:DB/"
    body = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
DB = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"db"]
"""
SCRIPT_DB = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"db")
HTTPServer(("127.0.0.1", DB), Handler).serve_forever()
"""
KINDS = {
    "forked": 'target = "db:app"\nbind = "127.0.0.1:DB"',
    "dispatched": 'target = "db:app"\nbind = "127.0.0.1:DB"\nbalance = "least-connections"',
    "command": 'command = ["python3", "script_db.py"]\n[apps.db.health]\ntype = "tcp"\nport = DB\ninterval = "100ms"',
}


def events(pw: Pyworker) -> list[dict[str, object]]:
    return [json.loads(line) for line in pw.ok("events", "-n", "200", "--json").stdout.splitlines()]


class Asked:
    """A request to web that asks db at its end, which is when the test says so."""

    def __init__(self, pw: Pyworker) -> None:
        self._pw = pw
        self._answer = ""
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        wait_until(lambda: os.path.exists(os.path.join(pw.folder, "asked")), LONG, "the request to be with web")

    def _ask(self) -> None:
        try:
            self._answer = self._pw.get()
        except (OSError, AssertionError) as error:  # what became of it is the test's to judge
            self._answer = repr(error)

    def answer(self) -> str:
        self._thread.join(LONG)
        return self._answer

    def goes_on(self) -> str:
        self._pw.write("go", "")
        return self.answer()


@pytest.fixture(params=["forked"])
def both(pw: Pyworker, request: pytest.FixtureRequest) -> Iterator[Pyworker]:
    """web depends on db, which is of the kind that the test is for."""
    db = str(pw.another_port())
    pw.write("web.py", WEB.replace("DB", db))
    pw.write("db.py", DB)
    pw.write("script_db.py", SCRIPT_DB.replace("DB", db))
    web = f'[apps.web]\ntarget = "web:app"\nbind = "127.0.0.1:{pw.port}"\ndepends_on = "db"\n'
    pw.write("app.toml", web + f"[apps.db]\n{KINDS[request.param].replace('DB', db)}\n")
    yield pw
    pw.write("go", "")


def wait_held(pw: Pyworker) -> None:
    def held() -> bool:
        if not pw.status():
            return False
        db = pw.app("db")
        return db["state"] == "stopping" and "stops after web" in db["notes"] and db["workers"]["ready"] == 1

    wait_until(held, LONG, lambda: f"db to go on until web has gone\n{pw.run('ps').stdout}")


@pytest.mark.parametrize("both", KINDS, indirect=True)
def test_a_dependency_serves_until_those_that_are_stopped_with_it_have_gone(both: Pyworker) -> None:
    both.ok("start")
    asked = Asked(both)
    stopping = both.popen("stop", "all", "-y")
    wait_held(both)
    assert asked.goes_on() == "db"
    out, err = stopping.communicate(timeout=LONG)
    assert stopping.returncode == 0, err
    assert "stops after web" in err
    assert "stops after" not in out
    order = [e["app"] for e in events(both) if e["type"] == "app_stopped"]
    assert order == ["web", "db"]


def test_a_daemon_that_stops_keeps_the_order(both: Pyworker) -> None:
    both.ok("start")
    asked = Asked(both)
    stopping = both.popen("daemon", "stop", "-y")
    wait_held(both)
    assert asked.goes_on() == "db"
    assert stopping.wait(LONG) == 0, stopping.communicate()
    stopping.communicate()


@pytest.mark.parametrize("both", ["forked", "dispatched"], indirect=True)
def test_the_next_daemon_keeps_the_order(both: Pyworker) -> None:
    both.ok("start")
    asked = Asked(both)
    both.ok("stop", "all", "-y", "--no-wait")
    wait_held(both)
    daemon = both.role("daemon")
    kill(daemon)
    wait_until(lambda: both.status().get("pid", daemon) != daemon, LONG, "the next daemon")
    wait_held(both)
    assert asked.goes_on() == "db"
    wait_until(lambda: [a["state"] for a in both.ps()["apps"]] == ["stopped"] * 2, LONG, "both to be stopped")


def test_stop_now_keeps_no_order(both: Pyworker) -> None:
    both.ok("start")
    asked = Asked(both)
    both.ok("stop", "all", "-y", "--no-wait")
    wait_held(both)
    both.ok("stop", "db", "--now")
    assert both.app("web")["state"] == "stopping"
    both.ok("stop", "all", "-y", "--now")
    assert asked.answer() != "db"


def test_a_dependency_that_is_stopped_alone_is_not_held_by_what_goes_on(both: Pyworker) -> None:
    both.ok("start")
    assert "stops after" not in both.ok("stop", "db").stderr
    assert both.app("web")["state"] == "running"
    assert "stops after" not in both.ok("stop", "all", "-y").stderr


def run_stops(one: Foreground) -> None:
    one.signal(signal.SIGTERM)
    one.wait_for("db stops after web")


def test_run_keeps_the_order_also_with_the_next_daemon(both: Pyworker) -> None:
    with foreground(both, "app.toml") as one:
        one.wait_for(" ready in ", 2)
        asked = Asked(both)
        run_stops(one)
        kill(one.children()["pyworker daemon"])
        one.wait_for("db stops after web", 2)
        assert asked.goes_on() == "db"
        assert one.ends() == 0
        assert one.err.index("web stopped") < one.err.index("db stopped")


def test_a_second_sigterm_ends_all_at_once(both: Pyworker) -> None:
    with foreground(both, "app.toml") as one:
        one.wait_for(" ready in ", 2)
        asked = Asked(both)
        run_stops(one)
        assert one.stop() == 0
        assert asked.answer() != "db"

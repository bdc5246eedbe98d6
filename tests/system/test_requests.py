"""limits.request_timeout: a request that is stuck, in the loop or beside it, has its worker replaced, start before stop."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.pyworker import LONG, Pyworker, alive
from tests.support.wait import wait_until

STUCK = """
import asyncio, os, time

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/block":
        time.sleep(600)
    if scope["path"] == "/wait":
        await asyncio.sleep(600)
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
TABLES = '[app.limits]\nrequest_timeout = "1s"\n[app.stop]\ndrain_timeout = "1s"\nkill_timeout = "1s"'


WSGI = """
import os, time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/block":
        time.sleep(600)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize(
    ("source", "top", "path"),
    [(STUCK, "", "/block"), (STUCK, "", "/wait"), (WSGI, "threads = 3", "/block")],
    ids=["the loop", "a task", "a thread"],
)
def test_stuck_worker_is_replaced_and_its_stacks_are_in_the_log(pw: Pyworker, source: str, top: str, path: str) -> None:
    pw.api(source, workers=1, top=top, tables=TABLES)
    pw.ok("start", "app.toml")
    before = pw.pids()[0]
    with socket.create_connection(("127.0.0.1", pw.port), timeout=LONG) as stuck:
        stuck.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until(lambda: not alive(before), LONG, "the stuck worker to be replaced")
    assert pw.get() != str(before)
    events = [json.loads(line) for line in pw.ok("events", "-n", "50", "--json").stdout.splitlines()]
    assert any(e["type"] == "worker_recycled" and "request" in e["data"]["reason"] for e in events if e["app"] == "api")
    wait_until(lambda: "most recent call first" in pw.ok("logs", "api", "-n", "200").stdout, LONG, "the stacks in the log")


def test_a_healthy_slow_request_below_the_limit_is_left_alone(pw: Pyworker) -> None:
    pw.api(STUCK.replace("600", "2"), workers=1, tables=TABLES.replace('"1s"\n[app.stop]', '"30s"\n[app.stop]'))
    pw.ok("start", "app.toml")
    before = pw.pids()
    assert pw.get("/wait") == str(before[0])
    assert pw.pids() == before

"""`pyworker send`, and what workers send: between the shell and programs of three kinds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.support.control import ask
from tests.support.pyworker import LONG, Pyworker, kill
from tests.support.wait import wait_until

TALK = """
import os
from pyworker import process

@process.on("message")
def answer(message, handle):
    process.send({"got": message, "pid": os.getpid()})

"""
ASGI = (
    TALK
    + """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                process.send("started")
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""
)
SCRIPT = (
    TALK
    + """
import http.server
http.server.HTTPServer(("127.0.0.1", %d), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
)
NODE = """
process.on('message', m => process.send({got: m, pid: process.pid}));
setInterval(() => {}, 1000);
"""
# waits for a message only once it may
DEAF = """
import time
time.sleep(1000)
"""


def said(pw: Pyworker) -> list[Any]:
    """What the workers of `api` have said so far, as (slot, message)."""
    lines = pw.ok("events", "api", "--json", "-n", "1000").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    return [(e["worker"], e["data"]["message"]) for e in events if e["type"] == "worker_message"]


def hears(pw: Pyworker, message: Any, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        found = [m for _, m in said(pw) if isinstance(m, dict) and m.get("got") == message]
        return found if len(found) >= count else []

    return wait_until(look, LONG, f"{count} answers to {message}")


@pytest.mark.parametrize("kind", ["asgi", "script", "node"])
def test_a_message_reaches_every_worker_and_the_answers_are_events(pw: Pyworker, kind: str) -> None:
    if kind == "node" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    if kind == "asgi":
        pw.api(ASGI)
    else:
        what = 'script = "server.py"' if kind == "script" else 'command = ["node", "server.js"]'
        pw.write("server.py", SCRIPT % pw.port)
        pw.write("server.js", NODE)
        pw.write("app.toml", f'[app]\nname = "api"\n{what}\nworkers = 2\n')
    pw.ok("start", "app.toml")
    pids = set(pw.pids())
    assert pw.ok("send", "api", '{"flush": [true, "é"]}').stdout == "api.1 sent\napi.2 sent\n"
    assert {m["pid"] for m in hears(pw, {"flush": [True, "é"]}, 2)} == pids
    kill(pw.role("daemon"))  # the channels are in the guardian's store
    wait_until(lambda: pw.run("ps").returncode == 0, LONG, "the next daemon")
    sent = json.loads(pw.ok("send", "api.2", "7", "--json").stdout)
    assert [(w["worker"], w["error"]) for w in sent["workers"]] == [(2, None)]
    assert [m["pid"] for m in hears(pw, 7, 1)] == [sent["workers"][0]["pid"]]
    if kind == "asgi":
        assert [m for _, m in said(pw)].count("started") == 2


def test_what_cannot_be_sent_is_refused_with_the_reason(pw: Pyworker) -> None:
    pw.write("deaf.py", DEAF)
    pw.write(
        "app.toml",
        '[apps.deaf]\nscript = "deaf.py"\n[apps.none]\ncommand = ["sleep", "1000"]\n',
    )
    pw.ok("start", "app.toml")
    done = pw.run("send", "deaf", "hello")
    assert (done.returncode, "no JSON" in done.stderr) == (2, True)
    done = pw.run("send", "none", "1")
    assert (done.returncode, done.stdout) == (1, "none.1 not sent: it has no message channel (ipc = true gives it one)\n")
    assert pw.run("send", "nobody", "1").returncode == 4
    large = json.dumps("x" * 60_000)
    sending = {"type": "send", "selectors": ["deaf"], "text": large}
    wait_until(lambda: not (ask(pw.home, sending) or {"ok": True})["ok"], LONG, "its channel to be full")
    refused = pw.run("send", "deaf", large)
    assert (refused.returncode, refused.stdout) == (
        1,
        "deaf.1 not sent: it does not read its messages: its channel is full\n",
    )
    assert pw.ok("ps").stdout  # and nobody waits for it
    huge = subprocess.run(
        [sys.executable, "-m", "pyworker", "send", "deaf", "-"],
        env=pw.environ, cwd=pw.folder, capture_output=True, text=True, check=False,
        input=json.dumps("x" + "ß" * 40_000, ensure_ascii=False),
    )  # fmt: skip
    assert huge.returncode == 2
    assert "65536" in huge.stderr
    pw.ok("stop", "all", "--now", "-y")


def test_a_worker_that_floods_slows_only_itself(pw: Pyworker) -> None:
    pw.api(
        ASGI.replace(
            'process.send("started")',
            "import threading; threading.Thread(target=lambda: [process.send(i) for i in range(3000)]).start()",
        ),
        workers=1,
    )
    pw.ok("start", "app.toml")
    assert pw.get() == "hello"
    wait_until(lambda: len(said(pw)) >= 100, LONG, "some of its messages")
    heard = [m for _, m in said(pw)]
    assert heard == sorted(heard)  # none is lost, none overtakes
    assert pw.get() == "hello"

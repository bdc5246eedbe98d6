"""`pyworker stack`: where a worker is right now, without stopping it."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any

import pytest

from tests.support.pyworker import LONG, Pyworker
from tests.support.wait import wait_until

STUCK = """
import asyncio, os, time

def deep_inside():
    while not os.path.exists("go-on"):
        time.sleep(0.01)

async def deep_wait():
    while not os.path.exists("go-on"):
        await asyncio.sleep(0.01)

async def outer_wait():
    await deep_wait()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/block":
        deep_inside()
    if scope["path"] == "/await":
        await outer_wait()
    if scope["path"] == "/thread":
        await asyncio.to_thread(deep_inside)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def functions(pw: Pyworker, selector: str) -> list[str]:
    (worker,) = stacks(pw, selector)
    return [frame["function"] for thread in worker["threads"] for frame in thread["frames"]]


def stacks(pw: Pyworker, selector: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stack(pw, selector, "--json"))["workers"]
    return found


def stack(pw: Pyworker, *arguments: str) -> str:
    """What the command prints. On a busy machine a worker may not answer in the two seconds that it has: then once more."""

    def printed() -> str:
        done = pw.run("stack", *arguments)
        if any(late in done.stdout for late in ("it does not take the signal", "it waits in the kernel")):
            return ""
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return done.stdout

    return wait_until(printed, LONG, "every worker to answer")


@pytest.mark.parametrize("path", ["/block", "/thread"])
def test_a_stuck_worker_shows_where_and_goes_on(pw: Pyworker, path: str) -> None:
    pw.api(STUCK, workers=1)
    pw.ok("start", "app.toml")
    (pid,) = pw.pids()
    with socket.create_connection(("127.0.0.1", pw.port), timeout=LONG) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until(lambda: "deep_inside" in functions(pw, "api.1"), LONG, "the function it is stuck in")
        text = stack(pw, "api.1")
        assert "in deep_inside" in text
        assert "time.sleep(0.01)" in text
        assert "pyworker/worker" not in text  # our own frames only with -v
        assert "pyworker/worker" in stack(pw, "api", "-v")
        pw.write("go-on", "")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert pw.pids() == [pid]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_what_a_request_awaits_is_shown_with_how_it_came_there(pw: Pyworker, loop: str) -> None:
    pw.api(STUCK, workers=1, top=f'loop = "{loop}"')
    pw.ok("start", "app.toml")
    assert "task" not in stack(pw, "api.1")  # the lifespan's waits, too
    clients = [socket.create_connection(("127.0.0.1", pw.port), timeout=LONG) for _ in range(3)]
    for client in clients:
        client.sendall(b"GET /await HTTP/1.1\r\nHost: x\r\n\r\n")

    def tasks() -> list[dict[str, Any]]:
        return [t for t in stacks(pw, "api.1")[0]["tasks"] if t["frames"][-1]["function"] in ("deep_wait", "sleep")]

    wait_until(lambda: [t["count"] for t in tasks()] == [3], LONG, "the three requests")
    alike = "and 2 more like it, waits (most recent call last):"
    text = wait_until(lambda: said if alike in (said := stack(pw, "api.1")) else "", LONG, "it in words")
    assert text.index("in app") < text.index("in outer_wait") < text.index("in deep_wait")
    assert "await asyncio.sleep(0.01)" in text
    pw.write("go-on", "")
    for client in clients:
        with client:
            assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_all_workers_answer_also_to_a_new_daemon(pw: Pyworker) -> None:
    pw.api(STUCK, workers=3)
    pw.ok("start", "app.toml")
    old = pw.role("daemon")
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: pw.status().get("pid", old) != old, LONG, "another daemon")
    found = wait_until(lambda: stacks(pw, "api"), LONG)
    assert [w["worker"] for w in found] == [1, 2, 3]
    assert [w["pid"] for w in found] == pw.pids()
    assert all(w["threads"] and not w["error"] for w in found)


def test_a_stopped_worker_and_a_command_are_named_as_such(pw: Pyworker) -> None:
    pw.api(STUCK, workers=2)
    pw.ok("start", "app.toml")
    first, _ = pw.pids()
    os.kill(first, signal.SIGSTOP)
    try:
        stopped, well = stacks(pw, "api")
    finally:
        os.kill(first, signal.SIGCONT)
    assert "SIGSTOP" in stopped["error"]
    assert stopped["hint"] == f"kill -CONT {first}"
    assert well["threads"]
    pw.ok("start", "--name", "tick", "--", "sleep", "1000")
    done = pw.run("stack", "tick")
    assert done.returncode == 1
    assert "it is a command" in done.stdout
    assert "py-spy" in done.stdout


def test_a_script_answers_too(pw: Pyworker) -> None:
    pw.write("job.py", "import time\ndef waits():\n    time.sleep(1000)\nwaits()\n")
    pw.ok("start", "--name", "job", "job.py")
    wait_until(lambda: "waits" in functions(pw, "job"), LONG, "the script's function")


SEALS = """
import fcntl, os

def app(environ, start_response):
    said = []
    for name in os.listdir("/proc/self/fd"):
        path = "/proc/self/fd/" + name
        if os.path.islink(path) and "pyworker-stacks" in os.readlink(path):
            os.write(int(name), b"x")
            try:
                fcntl.fcntl(int(name), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            except PermissionError:
                said.append("refused")
    body = " ".join(said).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_a_worker_cannot_keep_the_daemon_from_taking_stacks(pw: Pyworker) -> None:
    pw.api(SEALS, workers=1)
    pw.ok("start", "app.toml")
    assert pw.get() == "refused"
    assert len(stacks(pw, "api.1")) == 1

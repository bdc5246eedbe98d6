"""Who gets the next connection: each worker in its turn, and never a busy one while another is idle."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter
from typing import Any

import pytest

from tests.support.addresses import has_ipv6
from tests.support.pyworker import LONG, Pyworker
from tests.support.rawhttp import Client
from tests.support.sources import ASGI, WSGI
from tests.support.turns import assert_turns

WORKERS = 4
RUNTIMES = [pytest.param(ASGI, "uvloop", 1, id="asgi"), pytest.param(WSGI, "asyncio", 4, id="wsgi-threads")]


def ask(family: int, address: Any) -> str:
    with Client(address, family=family, timeout=LONG) as client:
        answer = client.get("/", "Connection: close")
        assert answer is not None
        assert answer.status == 200
        return answer.body.decode()


@pytest.mark.parametrize(("source", "loop", "threads"), RUNTIMES)
def test_idle_workers_get_connections_in_strict_turns(pw: Pyworker, source: str, loop: str, threads: int) -> None:
    pw.api(source, workers=WORKERS, top=f'loop = "{loop}"\nthreads = {threads}')
    pw.ok("start", "app.toml")
    address, pids = ("127.0.0.1", pw.port), pw.pids()
    assert_turns(pids, lambda: ask(socket.AF_INET, address), 400)
    with contextlib.ExitStack() as stack:

        def lasting() -> str:
            answer = stack.enter_context(Client(address, timeout=LONG)).get()
            assert answer is not None
            return answer.body.decode()

        assert_turns(pids, lasting, 64)


def test_turns_are_kept_on_ipv6_and_on_a_unix_socket(pw: Pyworker) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    path = os.path.join(pw.folder, "api.sock")
    pw.write("web.py", ASGI)
    pw.write(
        "app.toml",
        f'[app]\nname = "api"\ntarget = "web:app"\nworkers = {WORKERS}\nbind = ["[::1]:{pw.port}", "unix:{path}"]\n',
    )
    pw.ok("start", "app.toml")
    assert_turns(pw.pids(), lambda: ask(socket.AF_INET6, ("::1", pw.port)), 400)
    assert_turns(pw.pids(), lambda: ask(socket.AF_UNIX, path), 400)
    pw.ok("stop", "api")
    assert not os.path.exists(path)


def test_a_blocked_worker_delays_nobody(pw: Pyworker) -> None:
    pw.api(ASGI, workers=WORKERS)
    pw.ok("start", "app.toml")
    blocked: list[str] = []
    thread = threading.Thread(target=lambda: blocked.append(pw.get("/block")))
    thread.start()
    pw.until_blocked()
    others = Counter(pw.get() for _ in range(200))
    assert not blocked
    pw.write("unblock", "")
    thread.join(LONG)
    assert blocked[0] not in others
    assert len(others) == WORKERS - 1


def test_the_connections_of_a_dead_worker_go_to_the_others(pw: Pyworker) -> None:
    pw.api(ASGI, workers=WORKERS)
    pw.ok("start", "app.toml")
    os.kill(pw.pids()[0], 9)
    for _ in range(200):
        assert pw.get().startswith("one")
    pw.wait_steady()
    assert_turns(pw.pids(), lambda: ask(socket.AF_INET, ("127.0.0.1", pw.port)), 400)

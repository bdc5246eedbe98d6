"""A WSGI app in threads."""

from __future__ import annotations

import threading
from typing import Any

from pyworker.protocol.scoreboard import F
from tests.support.apps import hello
from tests.support.wait import wait_until
from tests.worker.engines.conftest import Serve


def test_each_thread_has_a_request_and_the_rest_waits(serve: Serve) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        inside.release()
        go.wait(20)
        return hello.wsgi(environ, start_response)

    site = serve(app, "wsgi", loop="uvloop", threads=4)
    told: list[bool] = []
    site.running.server.on_saturation = told.append
    clients = [site.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(6)]
    for _ in range(4):
        assert inside.acquire(timeout=30)
    wait_until(lambda: site.row[F.IN_FLIGHT] == 6, what="six requests")
    assert not inside.acquire(blocking=False)
    assert site.running.call(lambda: site.running.server.saturated)
    go.set()
    assert all(client.recv() is not None for client in clients)
    wait_until(lambda: site.running.server.pool.pending == 0, what="idle threads")
    assert told[0] is False
    assert True in told
    assert told[-1] is False

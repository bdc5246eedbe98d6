"""An app that forks in a request: its child never serves on in our loop, however it ends."""

from __future__ import annotations

import os
import select
import signal
from typing import Any

import pytest

from tests.worker.engines.conftest import Serve

MODES = [
    pytest.param("asgi", "asyncio", 1, id="asgi-asyncio"),
    pytest.param("asgi", "uvloop", 1, id="asgi-uvloop"),
    pytest.param("wsgi", "asyncio", 1, id="wsgi-asyncio"),
    pytest.param("wsgi", "uvloop", 1, id="wsgi-uvloop"),
    pytest.param("wsgi", "uvloop", 2, id="wsgi-threads"),
]


def end_of_child(error: BaseException) -> bytes:
    """Fork a child that ends by `error`; return its exit code."""
    pid = os.fork()
    if not pid:
        raise error
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], 5)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
    return b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(("interface", "loop", "threads"), MODES)
@pytest.mark.parametrize(
    ("error", "code"), [(SystemExit(3), b"3"), (SystemExit(), b"0"), (SystemExit("no"), b"1"), (ValueError(), b"1")]
)
def test_the_child_of_an_app_that_forks_ends_with_its_code(
    serve: Serve, interface: str, loop: str, threads: int, error: BaseException, code: bytes
) -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        answer = end_of_child(error)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": answer})

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        answer = end_of_child(error)
        start_response("200 OK", [])
        return [answer]

    client = serve(asgi if interface == "asgi" else wsgi, interface, loop=loop, threads=threads).client()
    response = client.get()
    assert response is not None
    assert (response.status, response.body) == (200, code)
    assert client.get() is not None

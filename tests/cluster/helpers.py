"""For the tests of the library: asyncio without a plugin, scripts, clients, and a look at what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from pyworker import cluster
from pyworker.cluster.parent import ChildProcess

LIMIT = 60.0  # seconds, for a machine with much else to do

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node (apt install nodejs)")


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine function as a test, with a limit; nothing it started may be left."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(LIMIT):
                await test(*args, **kwargs)

        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, which some tests set: orphans are not ours here
        gc.collect()  # what another test has left is not closed in the middle of this one
        with contextlib.suppress(ChildProcessError):  # nor found after it: an orphan that came when we were a subreaper
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                pass
        before = open_fds()
        asyncio.run(limited())
        after = open_fds()
        assert after == before, f"descriptors were left open: {set(after.items()) ^ set(before.items())}"
        with contextlib.suppress(ChildProcessError):
            left = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert left is None, f"a child was not reaped: {left}"

    return run


def open_fds() -> dict[int, str]:
    """Return this process's descriptors and what they are (sockets and pipes: their kind only)."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}").split(":")[0]
    return found


async def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until a condition holds."""
    for _ in range(int(LIMIT / 0.01)):
        found = condition()
        if found:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what or condition}")


class Inbox:
    """The messages of a child, one at a time."""

    def __init__(self, child: ChildProcess) -> None:
        self._queue: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        child.on("message", lambda message, handle: self._queue.put_nowait((message, handle)))

    async def next(self) -> Any:
        return (await self._queue.get())[0]

    async def next_handle(self) -> tuple[Any, Any]:
        return await self._queue.get()


async def get(port: int, path: str = "/") -> str:
    """One request on a connection of its own; return the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        return (await reader.read()).partition(b"\r\n\r\n")[2].decode().strip()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def running(*args: Any, workers: int = 3, **options: Any) -> AsyncIterator[cluster.Cluster]:
    """A cluster whose workers all listen; it is disconnected at the end."""
    made = cluster.Cluster()
    made.setup_primary(*args, workers=workers, **options)
    listening = set()
    made.on("listening", lambda worker, address: listening.add(worker.id))
    await made.start()
    try:
        await eventually(lambda: len(listening) >= workers, "all workers listen")
        yield made
    finally:
        await made.disconnect()

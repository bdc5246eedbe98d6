"""The examples of docs/library.md run, and share a port between two processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import pytest

from pyworker import child_process
from tests.cluster.helpers import asynchronous, eventually, get
from tests.support.pyworker import free_port

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "library"


@pytest.mark.parametrize("name", ["proxy", "listener", "connections", "with_cluster"])
@asynchronous
async def test_four_ways_of_sharing_a_port(name: str) -> None:
    port = free_port()
    child = child_process.spawn(
        sys.executable, [str(EXAMPLES / f"{name}.py"), str(port)], stdout="inherit", stderr="inherit"
    )
    pids: list[int] = []
    while len(set(pids)) < 2 and not (name == "listener" and len(pids) > 20):  # the kernel promises no turns, the others do
        assert (child.exit_code, child.signal_code) == (None, None), "it has ended: see what it printed"
        with contextlib.suppress(OSError, ValueError):
            pids.append(int(await get(port)))
        await asyncio.sleep(0.01)
    assert child.pid not in pids
    child.kill("SIGTERM" if name == "with_cluster" else "SIGKILL")
    await child.wait_closed()
    for pid in set(pids):
        await eventually(lambda pid=pid: gone(pid), f"{pid} ends when its parent is gone")


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return not os.path.exists(f"/proc/{pid}")

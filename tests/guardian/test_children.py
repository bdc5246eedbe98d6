"""Finding ended children without reaping them."""

from __future__ import annotations

import os
import signal

from pyworker.guardian.children import Children
from pyworker.unix.process import ExitStatus
from tests.support.wait import wait_until


def spawn(code: str) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", code], {"PATH": os.defpath})


def test_all_ended_children_are_found_each_once_and_stay_until_reaped() -> None:
    """waitid gives the same ended child again and again: a loop over it would spin, or never see the second one."""
    children = Children()
    pids = {
        spawn("exit 3"): ExitStatus(3, None),
        spawn("kill -9 $$"): ExitStatus(None, 9),
        spawn("exit 0"): ExitStatus(0, None),
    }
    found: dict[int, ExitStatus] = {}

    def look() -> bool:
        new = children.find()
        assert not found.keys() & new.keys()
        found.update(new)
        return pids.keys() <= found.keys()

    wait_until(look, what="three ended children")
    assert pids.items() <= found.items()
    assert not children.find()
    for pid in pids:
        assert os.path.exists(f"/proc/{pid}")
        children.reap(pid)
        assert not os.path.exists(f"/proc/{pid}")
        children.reap(pid)  # once more is no error
    assert not pids.keys() & children.ended.keys()


def test_living_child_is_never_reaped() -> None:
    children = Children()
    pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    children.reap(pid)
    assert pid not in children.find()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid in children.find() or pid in children.ended, what="its end")
    children.reap(pid)

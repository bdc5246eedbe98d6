"""Finding ended children without reaping them."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator

import pytest

from pyworker.guardian.children import Children
from pyworker.unix.process import ExitStatus
from tests.support.wait import wait_until


def spawn(code: str) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", code], {"PATH": os.defpath}, setsid=True)  # as all that are ours


@pytest.fixture(params=["listed", "not listed"])
def children(request: pytest.FixtureRequest) -> Iterator[Children]:
    """Of a kernel that lists the children of a process, and of one that does not (without CONFIG_PROC_CHILDREN)."""
    made = Children()
    if request.param == "not listed":
        made.close()
        made._listing = -1
    yield made
    made.close()


def test_all_ended_children_are_found_each_once_and_stay_until_reaped(children: Children) -> None:
    """waitid gives the same ended child again and again: a loop over it would spin, or never see the second one."""
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
        children.ended.update(new)
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


def test_living_child_is_never_reaped(children: Children) -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    children.reap(pid)
    assert pid not in children.find()
    os.kill(pid, signal.SIGKILL)
    children.ended.update(wait_until(lambda: {p: s for p, s in children.find().items() if p == pid}, what="its end"))
    children.reap(pid)
    assert not os.path.exists(f"/proc/{pid}")


def test_an_end_that_could_not_be_dealt_with_is_found_again(children: Children) -> None:
    pid = spawn("exit 4")
    found = wait_until(lambda: children.find().get(pid), what="its end")
    assert children.find()[pid] == found == ExitStatus(4, None)
    children.reap(pid)
    assert os.path.exists(f"/proc/{pid}")
    children.ended[pid] = found
    assert pid not in children.find()
    children.reap(pid)
    assert not os.path.exists(f"/proc/{pid}")


def test_ended_children_are_found_without_a_free_descriptor() -> None:
    children = Children()
    first, second = spawn("exit 1"), spawn("exit 2")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        wait_until(lambda: {first, second} <= children.find().keys(), what="two ended children")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        children.close()
        for pid in (first, second):
            os.waitpid(pid, 0)

"""Was it the kernel? Each of its kills explains one death, also when the counters were looked at in between."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyworker.daemon.loop import Loop
from pyworker.daemon.shortage import Shortages, step_to_write
from pyworker.unix import oom
from pyworker.unix.process import ExitStatus


class Lazy:
    """A loop whose lazy calls are made by the test."""

    def __init__(self) -> None:
        self.call: Callable[[], None] = lambda: None

    def call_lazily(self, interval: float, callback: Callable[[], None]) -> None:
        self.call = callback


@pytest.mark.parametrize("field", ["group", "machine"])
@pytest.mark.parametrize("looks", [0, 1])
def test_each_kill_for_want_of_memory_explains_one_death(
    monkeypatch: pytest.MonkeyPatch, field: str, looks: int
) -> None:
    counter: dict[str, Any] = {"group": -1, "machine": -1, field: 7}
    monkeypatch.setattr(oom, "kills", lambda: oom.OomKills(**counter))
    loop = Lazy()
    shortages = Shortages(cast("Loop", loop))

    def explained() -> bool:
        return "memory" in shortages.of_death(os.getpid(), ExitStatus(None, signal.SIGKILL)).reason

    assert not explained()
    counter[field] += 2
    for _ in range(looks):
        loop.call()
    assert explained()
    assert explained()
    assert not explained()
    loop.call()
    assert not explained(), "told already"
    counter[field] += 1
    loop.call()
    loop.call()
    assert not explained(), "that was long ago"


def test_a_shell_whose_program_was_killed_for_want_of_memory_says_137(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = {"group": 7, "machine": -1}
    monkeypatch.setattr(oom, "kills", lambda: oom.OomKills(**counter))
    shortages = Shortages(cast("Loop", Lazy()))
    assert shortages.of_death(os.getpid(), ExitStatus(137, None)).reason == ""  # somebody else has killed it
    counter["group"] += 1
    assert shortages.of_death(os.getpid(), ExitStatus(1, None)).reason == ""
    found = shortages.of_death(os.getpid(), ExitStatus(137, None)).reason
    assert found.startswith("what it had started was killed by the kernel: out of memory")


@pytest.mark.parametrize(
    ("number", "inodes_left", "step"),
    [
        (errno.ENOSPC, 5, "Free some space: df -h '/srv/my home'"),
        (errno.EDQUOT, 5, "Free some space: df -h '/srv/my home'"),
        (errno.ENOSPC, 0, "No inode is left, so remove some files: df -i '/srv/my home'"),
        (errno.EROFS, 0, "May /srv/my home be written?"),
    ],
)
def test_what_could_not_be_written_has_a_step(
    monkeypatch: pytest.MonkeyPatch, number: int, inodes_left: int, step: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_files=100, f_favail=inodes_left))
    assert step_to_write(OSError(number, ""), "/srv/my home") == step

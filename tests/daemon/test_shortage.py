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
from pyworker.daemon.shortage import Shortage, Shortages, by_somebody, step_for, step_to_write
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


@pytest.mark.parametrize(("limit", "step"), [(2**30, "raise the limit, or set"), (None, "fewer workers, or")])
def test_a_limit_that_no_cgroup_has_is_not_to_be_raised(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, step: str
) -> None:
    counter = {"group": 7, "machine": -1}
    monkeypatch.setattr(oom, "kills", lambda: oom.OomKills(**counter))
    monkeypatch.setattr(oom, "group_limit", lambda: limit)
    shortages = Shortages(cast("Loop", Lazy()))
    counter["group"] += 1  # each service of systemd is counted, with a limit or without
    found = shortages.of_death(os.getpid(), ExitStatus(None, signal.SIGKILL))
    assert found.hint.startswith(step)
    assert ("1024 MB" in found.reason) is (limit is not None)


def test_a_shell_whose_program_was_killed_for_want_of_memory_says_137(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = {"group": 7, "machine": -1}
    monkeypatch.setattr(oom, "kills", lambda: oom.OomKills(**counter))
    shortages = Shortages(cast("Loop", Lazy()))
    assert shortages.of_death(os.getpid(), ExitStatus(137, None)).reason == ""  # somebody else has killed it
    counter["group"] += 1
    assert shortages.of_death(os.getpid(), ExitStatus(1, None)).reason == ""
    found = shortages.of_death(os.getpid(), ExitStatus(137, None)).reason
    assert found.startswith("what it had started was killed by the kernel: out of memory")


def test_a_kill_of_long_ago_is_not_taken_for_the_cause_of_a_death_also_when_it_was_long_after_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = {"group": 7, "machine": -1}
    monkeypatch.setattr(oom, "kills", lambda: oom.OomKills(**counter))
    loop = Lazy()
    shortages = Shortages(cast("Loop", loop))
    for _ in range(3):
        look, loop.call = loop.call, lambda: None  # each is asked for by the one before
        look()
    counter["group"] += 1
    for _ in range(2):
        look, loop.call = loop.call, lambda: None
        look()
    assert shortages.of_death(os.getpid(), ExitStatus(None, signal.SIGKILL)).reason == ""


@pytest.mark.parametrize(
    ("number", "used", "limit", "seconds"),
    [
        (signal.SIGXCPU, 5.0, 6, "5 s of CPU"),  # the kernel has raised it by a second
        (signal.SIGKILL, 5.0, 5, "5 s of CPU"),
        (signal.SIGKILL, 1.0, 5, ""),
        (signal.SIGKILL, 1.0, None, ""),
        (signal.SIGTERM, 5.0, 5, ""),
    ],
)
def test_an_end_at_the_limit_of_cpu_time_is_told_from_another(
    monkeypatch: pytest.MonkeyPatch, number: int, used: float, limit: int | None, seconds: str
) -> None:
    monkeypatch.setattr(oom, "kills", lambda: oom.OomKills(7, -1))
    monkeypatch.setattr(oom, "limits", lambda pid: oom.Limits(limit, None, None))
    monkeypatch.setattr(oom, "cpu_seconds", lambda pid: used)
    found = Shortages(cast("Loop", Lazy())).of_death(os.getpid(), ExitStatus(None, number)).reason
    assert seconds in found
    assert bool(found) is bool(seconds)


@pytest.mark.parametrize(
    ("status", "counters", "killed_by_somebody"),
    [
        (ExitStatus(None, signal.SIGKILL), (7, -1), True),
        (ExitStatus(None, signal.SIGKILL), (-1, 7), True),
        (ExitStatus(None, signal.SIGKILL), (-1, -1), False),  # it may have been the kernel
        (ExitStatus(None, signal.SIGSEGV), (7, -1), False),
        (ExitStatus(1, None), (7, -1), False),
    ],
)
def test_who_was_killed_by_somebody_is_known_where_the_kernel_counts_its_own_kills(
    monkeypatch: pytest.MonkeyPatch, status: ExitStatus, counters: tuple[int, int], killed_by_somebody: bool
) -> None:
    monkeypatch.setattr(oom, "kills", lambda: oom.OomKills(*counters))
    found = Shortages(cast("Loop", Lazy())).of_death(os.getpid(), status)
    assert by_somebody(status, found) is killed_by_somebody
    assert not by_somebody(status, Shortage("killed by the kernel: out of memory"))


def test_the_smaller_of_two_limits_of_memory_is_named_beside_last_words_about_memory_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oom, "limits", lambda pid: oom.Limits(None, 512 * 2**20, 256 * 2**20))
    found = Shortages(cast("Loop", Lazy())).of_death(os.getpid(), ExitStatus(1, None))
    assert found.explains("MemoryError: ") == "MemoryError (its memory is limited to 256 MB (RLIMIT_AS, ulimit -v))"
    assert found.explains("ValueError: no") == "ValueError: no"
    assert Shortage().explains("MemoryError") == "MemoryError"


@pytest.mark.parametrize(
    ("number", "inodes_left", "step"),
    [
        (errno.ENOSPC, 5, "Free some space: df -h '/srv/my home'"),
        (errno.EDQUOT, 5, "Free some space: df -h '/srv/my home'"),
        (errno.ENOSPC, 0, "No inode is left, so remove some files: df -i '/srv/my home'"),
        (errno.EACCES, 0, "May /srv/my home be written?"),
        (
            errno.EROFS, 5,
            "Its disk is read-only, as the kernel makes it after an error (dmesg says so): findmnt -T '/srv/my home'",
        ),
    ],
)
def test_what_could_not_be_written_has_a_step(
    monkeypatch: pytest.MonkeyPatch, number: int, inodes_left: int, step: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_files=100, f_favail=inodes_left))
    assert step_to_write(OSError(number, ""), "/srv/my home") == step


def test_of_memory_that_the_kernel_has_and_does_not_promise_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "is_promised_in_full", lambda: False)
    usual = step_for(errno.ENOMEM)
    monkeypatch.setattr(oom, "is_promised_in_full", lambda: True)
    assert step_for(errno.ENOMEM).removeprefix(usual).startswith("; what is free does not count here")


def test_descriptors_on_their_way_are_limited_as_open_ones_are() -> None:
    assert step_for(errno.ETOOMANYREFS) == step_for(errno.EMFILE)

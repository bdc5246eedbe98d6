"""A program of the guardian's that the system does not let be started."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.guardian.program import HUNG, Backoff, Program
from pyworker.guardian.store import FdStore
from pyworker.unix import fds, process
from tests.support.descriptors import open_fds

NOW = 100.0


@pytest.fixture
def program() -> Iterator[Program]:
    before = len(open_fds())
    made = Program("daemon", [sys.executable, "-I", "-c", "import time; time.sleep(100)"], FdStore(), Backoff())
    yield made
    if made.pid:
        made.kill("the end of the test")
        status = os.waitid(os.P_PID, made.pid, os.WEXITED)
        assert status is not None
        made.ended(NOW, process.status_of(status))
    assert len(open_fds()) == before


def children() -> set[bytes]:
    """Return the pids of ours, also of those that have ended and are not reaped."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_bytes().split())


def refuse(number: int) -> Any:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        (fds, "socketpair", errno.EMFILE),
        (process, "spawn", errno.EAGAIN),
        (os, "pidfd_open", errno.ESRCH),
        (os, "pidfd_open", errno.EMFILE),
    ],
)
def test_what_cannot_be_started_leaves_nothing_and_is_started_later(
    program: Program, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int
) -> None:
    before = children()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, refuse(number))
        for _ in range(3):
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                program.start(NOW, {})
            program.try_later(NOW)
    assert (program.pid, program.channel) == (0, None)
    assert program.next_start > NOW
    if name == "pidfd_open":  # it had been made
        assert children() == before
    program.start(NOW, {})
    assert program.pid


def test_one_that_was_killed_for_a_hang_is_not_asked_and_not_killed_again_before_it_is_gone(program: Program) -> None:
    program.start(NOW, {})
    program.version = "1"
    assert program.may_be_asked(NOW)
    program.kill(HUNG)
    assert not program.may_be_asked(NOW + 100.0)


@pytest.mark.parametrize(("answers", "lived"), [([], False), ([4.9], False), ([4.9, 5.1], True)])
def test_one_that_answers_in_its_first_moments_only_hangs_from_its_start_on(
    program: Program, monkeypatch: pytest.MonkeyPatch, answers: list[float], lived: bool
) -> None:
    program.start(NOW, {})
    for number, after in enumerate(answers, 1):
        program.ping()
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda after=after: NOW + after)
            program.ponged(number)
    assert program.has_lived is lived

"""The worker that is forked ahead of need."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pyworker.protocol.template import Retire
from pyworker.protocol.worker import Hello, Ready
from pyworker.template.spare import Spares
from tests.support.fake_daemon import spares
from tests.support.wait import wait_until
from tests.worker.conftest import get

pytestmark = pytest.mark.usefixtures("no_fd_is_left")


def the_spare(*but: int) -> int:
    return wait_until(lambda: next((pid for pid in spares() if pid not in but), 0), what="a spare")


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_who_is_asked_for_is_the_spare_and_another_one_is_made(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    worker = d.fork(template, 1)
    assert worker.pid == first
    worker.expect(Hello)
    worker.expect(Ready)
    assert get(d.listeners[0].getsockname())
    assert os.getsid(worker.pid) == worker.pid
    second = the_spare(first)
    assert d.fork(template, 2).pid == second


def test_two_at_once_are_the_spare_and_a_fork(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    spare = the_spare()
    workers = [d.fork(template, 1), d.fork(template, 2)]
    assert workers[0].pid == spare != workers[1].pid
    for worker in workers:
        worker.expect(Hello)
        worker.expect(Ready)


def test_a_killed_spare_is_replaced_and_keeps_nobody_from_being_forked(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    first = the_spare()
    os.kill(first, signal.SIGKILL)
    d.reap(first)
    worker = d.fork(template, 1)
    assert worker.pid != first
    worker.expect(Hello)
    worker.expect(Ready)
    the_spare(first, worker.pid)


def test_the_spare_is_gone_before_a_template_that_was_told_to_leave(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    spare = the_spare()
    template.send(Retire())
    assert d.reap(template.pid) == 0
    assert ended(spare)


def test_the_spare_leaves_when_its_template_is_killed(daemon: Any) -> None:
    d = daemon()
    template = d.load()
    spare = the_spare()
    d.kill(template.pid)
    wait_until(lambda: ended(spare), what="the spare's end")


def test_spares_that_cannot_bear_to_wait_are_given_up() -> None:
    kept = Spares(lambda: -11, wanted=True)
    made = 0
    while kept.missing:
        assert kept.make() is None
        made += 1
        assert made < 10
    assert made == 3
    assert kept.hand(None) == 0  # type: ignore[arg-type]  # nobody looks at it


def test_where_the_app_is_not_imported_yet_nothing_is_forked_ahead() -> None:
    assert not Spares(lambda: -11, wanted=False).missing

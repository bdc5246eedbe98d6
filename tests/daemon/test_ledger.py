"""The ledger survives its writer, also one that dies in the middle of a write."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from pyworker.daemon.app import App
from pyworker.daemon.board import Board
from pyworker.daemon.desired import InlineSource
from pyworker.daemon.handles import WorkerHandle
from pyworker.daemon.ledger import HALF, Ledger
from pyworker.policy.lifecycle import State
from pyworker.policy.scale import MAX_WORKERS
from pyworker.protocol.inherited import WorkerId
from pyworker.unix.fds import memfd_fixed
from tests.support.descriptors import open_fds


@pytest.fixture
def fd() -> Iterator[int]:
    fd = Ledger.create("api")
    yield fd
    os.close(fd)


def read(fd: int) -> object:
    ledger = Ledger(fd)
    try:
        return ledger.read()
    finally:
        ledger.close()


def write(fd: int, *values: dict[str, int]) -> None:
    ledger = Ledger(fd)
    for value in values:
        ledger.write(value)
    ledger.close()


def test_new_ledger_is_empty(fd: int) -> None:
    assert read(fd) == {}


def test_last_value_is_read_by_the_next_process(fd: int) -> None:
    write(fd, {"a": 1}, {"a": 2}, {"a": 3})
    assert read(fd) == {"a": 3}
    write(fd, {"a": 4})
    assert read(fd) == {"a": 4}


@pytest.mark.parametrize("end", [Ledger.close, Ledger.__del__])
def test_its_own_descriptor_ends_with_it_and_the_given_one_stays(fd: int, end: Callable[[Ledger], None]) -> None:
    before = open_fds()
    ledger = Ledger(fd)
    end(ledger)
    others = os.dup(fd)  # which has its number by now
    end(ledger)
    assert open_fds() == {*before, others}
    os.close(others)


@pytest.mark.parametrize("offset", [8, 12, 20])
def test_torn_write_leaves_the_value_before(fd: int, offset: int) -> None:
    write(fd, {"a": 1}, {"a": 2})
    memory = mmap.mmap(fd, 2 * HALF)
    memory[offset] ^= 0xFF  # the second write went to the first half
    memory.close()
    assert read(fd) == {"a": 1}


def test_too_large_a_value_is_refused_and_the_old_one_stays(fd: int) -> None:
    ledger = Ledger(fd)
    ledger.write({"a": 1})
    with pytest.raises(OSError, match="ledger of"):
        ledger.write({"a": "x" * HALF})
    ledger.close()
    assert read(fd) == {"a": 1}


def test_a_value_that_the_kernel_has_no_memory_for_is_refused_and_the_old_ones_stay(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "as under vm.overcommit_memory = 2, where a touch of a mapping is a SIGBUS")

    ledger = Ledger(fd)
    ledger.write({"a": 1})
    before = os.pread(fd, 2 * HALF, 0)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        for _ in range(2):  # of both halves
            with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
                ledger.write({"a": 2})
    assert os.pread(fd, 2 * HALF, 0) == before
    ledger.write({"a": 2})
    ledger.close()
    assert read(fd) == {"a": 2}


def test_a_ledger_of_another_size_is_gone_on_with() -> None:
    fd = memfd_fixed("older", HALF // 2)
    write(fd, {"a": 1}, {"a": 2}, {"a": 3})
    assert read(fd) == {"a": 3}
    os.close(fd)


def test_the_largest_app_that_there_can_be_is_known_to_the_next_daemon_in_the_middle_of_a_reload(fd: int) -> None:
    board, ledger = Board.create("api"), Ledger(fd)
    name = "n" * 64
    app = App(name, InlineSource({}, "/"), board, ledger)
    for serial in range(10**6, 10**6 + 2 * MAX_WORKERS):
        handle = WorkerHandle(WorkerId(name, 999, serial % MAX_WORKERS + 1, serial), held=True, born_at=1e6 + 1 / 3, started_at=1.8e9 + 1 / 3)
        handle.state, handle.since, handle.ready_at, handle.pid = State.READY, 1e6 + 1 / 3, 1e6 + 1 / 3, 4194304
        handle.version, handle.leaving_because = "0.1.0", "replaced by generation 999"
        app.workers[serial] = handle
    end = {"code": None, "signal": 11, "after_s": 123456.789, "reason": "é" * 300, "at": "2026-11-23T14:02:31.104Z"}
    app.last_exits = dict.fromkeys(range(1, MAX_WORKERS + 1), end)
    app.slot_restarts = dict.fromkeys(app.last_exits, 1000)
    app.write_memo()
    assert len(read(fd)["workers"]) == 2 * MAX_WORKERS  # type: ignore[index]
    ledger.close()
    board.close()

"""The ledger survives its writer, also one that dies in the middle of a write."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from pyworker.daemon.ledger import HALF, Ledger


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

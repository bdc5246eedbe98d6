"""Calls that may hang, and who does not wait for them."""

from __future__ import annotations

import os
import threading

import pytest

from pyworker.unix.errand import Errand, is_local
from tests.support.pyworker import LONG


def test_a_call_that_hangs_holds_up_neither_who_asks_nor_the_next_call() -> None:
    disk = threading.Event()
    hangs = Errand(disk.wait)
    assert not hangs.is_over()
    following = Errand(lambda: "next")
    assert following.is_over(LONG)
    assert following.result() == "next"
    disk.set()
    assert hangs.is_over(LONG)


def test_what_a_call_has_raised_is_for_who_asked() -> None:
    errand = Errand(lambda: 1 // 0)
    assert errand.is_over(LONG)
    with pytest.raises(ZeroDivisionError):
        errand.result()


def test_without_a_thread_the_call_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    errand = Errand(lambda: "here")
    assert errand.is_over()
    assert errand.result() == "here"


def test_a_disk_is_the_machine_s_when_it_is_a_block_device_or_memory() -> None:
    assert is_local(os.stat("/dev/shm"))
    assert not is_local(os.stat("/proc/self/stat"))

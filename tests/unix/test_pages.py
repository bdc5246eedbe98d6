"""Pages that a fork still shares, copied ahead: in processes of their own, because they fork."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import tracemalloc
from typing import NoReturn

import pytest

from pyworker.unix.pages import copy_like
from tests.support.pyworker import KERNEL

RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE: a small machine has less than that

FORKS = """
import ctypes, mmap, os, signal, sys
from pyworker.unix.pages import copy_like

page, count = mmap.PAGESIZE, 64
memory = mmap.mmap(-1, count * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = bytes(range(256)) * (count * page // 256)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))

def owned():
    with open("/proc/self/pagemap", "rb", 0) as pagemap:
        pagemap.seek(start // page * 8)
        entries = memoryview(pagemap.read(count * 8)).cast("Q")
    return [number for number, entry in enumerate(entries) if entry >> 63 and entry >> 56 & 1]

said, says = os.pipe()
model = os.fork()
if model == 0:
    for number in [3, 4, 5, 20, 63]:
        memory[number * page] = 255
    os.write(says, b"x")
    signal.pause()
os.read(said, 1)
child = os.fork()
if child == 0:
    before = bytes(memory)
    assert owned() == []
    print(copy_like(model, int(sys.argv[1])), *owned())
    assert bytes(memory) == before
    sys.stdout.flush()
    os._exit(0)
status = os.waitpid(child, 0)[1]
os.kill(model, signal.SIGKILL)
os.waitpid(model, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def copied(most: int) -> tuple[int, list[int]]:
    """Return how many bytes were copied, and which pages of those that the model has written to."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(most)], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    size, *pages = map(int, done.stdout.split())
    return size, pages


can_copy = pytest.mark.skipif(KERNEL < (5, 14), reason="this kernel cannot copy them (MADV_POPULATE_WRITE: Linux 5.14)")


@can_copy
def test_what_another_fork_has_written_to_is_copied_and_holds_what_it_held() -> None:
    size, pages = copied(1 << 30)
    assert pages == [3, 4, 5, 20, 63]
    assert size >= 5 * mmap.PAGESIZE  # the interpreter's own are among them
    assert size % mmap.PAGESIZE == 0


@can_copy
@pytest.mark.parametrize("room", [1, 3])
def test_nothing_more_is_copied_than_there_is_room_for(room: int) -> None:
    size, pages = copied((room + 1) * mmap.PAGESIZE - 1)
    assert size == room * mmap.PAGESIZE
    assert len(pages) <= room


@pytest.mark.parametrize("reaped", [False, True])
def test_a_process_that_has_ended_is_no_model(reaped: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as model:
        os.waitid(os.P_PID, model.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            model.wait()
        with contextlib.suppress(OSError):  # before it is reaped, older kernels show it without a page
            assert copy_like(model.pid, 1 << 30) == 0


def test_it_is_looked_for_also_behind_an_import_that_has_replaced_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **more: object) -> NoReturn:
        raise RuntimeError("name the encoding")

    monkeypatch.setattr("builtins.open", refuse)
    assert copy_like(os.getpid(), 1 << 30) == 0


def test_a_program_that_has_reserved_very_much_memory_is_looked_at_piece_by_piece() -> None:
    """It takes 8 bytes to look at each page of it, in each spare."""
    with mmap.mmap(-1, 2 << 30, RESERVE):
        tracemalloc.start()
        try:
            assert copy_like(os.getpid(), 1 << 30) == 0
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()

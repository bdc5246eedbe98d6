"""Strict turns among idle workers, seen from a client."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.pyworker import LONG
from tests.support.wait import wait_until

Answer = TypeVar("Answer", str, bytes)


def sleeping(pid: int) -> bool:
    """Whether all its threads wait; on a busy machine a worker that has answered may still have to run."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


def assert_turns(pids: list[int], answer_of_next: Callable[[], Answer], count: int) -> None:
    """See that all get as many. Once a second each may take one out of its turn, lest any wait: busy machines let it."""
    began, found = time.monotonic(), Counter[Answer]()
    for _ in range(count):
        wait_until(lambda: all(map(sleeping, pids)), LONG, "idle workers")  # the promise is about these
        found[answer_of_next()] += 1
    slack = 1 + time.monotonic() - began
    assert len(found) == len(pids), found
    assert all(abs(each - count / len(pids)) <= slack for each in found.values()), (found, slack)

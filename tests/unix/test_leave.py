"""A process that leaves without taking itself apart."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from pyworker.unix.leave import leave
class Loud:
    def __del__(self):
        print("taken apart")
loud = Loud()
print("a line in a buffer", end="")
print("words", end="", file=sys.stderr)
leave(3)
"""


def left(**more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", CODE], stderr=subprocess.PIPE, text=True, timeout=60, check=False, **more)  # type: ignore[call-overload,no-any-return]


def test_what_was_printed_comes_out_and_nothing_else_runs() -> None:
    done = left(stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "a line in a buffer", "words")


@pytest.mark.parametrize("where", ["/dev/full", ""])
def test_a_stdout_that_takes_nothing_is_no_reason_to_stay(where: str) -> None:
    if where:
        with open(where, "w") as full:
            done = left(stdout=full)
    else:
        done = left(preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (3, "words")

"""A stderr that takes nothing is no reason to fail."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys

import pytest

from pyworker.unix import stderr


def test_a_full_disk_or_a_closed_one_costs_the_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    stderr.write("a line\n")
    stderr.say("daemon", "a line")
    stderr.trace(ValueError("what"))
    with pytest.raises(OSError, match="No space"):
        full.close()
    stderr.write("a line\n")


TALKS = """
import sys
from pyworker.unix import stderr
for number in range(100):
    stderr.write(f"{number} " + "x" * 990 + "\\n")
    stderr.trace(ValueError("what"))
print("goes on", flush=True)
sys.stdin.readline()
stderr.write("the last\\n")
"""


def test_nobody_who_reads_it_is_waited_for_and_what_was_dropped_is_counted() -> None:
    reads, writes = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(reads, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen([sys.executable, "-c", TALKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"goes on\n"
        os.close(writes)
        first = os.read(reads, 1 << 16).decode()
        process.stdin.write(b"\n")
        process.stdin.flush()
        with os.fdopen(reads) as left:
            rest = left.read()
    assert first.startswith("0 xxx")
    found = re.fullmatch(r"messages that nobody took, dropped before this: (9\d)\nthe last\n", rest)
    assert found, rest


def test_a_traceback_is_that_of_python_and_names_the_cause(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise ValueError("inner")
        except ValueError as inner:
            raise OSError("outer") from inner
    except OSError as error:
        stderr.trace(error)
    text = capsys.readouterr().err
    assert text.index("ValueError: inner") < text.index("The above exception was the direct cause") < text.index("OSError: outer")
    assert 'raise OSError("outer") from inner' in text


def test_a_line_says_when_and_who(capsys: pytest.CaptureFixture[str]) -> None:
    stderr.say("daemon", "does not answer")
    assert "Z daemon[" in capsys.readouterr().err

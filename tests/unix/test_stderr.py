"""A stderr that takes nothing is no reason to fail."""

from __future__ import annotations

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
